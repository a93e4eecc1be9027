"""One layer's tensors in a PEFT file, and the checks that they fit each other and the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...errors import AdapterError, Code, Problem
from ...tensors import Array
from ..neutral import FrozenLinear, LinearWeights

_OTHER_CONFIG = {
    "cause": "adapter_config.json of another adapter",
    "mend": "put the config beside the file that it was saved with",
}


@dataclass
class Layer:
    """The tensors of one module under the names that the method gives them, as the file has them.

    ``names`` are those in the file. Tensors that all layers of a file share are there as well.
    """

    module: str
    names: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)

    def refusal(self, *problems: Problem) -> AdapterError:
        """An error that names the layer."""
        return AdapterError(f"{self.module} is refused", problems)

    def need(self, *parts: str) -> None:
        """Demand tensors of the layer.

        Raises:
            AdapterError: some are missing.
        """
        if all(part in self.tensors for part in parts):
            return
        there = [_short(part) for part in self.tensors]
        raise self.refusal(
            Problem(
                Code.HALF_MISSING,
                self.module,
                got=(", ".join(there) + " only") if there else "no tensors",
                expected=" and ".join(_short(part) for part in parts),
                cause="a partial save",
                mend="save the adapter again",
            )
        )

    def unexpected(self, part: str, cause: str) -> Problem:
        """A tensor of the layer that the config leaves no room for."""
        return Problem(
            Code.UNKNOWN_TENSOR,
            self.names[part],
            got=f"shape {list(self.tensors[part].shape)}",
            cause=cause,
            mend=_OTHER_CONFIG["mend"],
        )

    def sizes(
        self,
        shapes: Mapping[str, tuple[str, ...]],
        integers: tuple[str, ...] = (),
        zero: tuple[str, ...] = (),
    ) -> dict[str, int]:
        """The sizes of a layer's tensors by the letters of their shapes; one letter is one size.

        Args:
            shapes: the letters of every tensor; all of them are there.
            integers: tensors of an integer type; the others are of a float type.
            zero: letters of sizes that can be 0.

        Raises:
            AdapterError: naming every tensor of another shape or type.
        """
        problems: list[Problem] = []
        found: dict[str, tuple[str, int]] = {}
        for part, letters in shapes.items():
            tensor, name = self.tensors[part], self.names[part]
            kinds = "iu" if part in integers else "fV"
            if tensor.dtype.kind not in kinds:
                wanted = "an integer type" if part in integers else "a float type"
                problems.append(Problem(Code.WRONG_DTYPE, name, got=str(tensor.dtype), expected=wanted))
            if tensor.ndim != len(letters):
                problems.append(
                    Problem(
                        Code.WRONG_SHAPE,
                        name,
                        got=f"shape {list(tensor.shape)}",
                        expected=f"[{', '.join(letters)}]",
                    )
                )
                continue
            if any(
                size == 0 for letter, size in zip(letters, tensor.shape, strict=True) if letter not in zero
            ):
                got = f"shape {list(tensor.shape)}"
                problems.append(Problem(Code.EMPTY_TENSOR, name, got=got, expected="at least one element"))
            for letter, size in zip(letters, tensor.shape, strict=True):
                first, known = found.setdefault(letter, (part, size))
                if known != size:
                    problems.append(self._disagree(letter, (first, known), (part, size)))
        if problems:
            raise self.refusal(*problems)
        return {letter: size for letter, (_, size) in found.items()}

    def _disagree(self, letter: str, one: tuple[str, int], other: tuple[str, int]) -> Problem:
        got = f"{letter} {one[1]} in {_short(one[0])} and {other[1]} in {_short(other[0])}"
        if letter == "rank":
            return Problem(Code.RANK_MISMATCH, self.module, got=got, expected="the same rank")
        names = f"{self.names[one[0]]} and {self.names[other[0]]}"
        return Problem(Code.WRONG_SHAPE, names, got=got, expected="the same size", cause="a damaged file")

    def expect(self, what: str, got: int, expected: int, code: Code = Code.RANK_MISMATCH) -> None:
        """Demand that the file and its config agree on a number.

        Raises:
            AdapterError: they do not.
        """
        if got != expected:
            raise self.refusal(
                Problem(
                    code,
                    self.module,
                    got=f"{what} {got} in the file",
                    expected=f"{what} {expected} as the config says",
                    **_OTHER_CONFIG,
                )
            )

    def values(self, part: str) -> Array:
        """A tensor in float64."""
        return self.tensors[part].astype(np.float64)

    def name(self, *parts: str) -> str:
        """What tensors are called in the file, as one text."""
        return ", ".join(self.names[part] for part in parts if part in self.names)

    def fits(
        self, base: FrozenLinear, part: str, *, into: int | None = None, out: int | None = None
    ) -> None:
        """Demand that a tensor was made for a layer of this size.

        Raises:
            AdapterError: it has other features than the frozen layer.
        """
        here = {"in": base.weight.shape[1], "out": base.weight.shape[0]}
        problems = [
            Problem(
                Code.WRONG_SHAPE,
                self.names[part],
                got=f"{size} {side} features",
                expected=str(here[side]),
                cause="trained on another base",
                mend="bind it to a bundle of its own base",
            )
            for side, size in (("in", into), ("out", out))
            if size is not None and size != here[side]
        ]
        if problems:
            raise self.refusal(*problems)

    def product(self, left: Array, right: Array, lefts: str, rights: str) -> LinearWeights:
        """The update ``left @ right`` of the weight, ``[out, rank]`` and ``[rank, in]``.

        Args:
            left: float64, with the scaling folded in.
            right: float64.
            lefts: what ``left`` was made from, in the file.
            rights: what ``right`` was made from.
        """
        return LinearWeights(
            factors={"lora_A": single(right.T), "lora_B": single(left.T)},
            names={"lora_A": rights, "lora_B": lefts},
        )


def single(values: Array) -> Array:
    """Float32; what overflows is infinite, and is refused as such."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _short(part: str) -> str:
    return part.removesuffix(".weight")
