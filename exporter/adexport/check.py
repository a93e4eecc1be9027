"""A bundle proves itself before it appears: the checker, ONNX Runtime, and parity with torch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from adexport_runtime import dtypes
from adexport_runtime.backends.onnxruntime import open_session
from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.manifest import Site
from adexport_runtime.tensors import Array

from .lower import ADAPTER_IDS, Lowered, LowerOptions, lower, slot_candidates
from .lower.precision import widen_to_float32
from .options import TOLERANCE
from .reference import RANKS, Case, reference_adapter


def check_model(
    model: Path, trace: ir.Model, options: LowerOptions, cases: Mapping[str, Case], tolerance: float
) -> dict[str, float]:
    """Check a written ``model.onnx`` against the trace's reference.

    The trace is lowered once more with a slot at every linear layer, in float32, and compared
    with torch; then the model is compared with that, with the reference adapters cut to its
    sites. bfloat16, for which ONNX Runtime has no CPU kernels, is run in float32 on the rounded
    weights.

    Returns:
        The largest relative difference seen in each comparison.

    Raises:
        BuildError: the graph is invalid, does not load, or differs.
    """
    _check_onnx(model)
    with tempfile.TemporaryDirectory(prefix=".check.", dir=model.parent) as scratch:
        everything = lower(trace, LowerOptions(slot_candidates(trace)))
        full = _Runner(_written(everything.graph, Path(scratch) / "full.onnx"), everything.sites)
        differences = {
            f"torch {name}": _difference(case, full.run(case), case.outputs) for name, case in cases.items()
        }
        _judge(differences, tolerance, "float32 with slots everywhere")
        mine = _runner(model, trace, options, Path(scratch))
        cut = {site.path for site in mine.sites}
        limit = max(tolerance, TOLERANCE[options.dtype])
        found = {}
        for name, case in cases.items():
            expected = full.run(case, only=cut)
            found[f"{options.dtype} {name}"] = _difference(case, mine.run(case), expected)
        _judge(found, limit, f"{options.dtype} with the chosen slots")
    return differences | found


class _Runner:
    """A session of a lowered graph with the reference adapters in its banks."""

    def __init__(self, path: Path, sites: tuple[Site, ...], dtype: str = "fp32") -> None:
        self._session = open_session(path, threads=1)
        self._dtype = dtypes.NUMPY[dtype]
        self.sites = sites

    def run(self, case: Case, only: set[str] | None = None) -> dict[str, Array]:
        feeds = dict(case.inputs)
        if self.sites:
            feeds |= self._banks(only)
            feeds[ADAPTER_IDS] = case.adapters
        names = [output.name for output in self._session.get_outputs()]
        try:
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

    def _banks(self, only: set[str] | None) -> dict[str, Array]:
        features = {site.path: (site.in_features, site.out_features) for site in self.sites}
        adapters = [reference_adapter(index, features) for index in range(1, len(RANKS) + 1)]
        banks = {}
        for site in self.sites:
            a = np.zeros((len(adapters) + 1, site.in_features, max(RANKS)), self._dtype)
            b = np.zeros((len(adapters) + 1, max(RANKS), site.out_features), self._dtype)
            if only is None or site.path in only:
                for row, adapter in enumerate(adapters, start=1):
                    half_a, half_b = adapter[site.path]
                    a[row, :, : half_a.shape[1]] = half_a
                    b[row, : half_b.shape[0]] = half_b
            banks[site.linear.lora_A.name] = a
            banks[site.linear.lora_B.name] = b
        return banks


def _runner(model: Path, trace: ir.Model, options: LowerOptions, scratch: Path) -> _Runner:
    lowered: Lowered = lower(trace, options)
    if options.dtype != "bf16":
        return _Runner(model, lowered.sites, options.dtype)
    widen_to_float32(lowered.graph, options.dtype)
    return _Runner(_written(lowered.graph, scratch / "widened.onnx"), lowered.sites)


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
    tokens = case.inputs["attention_mask"].astype(bool)

    def kept(value: Array) -> Array:
        return value[tokens] if value.ndim == 3 else value

    return max(
        float(np.abs(kept(got[name]) - kept(value)).max() / max(1.0, float(np.abs(kept(value)).max())))
        for name, value in expected.items()
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
