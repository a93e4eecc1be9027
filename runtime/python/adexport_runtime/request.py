"""Checking what a call brings before any of it reaches the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral
from typing import Any

import numpy as np

from . import dtypes
from .errors import Code, Problem, RequestError
from .manifest import Input, Manifest
from .tensors import Array

Adapters = str | None | Sequence[str | None]


def check_inputs(inputs: Mapping[str, Any], manifest: Manifest) -> dict[str, Array]:
    """Turn a call's inputs into arrays of the manifest's dtypes and shapes.

    Inputs that may be left out are filled in. Nothing is ever cut, padded or wrapped.

    Raises:
        RequestError: naming every input that is unknown, absent, of a wrong shape or dtype, or
            holds values out of range.
    """
    declared = {spec.name: spec for spec in manifest.inputs}
    problems = [
        Problem(Code.BAD_INPUT, name, got="an unknown input", expected=", ".join(declared))
        for name in inputs
        if name not in declared
    ]
    arrays: dict[str, Array] = {}
    for name, spec in declared.items():
        if name in inputs:
            array, found = _to_array(spec, inputs[name])
            problems += found
            if array is not None:
                arrays[name] = array  # in the caller's dtype, so that no value wraps unseen
        elif spec.fill is None:
            problems.append(Problem(Code.BAD_INPUT, name, got="nothing", expected=_wanted(spec)))
    sizes: dict[str, tuple[int, str]] = {}
    for name, array in arrays.items():
        problems += _check_shape(declared[name], array, sizes)
    if not problems:
        problems += _check_tokens(arrays, manifest)
    if problems:
        raise RequestError("the inputs do not fit", problems)
    ready: dict[str, Array] = {}
    for name, spec in declared.items():
        dtype = dtypes.NUMPY[spec.dtype]
        if name in arrays:
            ready[name] = np.ascontiguousarray(arrays[name], dtype)
        else:
            shape = [sizes[d][0] if isinstance(d, str) else d for d in spec.shape]
            ready[name] = np.full(shape, spec.fill, dtype)
    return ready


def check_adapters(adapters: Adapters, batch: int, manifest: Manifest) -> list[str | None]:
    """One adapter (or None, the base) for each row.

    Raises:
        RequestError: their number is not the batch's, or the bundle has no slots.
    """
    given: Any = adapters  # whatever a caller without a type checker passes
    if type(given) in (list, tuple) and len(given) == batch and manifest.slots:
        for row in given:
            if row is not None and type(row) is not str:
                break
        else:  # what nearly every call brings
            return list(given)
    if given is None or isinstance(given, str):
        rows: list[Any] = [given] * batch
        wrong = None
    elif isinstance(given, Sequence | np.ndarray) and not isinstance(given, bytes):
        rows = list(given)
        strange = [row for row in rows if row is not None and not isinstance(row, str)]
        wrong = repr(strange[0]) if strange else None
    else:  # a set has no order, a number no rows
        rows, wrong = [], repr(given)
    if len(rows) != batch or wrong is not None:
        raise RequestError(
            "the adapters do not fit",
            Problem(
                Code.BAD_INPUT,
                "adapters",
                got=f"{len(rows)} for {batch} rows" if wrong is None else wrong,
                expected=f"one name (or None, the base) for all rows, or {batch} of them",
            ),
        )
    if not manifest.slots and any(row is not None for row in rows):
        raise RequestError(
            "the adapters do not fit",
            Problem(
                Code.BAD_INPUT,
                "adapters",
                got="an adapter for a bundle without slots",
                mend="adexport build BUNDLE --slots lora",
            ),
        )
    return rows


def check_prompts(prompts: Any) -> list[Any]:
    """One prompt for each row; a text alone is one.

    Raises:
        RequestError: what is given has no rows in an order.
    """
    if isinstance(prompts, str):
        return [prompts]
    unordered = isinstance(prompts, Mapping | Set | bytes | bytearray | memoryview)
    if (
        unordered
        or not isinstance(prompts, Iterable)
        or (isinstance(prompts, np.ndarray) and not prompts.ndim)
    ):
        raise RequestError(
            "the prompts do not fit",
            Problem(
                Code.BAD_INPUT,
                "prompts",
                got=repr(prompts)[:80],
                expected="a list of prompts, each a text, token ids, or a list of chat messages",
            ),
        )
    return list(prompts)


def prompt_lengths(mask: Array) -> Array:
    """The tokens of each row, int64 ``[batch]``, from a padding mask ``[batch, seq]``.

    Raises:
        RequestError: a row is not padded on the right: a cache has no holes.
    """
    lengths = mask.sum(axis=1)
    ragged = np.arange(mask.shape[1])[None, :] < lengths[:, None]
    wrong = np.flatnonzero((mask.astype(bool) != ragged).any(axis=1))
    if wrong.size:
        raise RequestError(
            "the inputs do not fit",
            Problem(
                Code.BAD_INPUT,
                "attention_mask",
                got=f"padding before tokens in row {', '.join(str(row) for row in wrong)}",
                expected="padding behind the tokens",
                mend="pad on the right",
            ),
        )
    return np.asarray(lengths, np.int64)


def check_size(name: str, value: Any, limit: int | None = None) -> int:
    """A size of a batch or a session.

    Raises:
        RequestError: no whole number from 1 to ``limit``.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < 1 or (limit is not None and value > limit):
        raise RequestError(
            f"{name} does not fit",
            Problem(
                Code.BAD_INPUT,
                name,
                got=repr(value),
                expected="a whole number, at least 1" + ("" if limit is None else f" and at most {limit}"),
            ),
        )
    return int(value)


