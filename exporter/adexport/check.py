"""A bundle proves itself before it appears: the checker, ONNX Runtime, and parity with torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from adexport_runtime import dtypes
from adexport_runtime.backends.onnxruntime import open_session, ort_value
from adexport_runtime.caches import Generation
from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.graph_io import kind_of
from adexport_runtime.slots import BottleneckForm, BottleneckStyle, Guards, SlotInput
from adexport_runtime.tensors import Array

from .check_cached import run_cached
from .lower import (
    ADAPTER_IDS,
    ONNXRUNTIME,
    BottleneckOptions,
    HeadOptions,
    Lowered,
    LowerOptions,
    Slotted,
    bottleneck_places,
    has_head,
    lower,
    slot_candidates,
)
from .lower.precision import widen_to_float32
from .options import TOLERANCE
from .quality import Comparison, Quality, judge, mask_of
from .reference import RANKS, Case, reference_bottleneck, reference_factors
from .slots.kinds import FACTORS

#: what the reference's bottlenecks are
_GUARDS = "guards"
_YES = np.array(1, np.int64)
_STYLE = BottleneckStyle(form=BottleneckForm(), activation="relu")


def check_model(
    model: Path,
    trace: ir.Model,
    options: LowerOptions,
    cases: Mapping[str, Case],
    tolerance: float,
    generation: Generation | None = None,
    target: str = ONNXRUNTIME,
) -> dict[str, float]:
    """Check a written, lowered graph against the trace's reference, in ONNX Runtime on the CPU.

    The trace is lowered once more with every slot that it can have, in float32, and compared with
    torch; then the model is compared with that, with the reference adapters cut to its slots. A graph
    with caches runs every case at once, and token by token. bfloat16, for which ONNX Runtime has no CPU
    kernels, is run in float32 on the rounded weights; so is float16 for another target, which does not
    round as ONNX Runtime would. Of a quantized model this compares what it was
    quantized from; see :func:`check_quality`. ``target`` is what ``model`` was lowered for.

    Returns:
        The largest relative difference seen in each comparison.

    Raises:
        BuildError: the graph is invalid, does not load, or differs.
    """
    _check_onnx(model)
    with tempfile.TemporaryDirectory(prefix=".check.", dir=model.parent) as scratch:
        everything = lower(trace, _everything(trace))
        full = _Runner(
            _written(everything.graph, Path(scratch) / "full.onnx"), everything.slots, generation=generation
        )
        differences = {
            f"torch {name}": _difference(case, full.run(name, case), case.outputs)
            for name, case in cases.items()
        }
        if generation is not None:
            differences |= {
                f"torch {name} in steps": _difference(case, full.run(name, case, steps=True), case.outputs)
                for name, case in cases.items()
            }
        _judge(differences, tolerance, "float32 with slots everywhere")
        mine = _runner(model, trace, options, Path(scratch), generation, target)
        limit = max(tolerance, TOLERANCE[options.dtype])
        found = {}
        for name, case in cases.items():
            expected = full.run(name, case, only=mine)
            found[f"{options.dtype} {name}"] = _difference(case, mine.run(name, case), expected)
            if generation is not None and target != ONNXRUNTIME:  # attention of another kind
                stepped = mine.run(name, case, steps=True)
                found[f"{options.dtype} {name} in steps"] = _difference(case, stepped, expected)
        _judge(found, limit, f"{options.dtype} with the chosen slots")
    return differences | found


def check_quality(
    model: Path,
    trace: ir.Model,
    options: LowerOptions,
    cases: Mapping[str, Case],
    texts: Sequence[tuple[str, Case]] | None,
    floor: float,
    generation: Generation | None = None,
    target: str = ONNXRUNTIME,
) -> Quality:
    """Compare a quantized graph with the float32 one, with and without reference adapters.

    ``texts`` are batches of real texts, each with the case whose adapters it takes; without any, the
    reference's own batches are run. ``target`` is what ``model`` was lowered for.

    Raises:
        BuildError: the mean cosine, with adapters of a kind or without, is under the floor.
    """
    assert options.quantization is not None
    together = Comparison()
    kinds: dict[str, Comparison] = {}
    with tempfile.TemporaryDirectory(prefix=".check.", dir=model.parent) as scratch:
        plain = replace(options, quantization=None)
        lowered = lower(trace, plain)
        path = _written(lowered.graph, Path(scratch) / "float.onnx")
        exact = _Runner(path, lowered.slots, generation=generation)
        mine = _Runner(
            model,
            lowered.slots if target == ONNXRUNTIME else lower(trace, plain, target).slots,
            generation=generation,
            integers=options.quantization.method == "dynamic",
            even=target != ONNXRUNTIME,
            room=options.in_place,
        )
        for name, case in texts if texts is not None else cases.items():
            got, expected = mine.run(name, case), exact.run(name, case)
            kind = "without adapters" if name == "base" else f"with reference adapters ({name})"
            for comparison in (together, kinds.setdefault(kind, Comparison())):
                comparison.add(got, expected, mask_of(case))
    found = {kind: comparison.result(texts=False).cosine for kind, comparison in kinds.items()}
    judge(found.items(), options.quantization, floor)
    return together.result(texts=texts is not None)


def _everything(trace: ir.Model) -> LowerOptions:
    """Every slot that a trace can have."""
    return LowerOptions(
        sites=dict.fromkeys(slot_candidates(trace), FACTORS),
        bottlenecks=BottleneckOptions((_STYLE.form,), (_STYLE.activation,))
        if bottleneck_places(trace)
        else None,
        head=HeadOptions(("relu",)) if has_head(trace) else None,
    )


class _Runner:
    """A session of a lowered graph with the reference adapters in its banks."""

    def __init__(
        self,
        path: Path,
        slots: Slotted,
        dtype: str = "fp32",
        generation: Generation | None = None,
        *,
        integers: bool = False,
        even: bool = False,
        room: int | None = None,
    ) -> None:
        """``even``: sizes of a kind are alike. ``room``: of caches, if the graph has a number there."""
        self._session = open_session(path, threads=1, integers=integers)
        self._even, self._room = even, room
        self._dtype = dtypes.NUMPY[dtype]
        self.bank_dtype = next(
            (f.dtype for site in slots.sites for f in site.linear.factors.values() if f.dtype != "float"),
            next((s.slot.down.dtype for s in slots.bottlenecks.sites), "float")
            if slots.bottlenecks
            else "float",
        )
        self._generation = generation
        self.slots = slots

    def run(
        self, name: str, case: Case, only: _Runner | None = None, *, steps: bool = False
    ) -> dict[str, Array]:
        """A case; with ``only`` the adapters do what they can do there.

        ``steps``: a graph with caches takes half of each row at once, and the rest token by token.
        """
        feeds: dict[str, Array] = {}
        ids = case.adapters
        if self._even:
            ids = np.broadcast_to(ids, len(next(iter(case.inputs.values()))))
        if self.slots:
            feeds |= self._banks(name, only or self)
            if self.slots.rows == "bank":
                feeds[ADAPTER_IDS] = ids
            else:
                feeds = {key: bank[ids] for key, bank in feeds.items()}
        if self._generation is None:
            return self._called(feeds | dict(case.inputs))
        lengths = case.inputs["attention_mask"].sum(axis=1)
        return {
            "logits": run_cached(
                lambda more: self._called(feeds | more),
                self._generation,
                self._dtype,
                case.inputs["input_ids"],
                lengths,
                -(-lengths // 2) if steps else lengths,
                self._room,
            )
        }

    def _called(self, feeds: dict[str, Array]) -> dict[str, Array]:
        names = [output.name for output in self._session.get_outputs()]
        try:
            if self.bank_dtype == "bf16":
                values = {name: ort_value(array) for name, array in feeds.items()}
                found = self._session.run_with_ort_values(names, values)
                return {name: value.numpy() for name, value in zip(names, found, strict=True)}
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:
            raise BuildError(
                "the exported graph does not run",
                Problem(
                    Code.EXPORT_FAILED,
                    "ONNX Runtime",
                    got=str(error).strip(),
                    expected="a batch of the reference to run",
                    cause="an op that torch exported for the sample's sizes only",
                    mend="report the model: this is a fault of adexport",
                ),
            ) from error

    def factors(self) -> dict[str, frozenset[str]]:
        """The factors of the linear slots, and of the bottlenecks that can be the reference's."""
        found = {site.path: frozenset(site.linear.factors) for site in self.slots.sites}
        found[_GUARDS] = frozenset(Guards.model_fields)
        bottlenecks = self.slots.bottlenecks
        if bottlenecks is not None and bottlenecks.code(_STYLE) is not None:
            for site in bottlenecks.sites:
                found[site.path] = found.get(site.path, frozenset()) | site.slot.factors.keys()
        return found

    def _banks(self, name: str, only: _Runner) -> dict[str, Array]:
        allowed = only.factors()
        banks = {}
        for path, factors, rows in self._filled(name):
            for factor, slot in factors.items():
                kept = [row.get(factor) if factor in allowed.get(path, ()) else None for row in rows]
                if only.bank_dtype != "float":  # what is compared is arithmetic, not the rounding
                    narrow = dtypes.NUMPY[only.bank_dtype]
                    kept = [
                        row if row is None or slot.dtype == "int64" else row.astype(narrow) for row in kept
                    ]
                banks[slot.name] = self._bank(slot, kept)
        return self._evened(banks) if self._even else banks

    def _evened(self, banks: dict[str, Array]) -> dict[str, Array]:
        """Every ragged size as large as the largest of its kind."""
        shapes = {slot.name: slot.shape for _, slots, _ in self._filled("") for slot in slots.values()}
        largest: dict[str, int] = {}
        for name, bank in banks.items():
            for symbol, size in zip(shapes[name], bank.shape, strict=True):
                if isinstance(symbol, str):
                    largest[kind_of(symbol)] = max(size, largest.get(kind_of(symbol), 0))

        def lacking(symbol: str | int, size: int) -> tuple[int, int]:
            return (0, largest[kind_of(symbol)] - size if isinstance(symbol, str) else 0)

        return {
            name: np.pad(bank, [lacking(*pair) for pair in zip(shapes[name], bank.shape, strict=True)])
            for name, bank in banks.items()
        }

    def _filled(self, name: str) -> Iterator[tuple[str, Mapping[str, SlotInput], list[dict[str, Array]]]]:
        """Every slot with what the reference adapters bring there."""
        indices = range(1, len(RANKS) + 1)
        for site in self.slots.sites:
            sizes = (site.in_features, site.out_features)
            rows = [reference_factors(index, site.path, *sizes, name) for index in indices]
            yield site.path, site.linear.factors, rows
        bottlenecks = self.slots.bottlenecks
        for end in bottlenecks.sites if bottlenecks else ():
            rows = [reference_bottleneck(index, end.path, end.features, name) for index in indices]
            code = bottlenecks.code(_STYLE) if bottlenecks else None
            for row in rows:
                if row and code is not None:
                    row["code"] = np.array(code, np.int64)
            yield end.path, end.slot.factors, rows
        if self.slots.head is not None:
            yield "", self.slots.head.slot.factors, [{} for _ in indices]
        if self.slots.guards is not None:
            yield (
                _GUARDS,
                self.slots.guards.factors,
                [dict.fromkeys(Guards.model_fields, _YES)] * len(RANKS),
            )

    def _bank(self, slot: SlotInput, rows: list[Array | None]) -> Array:
        """One slot input, row 0 the identity; a ragged size is as large as the rows need."""
        there = [row.shape for row in rows if row is not None]
        shape = [
            size if isinstance(size, int) else max((sizes[axis] for sizes in there), default=0)
            for axis, size in enumerate(slot.shape[1:])
        ]
        dtype = self._dtype if slot.dtype == "float" else dtypes.NUMPY[slot.dtype]
        bank = np.full([len(rows) + 1, *shape], slot.identity == "ones", dtype)
        for index, row in enumerate(rows, start=1):
            if row is not None:
                bank[index, ...][tuple(slice(size) for size in row.shape)] = row
        return bank


