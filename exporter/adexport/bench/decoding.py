"""What generating costs: a decode step and a prompt beside the plain base, many tenants beside one by one.

Everything is timed on graphs of the same trace, opened in one process, in turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adexport_runtime import dtypes
from adexport_runtime.backends import Binding
from adexport_runtime.backends.kernels import find_kernels
from adexport_runtime.backends.onnxruntime import OnnxRuntimeBackend
from adexport_runtime.batch_rows import BatchRows
from adexport_runtime.bind import load_adapter
from adexport_runtime.bundle import Bundle
from adexport_runtime.engine import Engine
from adexport_runtime.errors import Code, Problem, RequestError
from adexport_runtime.tensors import Array

from ..build import lower_again
from ..options import BuildOptions
from ..progress import Progress, silent
from .measure import Quartiles, interleave, ratios
from .report import machine
from .workload import Workload, make_workload


@dataclass(frozen=True)
class Timing:
    """CPU and wall time of the bundle and of what it is compared with, and bundle / other."""

    cpu_ms: float
    wall_ms: float
    other_cpu_ms: float
    other_wall_ms: float
    cpu_ratio: Quartiles
    wall_ratio: Quartiles


@dataclass(frozen=True)
class Throughput:
    """Tokens (of prompts and new ones) in a second of wall time: all tenants at once, and one by one."""

    together: float
    one_by_one: float
    same_tokens: bool

    @property
    def ratio(self) -> float:
        """How many times as fast it is together."""
        return self.together / self.one_by_one


@dataclass(frozen=True)
class DecodingReport:
    """One run of the benchmark.

    ``decode`` and ``prefill`` are beside the same graph without slots.
    """

    bundle: str
    settings: Mapping[str, Any]
    decode: Timing
    prefill: Timing
    throughput: Throughput

    def to_dict(self) -> dict[str, Any]:
        """The report with the machine that it was made on."""
        return {
            **asdict(self),
            "throughput": {**asdict(self.throughput), "ratio": self.throughput.ratio},
            "machine": machine(),
        }


def run_decoding(
    bundle: Path,
    *,
    batch: int = 8,
    seq: int = 128,
    past: int = 256,
    adapters: int = 8,
    rank: int = 16,
    prompt: int = 64,
    new: int = 64,
    threads: int = 1,
    repeats: int = 15,
    progress: Progress = silent,
) -> DecodingReport:
    """Measure a bundle that generates, with a different random LoRA on every row.

    Args:
        bundle: the bundle; nothing is written to it.
        batch: rows; row i takes adapter ``i % adapters``.
        seq: tokens of each prompt of the prefill.
        past: tokens in each row's cache at the decode step.
        adapters: how many.
        rank: of each, on all sites.
        prompt: tokens of each prompt of the throughput.
        new: tokens that are generated for each.
        threads: of an operator; 0 lets ONNX Runtime choose.
        repeats: rounds.
        progress: called as each step starts.

    Raises:
        RequestError: the bundle does not generate, or takes no such batch or rank.
    """
    opened = Bundle.open(bundle)
    room = max(seq, past + 1, prompt + new)
    settings: dict[str, int] = {
        "batch": batch, "seq": seq, "past": past, "adapters": adapters, "rank": rank, "prompt": prompt,
        "new": new, "threads": threads, "repeats": repeats,
    }  # fmt: skip
    if opened.manifest.generation is None:
        raise RequestError(
            "nothing to measure",
            Problem(
                Code.BAD_INPUT, str(bundle), got="a bundle that does not generate",
                mend="adexport build MODEL --task text-generation",
            ),
        )  # fmt: skip
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress("make the adapters")
        workload = make_workload(
            opened, batch=batch, seq=room, adapters=adapters, rank=rank, threads=threads, scratch=scratch
        )
        progress("lower the base without slots")
        plain = scratch / "base.bundle"
        lower_again(bundle, plain, options=BuildOptions(slots=()), adapters=False)
        mine, base = Stepper(workload, bundle), Stepper(workload, plain)
        progress(f"prompts of {seq} tokens, {repeats} rounds")
        prefill = time_pair(lambda: mine.prefill(seq), lambda: base.prefill(seq), repeats)
        progress(f"steps behind {past} tokens, {3 * repeats} rounds")
        mine.prefill(past)
        base.prefill(past)
        decode = time_pair(lambda: mine.step(past), lambda: base.step(past), 3 * repeats)
        mine.close()
        base.close()
        progress(f"{batch} tenants, {prompt} + {new} tokens each, together and one by one")
        throughput = _throughput(workload, bundle, prompt, new)
    return DecodingReport(str(bundle), settings, decode, prefill, throughput)


class Stepper:
    """A graph with caches and rows of adapters, that runs the same prompt or the same step again."""

    def __init__(self, workload: Workload, root: Path) -> None:
        """Open a bundle, with the workload's adapters if it has slots."""
        bundle = Bundle.open(root)
        manifest = bundle.manifest
        assert manifest.generation is not None
        self._generation = manifest.generation
        self._backend = OnnxRuntimeBackend(
            bundle.model_path, manifest, workload.threads, spin=False, kernels=find_kernels()
        )
        self._ids = np.asarray(workload.feeds["input_ids"])
        batch, room = self._ids.shape
        self._caches = self._backend.caches(batch, room)
        self._rows = BatchRows(manifest.slot_inputs, dtypes.NUMPY[manifest.base.dtype], batch)
        self._bindings = {"prefill": Binding(), "step": Binding()}
        if manifest.slots:
            bound = {
                name: load_adapter(name, folder, bundle).rows(manifest)
                for name, folder in workload.adapters.items()
            }
            for row, name in enumerate(workload.rows):
                self._rows.put(row, bound[name])

    def prefill(self, tokens: int) -> Array:
        """The rows' first tokens."""
        return self._run("prefill", 0, tokens)

    def step(self, past: int) -> Array:
        """One token of every row."""
        return self._run("step", past, 1)

    def close(self) -> None:
        """Free the graph."""
        self._backend.close()

    def _run(self, kind: str, past: int, tokens: int) -> Array:
        batch = len(self._ids)
        feeds = {
            "input_ids": np.ascontiguousarray(self._ids[:, past : past + tokens]),
            self._generation.lengths: np.full(batch, tokens, np.int64),
            self._generation.past_lengths: np.full(batch, past, np.int64),
            self._generation.logits_at: np.full((batch, 1), tokens - 1, np.int64),
        }
        return self._backend.step(feeds, self._rows, self._caches, slice(0, batch), self._bindings[kind])