def _wanted(spec: Input) -> str:
    return f"{spec.dtype} [{', '.join(str(size) for size in spec.shape)}]"


def _to_array(spec: Input, value: Any) -> tuple[Array | None, list[Problem]]:
    dtype = dtypes.NUMPY[spec.dtype]
    try:
        array = np.asarray(value)
    except ValueError as error:
        return None, [
            Problem(
                Code.BAD_INPUT,
                spec.name,
                got=f"no rectangular array ({error})",
                expected=_wanted(spec),
                mend="pad the rows to one length",
            )
        ]
    kinds = "iub" if dtype.kind == "i" else "iuf"
    if array.dtype.kind not in kinds and array.dtype != dtype:
        return None, [Problem(Code.BAD_INPUT, spec.name, got=str(array.dtype), expected=_wanted(spec))]
    return array, []


def _check_shape(spec: Input, array: Array, sizes: dict[str, tuple[int, str]]) -> list[Problem]:
    got = f"shape {list(array.shape)}"
    if array.ndim != len(spec.shape) or 0 in array.shape:
        return [Problem(Code.BAD_INPUT, spec.name, got=got, expected=_wanted(spec))]
    problems = []
    for declared, size in zip(spec.shape, array.shape, strict=True):
        if isinstance(declared, int):
            expected, because = declared, ""
        else:
            expected, because = sizes.setdefault(declared, (size, spec.name))
        if size != expected:
            like = f" as {because} has" if because else ""
            problems.append(
                Problem(Code.BAD_INPUT, spec.name, got=got, expected=f"{declared} = {expected}{like}")
            )
    low, high = array.min(), array.max()
    lowest, highest = value_range(spec)
    if low < lowest or high > highest:
        problems.append(
            Problem(
                Code.BAD_INPUT,
                spec.name,
                got=f"values from {low} to {high}",
                expected=f"values from {lowest} to {highest}",
                cause="ids of another tokenizer" if spec.name == "input_ids" else "",
            )
        )
    return problems


def value_range(spec: Input) -> tuple[float, float]:
    """The least and the greatest value of an input: the declared ones, else its dtype's."""
    dtype = dtypes.NUMPY[spec.dtype]
    whole = np.iinfo(dtype) if dtype.kind == "i" else None
    low = spec.low if spec.low is not None else (int(whole.min) if whole else -np.inf)
    high = spec.high if spec.high is not None else (int(whole.max) if whole else np.inf)
    return low, high


def _check_tokens(arrays: Mapping[str, Array], manifest: Manifest) -> list[Problem]:
    problems = []
    ids, mask = arrays.get("input_ids"), arrays.get("attention_mask")
    limit = manifest.base.max_positions
    if ids is not None and limit is not None and ids.shape[1] > limit:
        problems.append(
            Problem(
                Code.BAD_INPUT,
                "input_ids",
                got=f"{ids.shape[1]} tokens",
                expected=f"at most {limit}, the positions of {manifest.base.name}",
                mend="truncate the text",
            )
        )
    if mask is not None and not (rows := mask.any(axis=1)).all():
        empty = ", ".join(str(row) for row in np.flatnonzero(~rows))
        problems.append(
            Problem(
                Code.BAD_INPUT,
                "attention_mask",
                got=f"only zeros in row {empty}",
                expected="at least one token in every row",
            )
        )
    return problems
