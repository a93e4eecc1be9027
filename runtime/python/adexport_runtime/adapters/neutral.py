"""What every foreign checkpoint becomes before it meets a bundle.

Matrices lie ``[in, out]`` and everything is float32, with scalings folded in, under the names that the
factors have in :mod:`adexport_runtime.slots`. ``names`` tells which tensor of the file a factor came
from, for messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Problem
from ..slots import BottleneckStyle, HeadStyle, Location
from ..tensors import Array


@dataclass(frozen=True)
class FrozenLinear:
    """A linear layer of the base: ``weight`` ``[out, in]`` float32, ``bias`` ``[out]`` or None.

    ``transposed`` says that the checkpoint stores the weight ``[in, out]``.
    """

    weight: Array
    bias: Array | None
    transposed: bool = False


@dataclass(frozen=True)
class LinearWeights:
    """An update of one linear layer, as factors of a linear slot.

    ``lora_A`` ``[in, rank]`` and ``lora_B`` ``[rank, out]`` together or not at all; ``bias``
    ``[out]``, ``scale_in`` ``[in]``, ``scale_out`` ``[out]``.
    """

    factors: Mapping[str, Array]
    names: Mapping[str, str]

    @property
    def kinds(self) -> frozenset[str]:
        """The names of the factors."""
        return frozenset(self.factors)

    @property
    def rank(self) -> int:
        """Columns of ``lora_A``; 0 without one."""
        return int(self.factors["lora_A"].shape[1]) if "lora_A" in self.factors else 0

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors of the file that the factors came from."""
        return tuple(dict.fromkeys(self.names.values()))

    def solve(self, base: Callable[[], FrozenLinear]) -> LinearWeights:
        """Itself: nothing depends on the base."""
        del base
        return self


@dataclass(frozen=True)
class LinearRecipe:
    """An update whose factors depend on the frozen layer (DoRA's norms, PiSSA's residual, …).

    ``kinds`` and ``rank`` are known without the base; ``kinds`` are all that it may bring (DoRA has no
    bias where the layer has none). ``finish`` computes the factors; what makes that impossible (a shape
    that does not fit the layer) it raises as an ``AdapterError``.
    """

    kinds: frozenset[str]
    rank: int
    tensors: tuple[str, ...]
    finish: Callable[[FrozenLinear], LinearWeights]

    def solve(self, base: Callable[[], FrozenLinear]) -> LinearWeights:
        """The factors, with the frozen layer that ``base`` reads."""
        return self.finish(base())


LinearUpdate = LinearWeights | LinearRecipe


@dataclass(frozen=True)
class BottleneckWeights:
    """The factors of one bottleneck slot.

    ``down`` ``[features, width]``, ``down_bias`` ``[width]``, ``up`` ``[width, features]`` and ``up_bias``
    ``[features]`` with the scaling folded in; ``norm_before_weight``, ``norm_before_bias``,
    ``norm_after_weight`` and ``norm_after_bias`` ``[features]`` where the form has them.
    """

    factors: Mapping[str, Array]
    names: Mapping[str, str]

    @property
    def width(self) -> int:
        """Columns of ``down``."""
        return int(self.factors["down"].shape[1])


@dataclass(frozen=True)
class HeadWeights:
    """A prediction head: ``out`` ``[features, labels]`` for one layer, ``dense`` and ``deep`` for two.

    ``dense`` ``[features, mid]``, ``dense_bias`` ``[mid]``, ``deep`` ``[mid, labels]``, ``out_bias``
    ``[labels]``. The labels of the style are empty where the file has no names.
    """

    style: HeadStyle
    factors: Mapping[str, Array]
    names: Mapping[str, str]


@dataclass(frozen=True)
class ReplacedLinear:
    """A linear layer that was saved whole: ``weight`` ``[out, in]``, ``bias`` ``[out]`` or None."""

    weight: Array
    bias: Array | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class NeutralAdapter:
    """An adapter read from any library's files: weights by module path, and its origin.

    ``bottlenecks`` are by layer (from 0) and location, all of one ``style``. ``head`` is a whole head,
    ``replaced`` are layers that take the place of the base's. ``covers`` tells whether the adapter's
    config claims a module of the model, ``claims`` the same of a bottleneck and ``saves`` of a layer
    saved whole, so that a file with some of its tensors lost is noticed; None where the format does not
    say. ``modules`` are those that the file
    has any tensor of, sound or not. ``problems`` are the culprits found so far; ``bind`` adds its own
    and raises them together.
    """

    path: Path
    source_type: str
    sha256: str
    base_name: str | None
    linears: Mapping[str, LinearUpdate] = field(default_factory=dict)
    bottlenecks: Mapping[tuple[int, Location], BottleneckWeights] = field(default_factory=dict)
    style: BottleneckStyle | None = None
    head: HeadWeights | None = None
    replaced: Mapping[str, ReplacedLinear] = field(default_factory=dict)
    modules: frozenset[str] = frozenset()
    covers: Callable[[str], bool] | None = None
    claims: Callable[[int, Location], bool] | None = None
    saves: Callable[[str], bool] | None = None
    problems: tuple[Problem, ...] = ()
