"""What the float model computes on a few small batches, kept in the bundle.

With it every later lowering, on any machine, is checked against torch without torch. The
reference adapters are made from a seed, so only inputs and outputs are stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adexport_runtime.manifest import Input
from adexport_runtime.tensors import Array, read_tensors, write_tensors

#: rank of each reference adapter; adapter k stands in row k of a bank, row 0 is the base
RANKS = (3, 8)

#: case -> (row lengths, the adapter of each row)
_CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "base": ((9, 5, 7), (0, 0, 0)),
    "mixed": ((9, 3, 7, 1, 9), (1, 0, 2, 2, 0)),
    "one_row": ((6,), (1,)),
    "one_token": ((1, 1), (2, 0)),
}

#: standard deviations that make an adapter's effect plain and keep the model's values ordinary
_STD_A, _STD_B = 1.0, 0.02


@dataclass(frozen=True)
class Case:
    """One batch: its inputs, the reference adapter of each row, and what torch computed."""

    inputs: Mapping[str, Array]
    adapters: Array
    outputs: Mapping[str, Array]


def sample_batches(inputs: Sequence[Input], max_positions: int | None) -> dict[str, Case]:
    """The reference batches, without outputs: ragged and mixed rows, one row, one token."""
    cases = {}
    for name, (lengths, adapters) in _CASES.items():
        cut = [min(length, max_positions or length) for length in lengths]
        arrays = {spec.name: _values(spec, f"{name}.{spec.name}", cut) for spec in inputs}
        cases[name] = Case(arrays, np.array(adapters, np.int64), {})
    return cases


def reference_adapter(index: int, sites: Mapping[str, tuple[int, int]]) -> dict[str, tuple[Array, Array]]:
    """Reference adapter ``index`` (from 1): A ``[in, r]`` and B ``[r, out]`` of every ``(in, out)``."""
    rank = RANKS[index - 1]
    return {
        path: (
            _uniform(f"{index}.{path}.A", (into, rank), _STD_A / np.sqrt(into)),
            _uniform(f"{index}.{path}.B", (rank, out), _STD_B),
        )
        for path, (into, out) in sites.items()
    }


def save_reference(path: Path, cases: Mapping[str, Case]) -> None:
    """Write the cases to a safetensors file."""
    tensors: dict[str, Array] = {}
    for name, case in cases.items():
        tensors |= {f"{name}.input.{key}": value for key, value in case.inputs.items()}
        tensors |= {f"{name}.output.{key}": value for key, value in case.outputs.items()}
        tensors[f"{name}.adapters"] = case.adapters
    write_tensors(path, tensors, {"format": "adexport-reference", "format_version": "1"})


def load_reference(path: Path) -> dict[str, Case]:
    """Read what :func:`save_reference` wrote."""
    tensors = read_tensors(path).tensors

    def part(name: str, kind: str) -> dict[str, Array]:
        start = f"{name}.{kind}."
        return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}

    names = [key.removesuffix(".adapters") for key in tensors if key.endswith(".adapters")]
    return {
        name: Case(part(name, "input"), tensors[f"{name}.adapters"], part(name, "output")) for name in names
    }


def _raw(key: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Random bits of a key: the bit generator's stream, which numpy keeps the same for ever."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.asarray(np.random.PCG64(seed).random_raw(count), np.uint64)


def _uniform(key: str, shape: tuple[int, ...], std: float) -> Array:
    unit = _raw(key, int(np.prod(shape))).astype(np.float64) / 2.0**64
    values: Array = (2 * unit - 1) * np.sqrt(3) * std
    return values.astype(np.float32).reshape(shape)


def _values(spec: Input, key: str, lengths: Sequence[int]) -> Array:
    longest = max(lengths)
    inside = np.arange(longest)[None, :] < np.array(lengths)[:, None]
    if spec.name == "attention_mask":
        return inside.astype(np.int64)
    low, high = spec.low or 0, spec.high or 0
    span = np.uint64(high - low + 1)
    drawn = (_raw(key, inside.size) % span).astype(np.int64).reshape(inside.shape) + low
    return np.where(inside, drawn, low)
