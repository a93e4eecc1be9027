"""What every foreign checkpoint becomes before it meets a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import Problem
from ..tensors import Array


@dataclass(frozen=True)
class LinearWeights:
    """A low-rank update of one linear layer: ``y' = y + B(Ax)``, any scaling already in ``B``.

    ``lora_A`` is ``[in, rank]`` and ``lora_B`` ``[rank, out]``, both float32: the orientation in
    which a row-major ``x`` multiplies them. ``tensors`` names where they came from.
    """

    lora_A: Array
    lora_B: Array
    tensors: tuple[str, str]

    @property
    def rank(self) -> int:
        """Columns of ``lora_A``."""
        return int(self.lora_A.shape[1])


@dataclass(frozen=True)
class NeutralAdapter:
    """An adapter read from any library's files: weights by module path, and its origin.

    ``covers`` tells whether the adapter's config claims a module of the model, so that a file
    with some of its tensors lost is noticed; None where the format does not say.
    ``modules`` are those that the file has any tensor of, sound or not. ``problems`` are the culprits
    found so far; ``bind`` adds its own and raises them together.
    """

    path: Path
    source_type: str
    sha256: str
    base_name: str | None
    linears: Mapping[str, LinearWeights]
    modules: frozenset[str]
    covers: Callable[[str], bool] | None
    problems: tuple[Problem, ...]
