"""Bottleneck adapters of AdapterHub: tensors to the factors of bottleneck slots.

The layers are those of ``adapters.methods.modeling.Adapter``: ``adapter_down`` (behind the norm, if there
is one before it), ``adapter_up``, ``scaling``, ``adapter_norm_before`` and ``adapter_norm_after``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import Code, Problem
from ...slots import Location
from ...tensors import Array
from ..neutral import BottleneckWeights
from . import hypercomplex
from .families import Family
from .forms import BottleneckSettings
from .keys import FORGOTTEN, OTHER_CONFIG, Blocks, Parts, Sorted, Tensor, misplaced, shape_problems

Bottlenecks = dict[tuple[int, Location], BottleneckWeights]

#: path in a block -> location
_PLACES: dict[str, Location] = {
    "attention.output": "mh",
    "output": "output",
    "attention_adapters": "mh",
    "attention.attention_adapters": "mh",
    "output_adapters": "output",
    "output.output_adapters": "output",
    "layer.0": "mh",  # T5
    "layer.1": "output",
}


def read_bottlenecks(
    found: Sorted, settings: BottleneckSettings, family: Family, hidden_size: object
) -> tuple[Bottlenecks, list[Problem]]:
    """The factors of every bottleneck whose tensors are sound, and every problem found.

    Args:
        found: the tensors of the adapter.
        settings: what the config says of them.
        family: of the base.
        hidden_size: as the config has it; null for some models.
    """
    places, problems = _places(found, settings, family)
    if problems and not places:
        return {}, problems
    norms = {module: _one_norm(parts, settings, problems) for module, parts in found.modules.items()}
    features = hidden_size if type(hidden_size) is int and hidden_size > 0 else _features(found)
    if features is None:
        return {}, [*problems, Problem(Code.BAD_CONFIG, "hidden_size", got=repr(hidden_size)[:80])]
    bottlenecks: Bottlenecks = {}
    needed: dict[str, tuple[int, ...]] = {}
    for (layer, location), module in sorted(places.items()):
        width = settings.width(layer, features)
        if width is None:
            problems.append(
                Problem(
                    Code.BAD_CONFIG,
                    "reduction_factor",
                    got=repr(settings.reduction_factor)[:80],
                    expected=f"a factor for layer {layer}, or a default",
                )
            )
            continue
        needed |= hypercomplex.shared_shapes(features, width, settings)
        site = _Site(module, norms[module], found.shared, settings, features, width)
        if wrong := site.problems():
            problems += wrong
        elif all(_has(found.shared, part, shape) for part, shape in needed.items()):
            bottlenecks[layer, location] = site.weights()
    if needed or found.shared:
        problems += shape_problems("shared_parameters", found.shared, needed, FORGOTTEN)
    return bottlenecks, problems


def _has(parts: Parts, part: str, shape: tuple[int, ...]) -> bool:
    return part in parts and parts[part].array.shape == shape


def _features(found: Sorted) -> int | None:
    """The hidden size that the first up projection has."""
    for parts in found.modules.values():
        for part in ("adapter_up.bias", "adapter_up.b"):
            if part in parts and parts[part].array.ndim == 1:
                return int(parts[part].array.size)
    return None


def _places(
    found: Sorted, settings: BottleneckSettings, family: Family
) -> tuple[dict[tuple[int, Location], str], list[Problem]]:
    """The modules by layer and location; what has no place is a problem."""
    blocks = Blocks(found.modules, settings.leave_out)
    if blocks.problems:
        return {}, blocks.problems
    places: dict[tuple[int, Location], str] = {}
    problems = []
    for module, parts in found.modules.items():
        block = blocks.of(module)
        location = None if block is None else _PLACES.get(block.path)
        if block is None or location is None:
            why = "no place behind the attention or the feed-forward part of a block"
        elif family.two_stacks and "decoder" in block.stack.split("."):
            why = "an adapter in a decoder that attends to an encoder has no slot"
        elif not settings.claims(block.layer, location):
            why = "the config has no bottleneck there (mh_adapter, output_adapter, leave_out)"
        elif (block.layer, location) in places:
            why = f"the same place as {places[block.layer, location]}"
        else:
            places[block.layer, location] = module
            continue
        problems.append(misplaced(module, parts, why))
    return places, problems


def _one_norm(parts: Parts, settings: BottleneckSettings, problems: list[Problem]) -> dict[str, Tensor]:
    """The parts with the norm before under one name: the library has it twice, as one and the same."""
    kept = dict(parts)
    for half in ("weight", "bias") if settings.ln_before else ():
        own, twin = f"adapter_norm_before.{half}", kept.pop(f"adapter_down.0.{half}", None)
        if twin is None:
            continue
        tensor = kept.setdefault(own, twin)
        if not np.array_equal(tensor.array, twin.array, equal_nan=True):
            problems.append(
                Problem(
                    Code.DUPLICATE_KEY,
                    twin.name,
                    got=f"other values than {tensor.name}",
                    expected="one norm under its two names",
                    cause="an edited file",
                )
            )
    return kept


@dataclass(frozen=True)
class _Site:
    """One bottleneck: its tensors, and what they must be."""

    module: str
    parts: Mapping[str, Tensor]
    shared: Parts
    settings: BottleneckSettings
    features: int
    width: int

    @property
    def down(self) -> str:
        """The path of the down projection."""
        return f"adapter_down.{int(self.settings.ln_before)}"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All tensors by part."""
        settings, features, width = self.settings, self.features, self.width
        shapes: dict[str, tuple[int, ...]] = {}
        for path, into, out in ((self.down, features, width), ("adapter_up", width, features)):
            if settings.phm_layer:
                shapes |= hypercomplex.own_shapes(path, into, out, settings)
            else:
                shapes |= {f"{path}.weight": (out, into), f"{path}.bias": (out,)}
        for norm in self.norms:
            shapes |= {f"adapter_{norm}.weight": (features,), f"adapter_{norm}.bias": (features,)}
        if isinstance(settings.scaling, str):
            shapes["scaling"] = (1 if settings.scaling == "learned" else features,)
        return shapes

    @property
    def norms(self) -> tuple[str, ...]:
        """The adapter's own norms."""
        there = {"norm_before": self.settings.ln_before, "norm_after": self.settings.ln_after}
        return tuple(norm for norm, on in there.items() if on)

    def problems(self) -> list[Problem]:
        """What keeps the tensors from being a bottleneck of the settings."""
        settings = self.settings
        bias = self.parts.get(f"{self.down}.{'b' if settings.phm_layer else 'bias'}")
        if bias is not None and bias.array.ndim == 1 and bias.array.size != self.width:
            return [
                Problem(
                    Code.RANK_MISMATCH,
                    self.module,
                    got=f"width {bias.array.size} in the file",
                    expected=f"width {self.width} as the config says",
                    cause="adapter_config.json of another adapter",
                    mend=OTHER_CONFIG,
                )
            ]
        if settings.phm_layer and (self.features % settings.phm_dim or self.width % settings.phm_dim):
            return [
                Problem(
                    Code.BAD_CONFIG,
                    "phm_dim",
                    got=str(settings.phm_dim),
                    expected=f"a divisor of {self.features} features and of width {self.width}",
                )
            ]
        return shape_problems(self.module, self.parts, self.shapes())

    def weights(self) -> BottleneckWeights:
        """The factors, computed in float64."""
        settings, parts = self.settings, self.parts
        scaling: Any = settings.scaling
        if isinstance(scaling, str):
            scaling = parts["scaling"].array.astype(np.float64)
        factors: dict[str, Array] = {}
        names: dict[str, str] = {}
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused as such later
            for side, path, out in (("down", self.down, self.width), ("up", "adapter_up", self.features)):
                matrix, bias = self._projection(side, path, out)
                folded = 1.0 if side == "down" else scaling
                factors |= {side: matrix * folded, f"{side}_bias": bias * folded}
                names |= dict.fromkeys((side, f"{side}_bias"), f"{self.module}: {path}")
            for norm in self.norms:
                for half in ("weight", "bias"):
                    tensor = parts[f"adapter_{norm}.{half}"]
                    factors[f"{norm}_{half}"], names[f"{norm}_{half}"] = tensor.array, tensor.name
            return BottleneckWeights({key: f.astype(np.float32) for key, f in factors.items()}, names)

    def _projection(self, side: str, path: str, out: int) -> tuple[Array, Array]:
        if self.settings.phm_layer:
            return hypercomplex.dense(path, side, self.parts, self.shared, out, self.settings)
        weight, bias = self.parts[f"{path}.weight"].array, self.parts[f"{path}.bias"].array
        return weight.T.astype(np.float64), bias.astype(np.float64)
