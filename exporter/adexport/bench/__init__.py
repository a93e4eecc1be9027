"""`adexport bench`: the runtime beside other ways to run the same batch, in one process.

Every contender's outputs are compared with the runtime's before anything is timed: a ratio to
something that computes something else says nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from adexport_runtime.bundle import Bundle
from adexport_runtime.engine import Engine
from adexport_runtime.errors import BuildError, Code, Problem, RequestError
from adexport_runtime.tensors import Array, read_tensors

from ..options import TOLERANCE
from ..progress import Progress, silent
from .contenders import CONTENDERS, OTHERS, Contender, open_contender
from .measure import Quartiles, interleave, ratios
from .report import BenchReport, ColdBind, Comparison
from .workload import WEIGHTS_FILE, Workload, make_workload

__all__ = ["CONTENDERS", "BenchReport", "run_bench"]

_MINE = "adexport"


def run_bench(
    bundle: Path,
    *,
    batch: int = 8,
    seq: int = 128,
    adapters: int = 8,
    rank: int = 16,
    threads: int = 1,
    repeats: int = 30,
    against: Sequence[str] = OTHERS,
    progress: Progress = silent,
) -> BenchReport:
    """Measure a bundle on a batch whose rows take different adapters.

    Args:
        bundle: the bundle; nothing is written to it.
        batch: rows; row i takes adapter ``i % adapters``.
        seq: tokens in every row.
        adapters: how many are bound.
        rank: of each, on all sites.
        threads: of an operator, for everyone; 0 lets the libraries choose.
        repeats: rounds.
        against: names of :data:`CONTENDERS`.
        progress: called as each step starts.

    Raises:
        RequestError: the bundle takes no such batch or rank, or has no slots.
        BuildError: a contender computes something else.
    """
    settings = {
        "batch": batch,
        "seq": seq,
        "adapters": adapters,
        "rank": rank,
        "threads": threads,
        "repeats": repeats,
    }
    if Bundle.open(bundle).manifest.generation is not None:
        raise RequestError(
            "nothing to measure",
            Problem(
                Code.BAD_INPUT,
                str(bundle),
                got="a bundle that generates",
                expected="one whose graph runs a batch and is done",
                mend="adexport bench BUNDLE --task generate",
            ),
        )
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress("make the adapters")
        workload = make_workload(
            Bundle.open(bundle),
            batch=batch,
            seq=seq,
            adapters=adapters,
            rank=rank,
            threads=threads,
            scratch=scratch,
        )
        engine = stack.enter_context(Engine.open(bundle, threads=threads, spin=False))
        for name, folder in workload.adapters.items():
            engine.bind(name, folder)
        contenders: dict[str, Contender] = {}
        differences = {}
        for name in against:
            progress(f"prepare {name}, and compare its outputs")
            contenders[name] = stack.enter_context(open_contender(name, workload))
            differences[name] = _checked(name, contenders[name], engine, workload)
        progress(f"{repeats} rounds")
        runs = {_MINE: lambda: engine.run(workload.feeds, workload.rows)}
        samples = interleave(runs | {name: c.run for name, c in contenders.items()}, repeats)
        progress("cold bind")
        cold = _cold_bind(engine, workload, repeats)
    mine = samples[_MINE]
    return BenchReport(
        bundle=str(bundle),
        settings=settings,
        cpu_ms=float(np.median(mine.cpu)) * 1e3,
        wall_ms=float(np.median(mine.wall)) * 1e3,
        against={
            name: Comparison(
                float(np.median(samples[name].cpu)) * 1e3,
                float(np.median(samples[name].wall)) * 1e3,
                *ratios(mine, samples[name]),
                differences[name],
            )
            for name in contenders
        },
        cold_bind=cold,
    )


def _checked(name: str, contender: Contender, engine: Engine, workload: Workload) -> float:
    """The largest difference between a contender's outputs and the runtime's."""
    expected = engine.run(workload.feeds, workload.rows if contender.adapted else None)
    difference = _largest(contender.run(), expected)
    manifest = workload.bundle.manifest
    # the plain base has no adapters to round
    narrow = manifest.bank_dtype if contender.adapted else None
    limit = TOLERANCE[narrow or manifest.base.dtype]
    if not difference <= limit:
        raise BuildError(
            f"{name} computes something else",
            Problem(
                Code.PARITY,
                name,
                got=f"a difference of {difference:.2e}",
                expected=f"at most {limit:.0e}",
                cause="nothing was timed: the ratio would mean nothing",
                mend="adexport verify BUNDLE says which of the two is right",
            ),
        )
    return difference


def _largest(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    return max(
        float(np.abs(found[name] - value).max()) / max(1.0, float(np.abs(value).max()))
        for name, value in expected.items()
    )


def _cold_bind(engine: Engine, workload: Workload, repeats: int) -> ColdBind:
    """Reading the file alone, one forward, and binding with its first forward, interleaved."""
    folder = next(iter(workload.adapters.values()))
    one = {name: value[:1] for name, value in workload.feeds.items()}

    def bind_and_run() -> None:
        engine.bind("cold", folder)
        engine.run(one, "cold")

    engine.bind("cold", folder)
    samples = interleave(
        {
            "read": lambda: read_tensors(folder / WEIGHTS_FILE),
            "forward": lambda: engine.run(one, "cold"),
            "whole": bind_and_run,
        },
        repeats,
    )
    engine.unbind("cold")
    whole, read, forward = (samples[name].cpu for name in ("whole", "read", "forward"))
    return ColdBind(
        read_ms=float(np.median(read)) * 1e3,
        forward_ms=float(np.median(forward)) * 1e3,
        whole_ms=float(np.median(whole)) * 1e3,
        ratio=Quartiles.of((whole - read) / forward),
    )
