"""Checking inputs as every run does: at little cost where they fit as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from . import dtypes
from .manifest import Manifest
from .request import check_inputs, value_range
from .tensors import Array


class _Spec(NamedTuple):
    """What a declared input must be, as far as numpy tells it in few calls."""

    name: str
    dtype: np.dtype[Any]
    axes: tuple[str | int, ...]
    fill: float | None
    #: the dtype without a sign, in which what is below 0 is large; None: any value will do
    unsigned: np.dtype[Any] | None
    high: float


class InputChecker:
    """:func:`~adexport_runtime.request.check_inputs` of one manifest.

    Between two runs of a model little of Python is left in a CPU's caches, so each call of numpy counts.
    Arrays of the declared dtypes and shapes are looked at once; anything else is left to ``check_inputs``,
    which alone converts and refuses.
    """

    def __init__(self, manifest: Manifest) -> None:
        """Prepare for the inputs that a manifest declares."""
        self._manifest = manifest
        self._limit = manifest.base.max_positions
        self._specs: list[_Spec] | None = []
        for spec in manifest.inputs:
            dtype = dtypes.NUMPY[spec.dtype]
            low, high = value_range(spec)
            whole = dtype.kind == "i" and low == 0
            if not whole and (low, high) != (-np.inf, np.inf):
                self._specs = None  # a range that takes two looks; no exporter has written one
                break
            unsigned = np.dtype(f"u{dtype.itemsize}") if whole else None
            self._specs.append(_Spec(spec.name, dtype, spec.shape, spec.fill, unsigned, high))

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """See :func:`~adexport_runtime.request.check_inputs`."""
        return self._as_they_are(inputs) or check_inputs(inputs, self._manifest)

    def _as_they_are(self, inputs: Mapping[str, Any]) -> dict[str, Array] | None:
        """The inputs, if all fit and none needs a copy."""
        if self._specs is None or type(inputs) is not dict:
            return None
        arrays: dict[str, Array] = {}
        sizes: dict[str, int] = {}
        left_out = []
        for spec in self._specs:
            name, dtype, axes, fill, unsigned, high = spec
            array = inputs.get(name)
            if array is None and fill is not None:
                left_out.append(spec)
                continue
            if (
                type(array) is not np.ndarray
                or array.dtype != dtype
                or array.ndim != len(axes)
                or not array.flags.c_contiguous
            ):
                return None
            for axis, size in zip(axes, array.shape, strict=True):
                if size == 0 or size != (axis if type(axis) is int else sizes.setdefault(str(axis), size)):
                    return None
            if unsigned is not None and np.maximum.reduce(array.view(unsigned), axis=None) > high:
                return None
            # where every row begins with a token, none is empty
            if name == "attention_mask" and np.minimum.reduce(array[:, 0], axis=None) <= 0:
                return None
            if name == "input_ids" and self._limit is not None and array.shape[1] > self._limit:
                return None
            arrays[name] = array
        if len(arrays) != len(inputs):
            return None
        for name, dtype, axes, fill, _, _ in left_out:
            arrays[name] = np.full(
                [axis if isinstance(axis, int) else sizes[axis] for axis in axes], fill, dtype
            )
        return arrays