def _runner(
    model: Path,
    trace: ir.Model,
    options: LowerOptions,
    scratch: Path,
    generation: Generation | None,
    target: str,
) -> _Runner:
    lowered: Lowered = lower(trace, replace(options, quantization=None), target)
    if options.quantization is not None:
        model = _written(lowered.graph, scratch / "float.onnx")
    dtype = options.dtype
    if dtype == "bf16" or (dtype == "fp16" and target != ONNXRUNTIME):
        widen_to_float32(lowered.graph, dtype)
        model, dtype = _written(lowered.graph, scratch / "widened.onnx"), "fp32"
    even = target != ONNXRUNTIME
    return _Runner(model, lowered.slots, dtype, generation, even=even, room=options.in_place)


def _written(graph: ir.Model, path: Path) -> Path:
    # the copy lies in a folder of its own, so it takes its weights along
    ir.save(graph, path, external_data=f"{path.name}.weights")
    return path


def _check_onnx(model: Path) -> None:
    try:
        onnx.checker.check_model(str(model))
    except onnx.checker.ValidationError as error:
        raise BuildError(
            "the exported graph is invalid",
            Problem(
                Code.EXPORT_FAILED,
                model.name,
                got=str(error).strip().splitlines()[0],
                expected="a graph that the ONNX checker takes",
                mend="report the model: this is a fault of adexport",
            ),
        ) from error


def _difference(case: Case, got: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest difference over all outputs, relative to the largest value (at least 1).

    What stands at padding is nobody's output: a window may leave it with nothing to attend to.
    """
    mask = case.inputs.get("attention_mask")

    def kept(value: Array) -> Array:
        return value[mask.astype(bool)] if value.ndim == 3 and mask is not None else value

    return max(
        float(np.abs(kept(got[name]) - kept(value)).max() / max(1.0, float(np.abs(kept(value)).max())))
        for name, value in expected.items()
        if value.size  # logits of a base without a head
    )


def _judge(differences: Mapping[str, float], limit: float, what: str) -> None:
    problems = [
        Problem(
            Code.PARITY,
            name,
            got=f"a difference of {difference:.2e}",
            expected=f"at most {limit:.0e}",
            cause=f"the lowering computes something else ({what})",
            mend="report the model; --tolerance accepts a larger difference",
        )
        for name, difference in differences.items()
        if not difference <= limit  # also when it is NaN
    ]
    if problems:
        raise BuildError("the export differs from the model", problems)
