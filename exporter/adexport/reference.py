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

#: rank (or width) of each reference adapter; adapter k stands in row k of a bank, row 0 is the base
RANKS = (3, 8)

#: cases whose adapters are of another kind than LoRA: all factors of a linear slot, and bottlenecks
FACTORS_CASE = "factors"
BOTTLENECK_CASE = "bottleneck"

#: case -> (row lengths, the adapter of each row)
_CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "base": ((9, 5, 7), (0, 0, 0)),
    "mixed": ((9, 3, 7, 1, 9), (1, 0, 2, 2, 0)),
    "one_row": ((6,), (1,)),
    "one_token": ((1, 1), (2, 0)),
    FACTORS_CASE: ((4, 8, 2), (1, 0, 2)),
    BOTTLENECK_CASE: ((8, 3, 5), (2, 1, 0)),
}

#: standard deviations that make an adapter's effect plain and keep the model's values ordinary
_STD_A, _STD_B = 1.0, 0.02


@dataclass(frozen=True)
class Case:
    """One batch: its inputs, the reference adapter of each row, and what torch computed."""

    inputs: Mapping[str, Array]
    adapters: Array
    outputs: Mapping[str, Array]


def sample_batches(
    inputs: Sequence[Input], max_positions: int | None, pad_id: int | None = None
) -> dict[str, Case]:
    """The reference batches, without outputs: ragged and mixed rows, one row, one token.

    ``pad_id`` stands at padding and nowhere else: some models find the end of a text by it.
    """
    cases = {}
    for name, (lengths, adapters) in _CASES.items():
        cut = [min(length, max_positions or length) for length in lengths]
        arrays = {spec.name: sample_values(spec, f"{name}.{spec.name}", cut, pad_id) for spec in inputs}
        cases[name] = Case(arrays, np.array(adapters, np.int64), {})
    return cases


def reference_factors(index: int, path: str, into: int, out: int, case: str) -> dict[str, Array]:
    """Reference adapter ``index`` (from 1) at a linear layer, in the kind of a case.

    ``lora_A`` ``[in, r]`` and ``lora_B`` ``[r, out]``; in the case of all factors ``bias``, ``scale_in``
    and ``scale_out`` too; nothing where the case is about bottlenecks.
    """
    if case == BOTTLENECK_CASE:
        return {}
    rank = RANKS[index - 1]
    factors = {
        "lora_A": _uniform(f"{index}.{path}.A", (into, rank), _STD_A / np.sqrt(into)),
        "lora_B": _uniform(f"{index}.{path}.B", (rank, out), _STD_B),
    }
    if case == FACTORS_CASE:
        factors["bias"] = _uniform(f"{index}.{path}.bias", (out,), _STD_B)
        for name, size in (("scale_in", into), ("scale_out", out)):
            factors[name] = 1 + _uniform(f"{index}.{path}.{name}", (size,), 0.1)
    return factors


def reference_bottleneck(index: int, path: str, features: int, case: str) -> dict[str, Array]:
    """Reference adapter ``index`` behind a layer: ``h + relu(h down + down_bias) up + up_bias``."""
    if case != BOTTLENECK_CASE:
        return {}
    width = RANKS[index - 1]
    return {
        "down": _uniform(f"{index}.{path}.down", (features, width), _STD_A / np.sqrt(features)),
        "down_bias": _uniform(f"{index}.{path}.down_bias", (width,), 0.1),
        "up": _uniform(f"{index}.{path}.up", (width, features), 0.1),
        "up_bias": _uniform(f"{index}.{path}.up_bias", (features,), _STD_B),
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


def sample_values(spec: Input, key: str, lengths: Sequence[int], pad_id: int | None) -> Array:
    """Values of one input for rows of some lengths, padded on the right; made from ``key``.

    ``pad_id`` stands at padding and nowhere else.
    """
    if spec.dtype == "fp32":
        return _uniform(key, (len(lengths), *(size for size in spec.shape if isinstance(size, int))), 1.0)
    longest = max(lengths)
    inside = np.arange(longest)[None, :] < np.array(lengths)[:, None]
    if spec.name == "attention_mask":
        return inside.astype(np.int64)
    low, high = spec.low or 0, spec.high or 0
    span = np.uint64(high - low + 1)
    drawn = (_raw(key, inside.size) % span).astype(np.int64).reshape(inside.shape) + low
    if spec.name != "input_ids" or pad_id is None:
        return np.where(inside, drawn, low)
    others = np.where(drawn == pad_id, low if pad_id != low else high, drawn)
    return np.where(inside, others, pad_id)
