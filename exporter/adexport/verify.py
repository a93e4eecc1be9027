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
from adexport_runtime.text import TextEncoder

from .architectures import CLASSIFICATION
from .model import load_model, model_fingerprint
from .options import QUANTIZED_TOLERANCE, TOLERANCE
from .peft_reference import RowOutputs, read_tenants, run_peft
from .progress import Progress, silent
from .quality import Comparison, floor_of, sentences
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

    ``tokens`` is None where the inputs have no length. On a quantized base also the mean ``cosine`` of
    its outputs with PEFT's, and the part of the positions where the largest logit is the same (``top1``).
    """

    adapter: str | None
    tokens: int | None
    difference: float
    alone: float
    cosine: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class Report:
    """What was compared, row by row.

    On a quantized base (``min_cosine``) their mean cosine is held to that, and rows to ``tolerance`` only
    against themselves alone.
    """

    rows: tuple[Row, ...]
    tolerance: float
    min_cosine: float | None = None

    @property
    def worst(self) -> float:
        """The largest difference from PEFT in any row."""
        return max(row.difference for row in self.rows)

    @property
    def cosine(self) -> float | None:
        """The mean cosine of a quantized base, over all tokens (or rows)."""
        return self._mean([row.cosine for row in self.rows])

    @property
    def top1(self) -> float | None:
        """The part of all tokens (or rows) of a quantized base where the largest logit is the same."""
        return self._mean([row.top1 for row in self.rows])

    def _mean(self, values: list[float | None]) -> float | None:
        found = [
            (value, row.tokens or 1)
            for value, row in zip(values, self.rows, strict=True)
            if value is not None
        ]
        return (
            sum(value * size for value, size in found) / sum(size for _, size in found) if found else None
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**asdict(self), "worst": self.worst, "cosine": self.cosine, "top1": self.top1}


def verify_bundle(
    bundle: Path,
    adapters: Sequence[Path] = (),
    *,
    model: str | None = None,
    tolerance: float | None = None,
    min_cosine: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Compare a bundle with PEFT on torch, every adapter and the base in one mixed batch.

    PEFT runs the batch mixed too (``adapter_names``) where it can, else each adapter by itself. A row
    with a head of its own is compared by its own labels; a base without a head by its hidden states. A
    quantized base is compared by cosines, on real texts if it has a tokenizer.

    Args:
        bundle: the bundle.
        adapters: PEFT folders, of any family that can be bound; without any, random LoRA adapters are
            made on all sites that take them.
        model: where torch finds the base; None takes where the bundle was built from.
        tolerance: largest difference, as a part of the largest value (at least 1).
        min_cosine: mean cosine of a quantized base's outputs, at least; None takes that of a build.
        seed: of the inputs.
        progress: called as each step starts.

    Raises:
        BuildError: a row differs, or ``model`` is another base.
        AdapterError: an adapter does not fit the bundle, or is none of PEFT's.
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    limit, floor = _limits(manifest, tolerance, min_cosine)
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
        lengths, feeds = _batch(opened, len(rows), loaded.pad_id, seed)
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
    return _compare(manifest, rows, lengths, mixed, alone, expected, limit, floor)


def _limits(
    manifest: Manifest, tolerance: float | None, min_cosine: float | None
) -> tuple[float, float | None]:
    """The tolerance, and the least mean cosine of a quantized base."""
    quantization = manifest.base.quantization
    if quantization is None:
        if min_cosine is not None:
            raise BuildError(
                "nothing was compared",
                Problem(
                    Code.BAD_INPUT,
                    "--min-cosine",
                    got=str(min_cosine),
                    expected="a quantized bundle",
                    mend="leave it out: a bundle that is not quantized is held to --tolerance",
                ),
            )
        dtype = manifest.bank_dtype or manifest.base.dtype
        return TOLERANCE[dtype] if tolerance is None else tolerance, None
    return QUANTIZED_TOLERANCE if tolerance is None else tolerance, floor_of(quantization, min_cosine)


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


def _batch(bundle: Bundle, rows: int, pad_id: int | None, seed: int) -> tuple[list[int], dict[str, Array]]:
    """Ragged rows, padded on the right with what the model takes for padding, and their lengths.

    Random ones, or real texts where quantization is judged: it does least to what no model was made for.
    """
    manifest = bundle.manifest
    if manifest.base.quantization is not None and manifest.tokenizer is not None:
        texts = sentences()
        chosen = [texts[(seed + row) % len(texts)] for row in range(rows)]
        found = TextEncoder(bundle)(chosen)
        return [int(length) for length in found["attention_mask"].sum(axis=1)], found
    lengths = _lengths(manifest, rows)
    return lengths, {
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
    floor: float | None,
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
        near = Comparison()
        for output in expected[row]:
            got = kept(row, mixed[row], output)
            difference = max(difference, _difference(got, kept(row, expected[row], output)) / scale)
            own = max(own, _difference(got, kept(row, alone[row], output)) / scale)
            if floor is not None and got.shape == kept(row, expected[row], output).shape:
                near.add({output: got[None]}, {output: kept(row, expected[row], output)[None]}, None)
        tokens = lengths[row] if texts else None
        quality = None if floor is None else near.result(texts=False)
        cosine, top1 = (None, None) if quality is None else (quality.cosine, quality.top1)
        compared.append(Row(name, tokens, difference, own, cosine, top1))
    problems = [
        problem for index, row in enumerate(compared) for problem in _faults(index, row, limit, floor)
    ]
    report = Report(tuple(compared), limit, floor)
    if floor is not None and not (report.cosine or 0) >= floor:
        said = f"a mean cosine of {report.cosine:.6f}"
        problems.append(Problem(Code.PARITY, "all rows", got=said, expected=f"at least {floor:g}"))
    if problems:
        raise BuildError("the bundle differs from PEFT", problems)
    return report


def _faults(index: int, row: Row, limit: float, floor: float | None) -> list[Problem]:
    """What is wrong with a row."""
    subject = f"row {index} ({row.adapter or 'base'}" + (f", {row.tokens} tokens)" if row.tokens else ")")
    worst = max(row.difference, row.alone) if floor is None else row.alone
    found = []
    if not worst <= limit:
        got = f"a difference of {worst:.2e}" + ("" if floor is None else " from the row alone")
        found.append(Problem(Code.PARITY, subject, got=got, expected=f"at most {limit:.0e}"))
    if floor is not None and np.isinf(row.difference):
        found.append(
            Problem(Code.PARITY, subject, got="NaN, or other shapes", expected="numbers near PEFT's")
        )
    return found


def _difference(got: Array, expected: Array) -> float:
    """The largest difference; infinite where there is a NaN, or where the shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    largest = _largest(got - expected)
    return float("inf") if np.isnan(largest) else largest


def _largest(values: Array) -> float:
    return float(np.abs(values).max())
