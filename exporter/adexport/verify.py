"""Parity of a bundle with the library that defines the truth: PEFT on torch, rows mixed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from adexport_runtime.bind import default_name
from adexport_runtime.bundle import TRACE_FILE, Bundle
from adexport_runtime.engine import Engine
from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.manifest import Manifest
from adexport_runtime.tensors import Array

from .model import load_model, model_fingerprint
from .options import TOLERANCE
from .progress import Progress, silent

_PEFT_BASE = "__base__"

#: rank of each random adapter when none is given
_RANDOM_RANKS = (4, 8, 16)
_LONGEST = 24


@dataclass(frozen=True)
class Row:
    """One row of the batch: the largest difference from PEFT, and from the same row run alone."""

    adapter: str | None
    tokens: int
    difference: float
    alone: float


@dataclass(frozen=True)
class Report:
    """What was compared, row by row."""

    rows: tuple[Row, ...]
    tolerance: float

    @property
    def worst(self) -> float:
        """The largest difference from PEFT in any row."""
        return max(row.difference for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**asdict(self), "worst": self.worst}


def verify_bundle(
    bundle: Path,
    adapters: Sequence[Path] = (),
    *,
    model: str | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Compare a bundle with PEFT's mixed batch (``adapter_names``), every adapter and the base.

    Args:
        bundle: the bundle.
        adapters: PEFT folders; without any, random adapters on all sites are made.
        model: where torch finds the base; None takes where the bundle was built from.
        tolerance: largest difference, as a part of the largest value (at least 1).
        seed: of the token ids.
        progress: called as each step starts.

    Raises:
        BuildError: a row differs, or ``model`` is another base.
        AdapterError: an adapter does not fit the bundle.
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    limit = TOLERANCE[manifest.base.dtype] if tolerance is None else tolerance
    progress("load the base in torch")
    loaded = load_model(model or manifest.base.source, manifest.base.task)
    _check_base(loaded.model, opened)
    with tempfile.TemporaryDirectory() as scratch, Engine.open(bundle) as engine:
        if not adapters and manifest.sites:
            progress("make random adapters")
            adapters = _random_adapters(manifest, loaded.source, Path(scratch))
        named = _names(adapters)
        for name, path in named.items():
            engine.bind(name, path)
        rows: list[str | None] = [None]
        for name in named:
            rows += [name, name, None]
        feeds = _ragged_batch(manifest, len(rows), seed)
        progress("run the batch in the runtime, mixed and row by row")
        mixed = engine.run(feeds, rows)
        alone = [engine.run(_cut(feeds, row), name) for row, name in enumerate(rows)]
        progress("run the batch in PEFT")
        expected = _run_peft(loaded.model, named, feeds, rows, list(mixed))
    return _compare(feeds, rows, mixed, alone, expected, limit)


def _check_base(model: PreTrainedModel, bundle: Bundle) -> None:
    parameters = dict(model.named_parameters())
    frozen = [name for name in ir.load(bundle.root / TRACE_FILE).graph.initializers if name in parameters]
    found = model_fingerprint(model, [str(name) for name in frozen])
    expected = bundle.manifest.base.fingerprint
    if found != expected:
        raise BuildError(
            "the torch model is another base",
            Problem(
                Code.WRONG_BASE,
                type(model).__name__,
                got=found,
                expected=expected,
                cause="the model's folder changed since the build",
                mend="name the base that the bundle was built from with --model",
            ),
        )


def _names(adapters: Sequence[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in adapters:
        name = default_name(path)
        named[name if name not in named else f"{name}.{len(named)}"] = path
    return named


def _random_adapters(manifest: Manifest, source: str, folder: Path) -> list[Path]:
    """PEFT adapters with random A and B, of several ranks, on all sites of the bundle."""
    made = []
    for index, rank in enumerate(_RANDOM_RANKS):
        config = LoraConfig(
            r=min(rank, manifest.limits.max_rank),
            lora_alpha=2 * rank,
            target_modules=[site.path for site in manifest.sites],
        )
        torch.manual_seed(index)
        model = load_model(source, manifest.base.task).model
        peft = get_peft_model(model, config)
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        path = folder / f"random{index}"
        peft.save_pretrained(str(path))
        made.append(path)
    return made


def _ragged_batch(manifest: Manifest, rows: int, seed: int) -> dict[str, Array]:
    """Random ids with every length from 1 up, padded on the right."""
    random = np.random.default_rng(seed)
    longest = min(_LONGEST, manifest.base.max_positions or _LONGEST)
    lengths = [1 + (5 * row + 3) % longest for row in range(rows)]
    width = max(lengths)
    inside = np.arange(width)[None, :] < np.array(lengths)[:, None]
    feeds = {}
    for spec in manifest.inputs:
        if spec.name == "attention_mask":
            feeds[spec.name] = inside.astype(np.int64)
        else:
            drawn = random.integers(spec.low or 0, (spec.high or 0) + 1, (rows, width))
            feeds[spec.name] = np.where(inside, drawn, spec.low or 0)
    return feeds


def _cut(feeds: Mapping[str, Array], row: int) -> dict[str, Array]:
    length = int(feeds["attention_mask"][row].sum())
    return {name: value[row : row + 1, :length] for name, value in feeds.items()}


def _run_peft(
    model: Any,
    adapters: Mapping[str, Path],
    feeds: Mapping[str, Array],
    rows: Sequence[str | None],
    outputs: Sequence[str],
) -> dict[str, Array]:
    tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
    arguments: dict[str, Any] = {}
    if adapters:
        (first, path), *others = adapters.items()
        model = PeftModel.from_pretrained(model, _folder(path), adapter_name=first)
        for name, path in others:
            model.load_adapter(_folder(path), adapter_name=name)
        model.eval()
        arguments["adapter_names"] = [_PEFT_BASE if name is None else name for name in rows]
    with torch.no_grad():
        result = model(**tensors, **arguments, return_dict=True)
    return {name: result[name].to(torch.float32).numpy() for name in outputs}


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _compare(
    feeds: Mapping[str, Array],
    rows: Sequence[str | None],
    mixed: Mapping[str, Array],
    alone: Sequence[Mapping[str, Array]],
    expected: Mapping[str, Array],
    limit: float,
) -> Report:
    scale = max(1.0, *(float(np.abs(value).max()) for value in expected.values()))
    compared = []
    for row, name in enumerate(rows):
        length = int(feeds["attention_mask"][row].sum())
        difference = own = 0.0
        for output, value in expected.items():
            part = slice(length) if value.ndim == 3 else slice(None)
            difference = max(difference, _largest(mixed[output][row][part] - value[row][part]) / scale)
            own = max(own, _largest(mixed[output][row][part] - alone[row][output][0][part]) / scale)
        compared.append(Row(name, length, difference, own))
    problems = [
        Problem(
            Code.PARITY,
            f"row {index} ({row.adapter or 'base'}, {row.tokens} tokens)",
            got=f"a difference of {max(row.difference, row.alone):.2e}",
            expected=f"at most {limit:.0e}",
        )
        for index, row in enumerate(compared)
        if not max(row.difference, row.alone) <= limit
    ]
    if problems:
        raise BuildError("the bundle differs from PEFT", problems)
    return Report(tuple(compared), limit)


def _largest(values: Array) -> float:
    return float(np.abs(values).max())
