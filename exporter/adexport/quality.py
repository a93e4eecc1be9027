"""How near a quantized graph comes to the float one: cosines and the first choice, text by text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from adexport_runtime.bundle import Bundle
from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.outputs import LOGITS
from adexport_runtime.quantization import Quantization
from adexport_runtime.tensors import Array
from adexport_runtime.text import TextEncoder

from .reference import BOTTLENECK_CASE, FACTORS_CASE, RANKS, Case

#: the mean cosine that a build must have, by method and bits
FLOORS = {("weight-only", 8): 0.999, ("weight-only", 4): 0.96, ("dynamic", 8): 0.98}

_MASK = "attention_mask"
#: of the texts of a batch: their logits are held twice
_ROWS = 4
#: logits of fewer labels have no direction of their own: near a tie it is noise
_FEW = 16


@dataclass(frozen=True)
class Quality:
    """The mean cosine of outputs with the float ones, the smallest, and how often the first choice agrees.

    ``top1`` is the part of the positions (or rows) with logits where the largest is the same; None
    without logits. ``compared`` counts the outputs, ``texts`` says whether real texts were run.
    """

    cosine: float
    smallest: float
    top1: float | None
    compared: int
    texts: bool

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


class Comparison:
    """Gathers outputs of both sides."""

    def __init__(self) -> None:
        """Nothing was compared yet."""
        self._sum = 0.0
        self._cosines = 0
        self._smallest = 1.0
        self._same = 0
        self._choices = 0
        self._compared = 0

    def add(self, got: Mapping[str, Array], expected: Mapping[str, Array], mask: Array | None) -> None:
        """Compare a batch: outputs ``[batch, features]`` or ``[batch, seq, features]``.

        Each position (or row) is one vector. Logits are compared around their mean, as a softmax sees
        them; those of a few labels all together. ``mask`` is ``[batch, seq]``: what stands at padding is
        nobody's output.
        """
        for name, value in expected.items():
            if not value.size:  # logits of a base without a head
                continue
            pair = [_vectors(side[name], mask) for side in (got, expected)]
            self._compared += len(pair[0])
            if name == LOGITS and value.shape[-1] > 1:
                first = [side.argmax(axis=-1) for side in pair]
                self._same += int((first[0] == first[1]).sum())
                self._choices += len(first[0])
            cosines = _cosines(*(_directions(name, side) for side in pair))
            self._sum += float(cosines.sum())
            self._cosines += len(cosines)
            self._smallest = min(self._smallest, float(np.nan_to_num(cosines, nan=-1.0).min()))

    def result(self, *, texts: bool) -> Quality:
        """What was found."""
        top1 = self._same / self._choices if self._choices else None
        mean = self._sum / self._cosines if self._cosines else 1.0
        # a NaN is no near miss
        return Quality(-1.0 if np.isnan(mean) else mean, self._smallest, top1, self._compared, texts)


def _vectors(values: Array, mask: Array | None) -> Array:
    """``[n, features]``, in float64, where the mask has tokens."""
    if values.ndim == 3 and mask is not None:
        values = values[mask.astype(bool)]
    return values.reshape(-1, values.shape[-1]).astype(np.float64)


def _directions(name: str, vectors: Array) -> Array:
    if name != LOGITS:
        return vectors
    if vectors.shape[1] < _FEW:
        return vectors.reshape(1, -1)
    centred: Array = vectors - vectors.mean(axis=1, keepdims=True)
    return centred


def _cosines(left: Array, right: Array) -> Array:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both = (left * right).sum(axis=1)
    equal = (left == right).all(axis=1)  # two zeros have no angle
    return np.where(equal, 1.0, both / np.where(lengths == 0, 1.0, lengths))


def sentences() -> list[str]:
    """The texts that come with adexport."""
    return (files(__package__) / "sentences.txt").read_text(encoding="utf-8").splitlines()


def text_cases(bundle: Bundle, references: Mapping[str, Case]) -> list[tuple[str, Case]] | None:
    """Real texts in small batches, each with the reference adapters of one case; None without a tokenizer.

    The first round has the base in all rows; then adapters of every kind of the reference, and the base
    beside them.
    """
    if bundle.manifest.tokenizer is None:
        return None
    encode, texts = TextEncoder(bundle), sentences()
    found = []
    for name in ("base", "mixed", FACTORS_CASE, BOTTLENECK_CASE):
        if name not in references:
            continue
        # all texts without adapters, and with the kind that is always there; a few for the others
        chosen = texts if name in ("base", "mixed") else texts[: 2 * _ROWS]
        for start in range(0, len(chosen), _ROWS):
            inputs = encode(chosen[start : start + _ROWS])
            rows = len(inputs["input_ids"])
            picked = [0 if name == "base" else (start + row) % (len(RANKS) + 1) for row in range(rows)]
            found.append((name, Case(inputs, np.array(picked, np.int64), {})))
    return found


def mask_of(case: Case) -> Array | None:
    """Where a case has tokens; None where its inputs have no length."""
    return case.inputs.get(_MASK)


def floor_of(quantization: Quantization, asked: float | None) -> float:
    """The mean cosine that must be."""
    return FLOORS[quantization.method, quantization.bits] if asked is None else asked


def judge(found: Iterable[tuple[str, float]], quantization: Quantization, floor: float) -> None:
    """Refuse what is under the floor.

    Raises:
        BuildError: naming every culprit.
    """
    problems = [
        Problem(
            Code.PARITY,
            name,
            got=f"a mean cosine of {cosine:.6f}",
            expected=f"at least {floor:g}",
            cause=f"{quantization.words} changes what this base computes by too much",
            mend=_mend(quantization),
        )
        for name, cosine in found
        if not cosine >= floor
    ]
    if problems:
        raise BuildError("the quantized base is too far from the float one", problems)


def _mend(quantization: Quantization) -> str:
    if quantization.bits == 4:
        better = "give --quantize int8"
    elif quantization.method == "dynamic":
        better = "give --quantize-method weight-only"
    else:
        better = "leave parts out with --quantize-also none, or give --quantize none"
    return f"{better}; --min-cosine accepts less"