def time_pair(mine: Callable[[], object], other: Callable[[], object], repeats: int) -> Timing:
    """Time two ways to do something, in turns."""
    samples = interleave({"mine": mine, "other": other}, repeats, warmup=1)
    one, two = samples["mine"], samples["other"]
    cpu_ratio, wall_ratio = ratios(one, two)
    return Timing(
        cpu_ms=float(np.median(one.cpu)) * 1e3,
        wall_ms=float(np.median(one.wall)) * 1e3,
        other_cpu_ms=float(np.median(two.cpu)) * 1e3,
        other_wall_ms=float(np.median(two.wall)) * 1e3,
        cpu_ratio=cpu_ratio,
        wall_ratio=wall_ratio,
    )


def _throughput(workload: Workload, bundle: Path, prompt: int, new: int) -> Throughput:
    ids: Sequence[Sequence[int]] = workload.feeds["input_ids"][:, :prompt].tolist()
    tokens = len(ids) * (prompt + new)
    with Engine.open(bundle, threads=workload.threads, spin=False) as engine:
        for name, folder in workload.adapters.items():
            engine.bind(name, folder)
        settings: dict[str, Any] = {"max_new_tokens": new, "eos": (), "max_batch": len(ids)}
        engine.generate(ids[:1], workload.rows[:1], max_new_tokens=2, eos=())
        start = time.perf_counter()
        together = engine.generate(ids, workload.rows, **settings)
        middle = time.perf_counter()
        alone = [
            engine.generate([one], [row], **settings)[0]
            for one, row in zip(ids, workload.rows, strict=True)
        ]
        end = time.perf_counter()
    same = all(one.ids == other.ids for one, other in zip(together, alone, strict=True))
    return Throughput(tokens / (middle - start), tokens / (end - middle), same)
