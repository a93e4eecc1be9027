"""Parity of a bundle with torch and PEFT: every row of a mixed, ragged batch."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from adexport_runtime.bind import default_name
from adexport_runtime.bundle import TRACE_FILE, Bundle
from adexport_runtime.engine import Engine
from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.manifest import Manifest
from adexport_runtime.tensors import Array

from .architectures import CLASSIFICATION
from .model import load_model, model_fingerprint
from .options import TOLERANCE
from .peft_reference import RowOutputs, read_tenants, run_peft
from .progress import Progress, silent
from .reference import sample_values

#: rank of each random adapter when none is given
_RANDOM_RANKS = (4, 8, 16)
_LONGEST = 24
#: of the rows of a batch, also without any adapter
_FEWEST = 3
#: what the manifest calls the size of a text
SEQ = "seq"


@dataclass(frozen=True)
class Row:
    """One row of the batch: the largest difference from PEFT, and from the same row run alone.

    ``tokens`` is None where the inputs have no length.
    """

    adapter: str | None
    tokens: int | None
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
    """Compare a bundle with PEFT on torch, every adapter and the base in one mixed batch.

    PEFT runs the batch mixed too (``adapter_names``) where it can, else each adapter by itself. A row
    with a head of its own is compared by its own labels; a base without a head by its hidden states.

    Args:
        bundle: the bundle.
        adapters: PEFT folders, of any family that can be bound; without any, random LoRA adapters are
            made on all sites that take them.
        model: where torch finds the base; None takes where the bundle was built from.
        tolerance: largest difference, as a part of the largest value (at least 1).
        seed: of the inputs.
        progress: called as each step starts.

    Raises:
        BuildError: a row differs, or ``model`` is another base.
        AdapterError: an adapter does not fit the bundle, or is none of PEFT's.
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    limit = TOLERANCE[manifest.base.dtype] if tolerance is None else tolerance
    named = _names(adapters)
    tenants = read_tenants(named, manifest.base.prefix)
    progress("load the base in torch")
    headless = manifest.base.task in CLASSIFICATION and not manifest.base.labels
    loaded = load_model(model or manifest.base.source, manifest.base.task, headless=headless)
    _check_base(loaded.model, opened)
    with tempfile.TemporaryDirectory() as scratch, Engine.open(bundle) as engine:
        if not named and manifest.sites:
            progress("make random adapters")
            named = _random_adapters(manifest, loaded.model, Path(scratch))
            tenants = read_tenants(named, manifest.base.prefix)
        for name, path in named.items():
            engine.bind(name, path)
        rows: list[str | None] = [None, *(row for name in named for row in (name, name, None))]
        rows += [None] * (_FEWEST - len(rows))
        lengths = _lengths(manifest, len(rows))
        feeds = _ragged_batch(manifest, lengths, loaded.pad_id, seed)
        progress("run the batch in the runtime, mixed and row by row")
        outputs = engine.run(feeds, rows)
        mixed = [outputs.row(row) for row in range(len(rows))]
        alone = [
            engine.run(_cut(manifest, feeds, row, lengths[row]), name).row(0)
            for row, name in enumerate(rows)
        ]
        progress("run the batch in PEFT")
        widths = [len(labels) for labels in outputs.labels]
        expected = run_peft(
            loaded, tenants, feeds, list(zip(rows, widths, strict=True)), [o.name for o in manifest.outputs]
        )
    return _compare(manifest, rows, lengths, mixed, alone, expected, limit)


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


def _random_adapters(manifest: Manifest, model: PreTrainedModel, folder: Path) -> dict[str, Path]:
    """PEFT adapters with random A and B, of several ranks, on all sites that take LoRA."""
    targets = [site.path for site in manifest.sites if site.linear.lora_A is not None]
    made: dict[str, Path] = {}
    for index, rank in enumerate(_RANDOM_RANKS if targets else ()):
        config = LoraConfig(
            r=min(rank, manifest.limits.max_rank), lora_alpha=2 * rank, target_modules=targets
        )
        torch.manual_seed(index)
        peft = get_peft_model(copy.deepcopy(model), config)
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        path = folder / f"random{index}"
        peft.save_pretrained(str(path))
        made[path.name] = path
    return made


def _lengths(manifest: Manifest, rows: int) -> list[int]:
    """Every length from 1 up."""
    longest = min(_LONGEST, manifest.base.max_positions or _LONGEST)
    return [1 + (5 * row + 3) % longest for row in range(rows)]


def _ragged_batch(
    manifest: Manifest, lengths: Sequence[int], pad_id: int | None, seed: int
) -> dict[str, Array]:
    """Random rows of these lengths, padded on the right with what the model takes for padding."""
    return {
        spec.name: sample_values(spec, f"verify.{seed}.{spec.name}", lengths, pad_id)
        for spec in manifest.inputs
    }


def _cut(manifest: Manifest, feeds: Mapping[str, Array], row: int, length: int) -> dict[str, Array]:
    """One row by itself, without padding."""
    ragged = {spec.name for spec in manifest.inputs if SEQ in spec.shape}
    return {
        name: value[row : row + 1, :length] if name in ragged else value[row : row + 1]
        for name, value in feeds.items()
    }


def _compare(
    manifest: Manifest,
    rows: Sequence[str | None],
    lengths: Sequence[int],
    mixed: Sequence[RowOutputs],
    alone: Sequence[RowOutputs],
    expected: Sequence[RowOutputs],
    limit: float,
) -> Report:
    """Row by row, by what both sides have there; what stands at padding is nobody's output."""
    ragged = {spec.name for spec in manifest.outputs if SEQ in spec.shape}

    def kept(row: int, outputs: RowOutputs, name: str) -> Array:
        return outputs[name][: lengths[row]] if name in ragged else outputs[name]

    scale = max(1.0, *(_largest(kept(row, one, name)) for row, one in enumerate(expected) for name in one))
    texts = any(SEQ in spec.shape for spec in manifest.inputs)
    compared = []
    for row, name in enumerate(rows):
        difference = own = 0.0
        for output in expected[row]:
            got = kept(row, mixed[row], output)
            difference = max(difference, _difference(got, kept(row, expected[row], output)) / scale)
            own = max(own, _difference(got, kept(row, alone[row], output)) / scale)
        compared.append(Row(name, lengths[row] if texts else None, difference, own))
    problems = [
        Problem(
            Code.PARITY,
            f"row {index} ({row.adapter or 'base'}" + (f", {row.tokens} tokens)" if row.tokens else ")"),
            got=f"a difference of {max(row.difference, row.alone):.2e}",
            expected=f"at most {limit:.0e}",
        )
        for index, row in enumerate(compared)
        if not max(row.difference, row.alone) <= limit
    ]
    if problems:
        raise BuildError("the bundle differs from PEFT", problems)
    return Report(tuple(compared), limit)


def _difference(got: Array, expected: Array) -> float:
    """The largest difference; infinite where there is a NaN, or where the shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    largest = _largest(got - expected)
    return float("inf") if np.isnan(largest) else largest


def _largest(values: Array) -> float:
    return float(np.abs(values).max())
