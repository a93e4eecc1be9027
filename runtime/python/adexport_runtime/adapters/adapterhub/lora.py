"""LoRA, IA3, VeRA and DoRA of AdapterHub, as factors of linear slots.

Equations: ``adapters.methods.lora`` (Hu et al., arXiv:2106.09685; Liu et al., arXiv:2205.05638; Kopiczko
et al., arXiv:2310.11454; Liu et al., arXiv:2402.09353), with ``s = alpha / r``::

    LoRA   W x + b + s B A x                           A [r, in], B [out, r]
    VeRA   W x + b + s (vera_B B) (vera_D A) x         A and B shared by all layers
    IA3    alpha lora_B * (W x + b)                    lora_B [out, 1]
    DoRA   g * (W x + b + s B A x)                     g = m / |W + B A|, by rows, without s

A fused projection (GPT-2's ``c_attn``) has a pair for each of q, k and v that is adapted, one below the
other, and each writes to its own third of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ...errors import AdapterError, Code, Problem
from ...tensors import Array
from ..neutral import FrozenLinear, LinearRecipe, LinearUpdate, LinearWeights
from .families import Family, Projection
from .keys import FORGOTTEN, OTHER_CONFIG, Block, Blocks, Parts, Sorted, misplaced, shape_problems
from .settings import Settings, parse, refused

_GATE = (
    "the gate is a mean over all positions of a row, padding included: what a row gives depends on the "
    "longest row beside it",
    "train with use_gating=False",
)
_IGNORED = frozenset(["architecture", "dropout", "dtype", "init_weights", "init_weights_seed"])
_FUSED = ("q", "k", "v")


class LoraSettings(Settings):
    """The settings of ``LoRAConfig``, which are those of IA3, VeRA and DoRA too."""

    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    leave_out: list[int] = Field(default_factory=list)
    r: Annotated[int, Field(gt=0)] = 8
    alpha: Annotated[float, Field(allow_inf_nan=False)] = 8
    attn_matrices: list[str] = Field(default_factory=lambda: ["q", "v"])
    composition_mode: Literal["add", "scale"] = "add"
    use_dora: bool = False
    vera_d: float | None = None
    vera_b: float | None = None

    @property
    def scales(self) -> bool:
        """IA3: outputs are scaled, nothing is added."""
        return self.composition_mode == "scale"

    @property
    def vera(self) -> bool:
        """Whether the factors are shared by all layers."""
        return not self.scales and (self.vera_d is not None or self.vera_b is not None)

    @property
    def method(self) -> str:
        """What it is, for people."""
        if self.scales:
            return "ia3"
        return ("dvora" if self.vera else "dora") if self.use_dora else "vera" if self.vera else "lora"

    @property
    def fused(self) -> list[int]:
        """Which thirds of a fused projection are adapted."""
        return [index for index, name in enumerate(_FUSED) if name in self.attn_matrices]

    def claims(self, layer: int, projection: Projection) -> bool:
        """Whether there is an adapter at a linear layer."""
        if layer in self.leave_out:
            return False
        if projection == "intermediate":
            return self.intermediate_lora
        if projection == "output":
            return self.output_lora
        there = bool(self.fused) if projection == "qkv" else projection in self.attn_matrices
        return self.selfattn_lora and there


def parse_settings(config: dict[str, Any], family: Family) -> tuple[LoraSettings | None, list[Problem]]:
    """The settings of a config; None where they cannot be used."""
    settings, problems = parse(LoraSettings, config, ignored=_IGNORED, refusals={"use_gating": _GATE})
    if settings is None:
        return None, problems
    if settings.scales and (settings.r != 1 or settings.use_dora):
        problems.append(
            refused("composition_mode", "scale", "the library has it with r = 1 and without use_dora only")
        )
    fused = settings.selfattn_lora and "qkv" in family.projections.values()
    if settings.use_dora and (family.fan_in_fan_out or fused):
        problems.append(refused("use_dora", True, "the library has no DoRA on this model's layers"))
    if settings.vera and fused:
        problems.append(refused("vera_d", settings.vera_d, "the library has no VeRA on fused projections"))
    return (None if problems else settings), problems


@dataclass(frozen=True)
class Loras:
    """The updates of linear layers, what the config claims, and every problem found."""

    linears: dict[str, LinearUpdate]
    covers: Callable[[str], bool]
    problems: list[Problem]


def read_loras(found: Sorted, settings: LoraSettings, family: Family) -> Loras:
    """The updates of all modules whose tensors are sound."""
    blocks = Blocks(found.modules, settings.leave_out)

    def projection_of(module: str) -> tuple[Block | None, Projection | None]:
        block = blocks.of(module)
        return block, None if block is None else family.projections.get(block.path)

    def covers(module: str) -> bool:
        block, projection = projection_of(module)
        return block is not None and projection is not None and settings.claims(block.layer, projection)

    linears: dict[str, LinearUpdate] = {}
    problems = list(blocks.problems)
    if settings.vera or found.shared:
        problems += _shared_problems(found.shared, settings)
    sound = not problems
    for module, parts in found.modules.items() if not blocks.problems else ():
        block, projection = projection_of(module)
        if block is None or projection is None:
            problems.append(misplaced(module, parts, "no linear layer that the library gives a LoRA"))
        elif family.two_stacks and "decoder" in block.stack.split("."):
            problems.append(misplaced(module, parts, "a decoder that attends to an encoder has no slots"))
        elif not settings.claims(block.layer, projection):
            problems.append(misplaced(module, parts, "the config has no LoRA there"))
        else:
            layer = _Layer(module, parts, found.shared, settings, projection == "qkv")
            if wrong := layer.problems():
                problems += wrong
            elif sound:
                linears[module] = layer.update()
    return Loras(linears, covers, problems)


def _shared_problems(shared: Parts, settings: LoraSettings) -> list[Problem]:
    expected: dict[str, tuple[int, ...]] = {}
    if settings.vera:
        into, out = (
            shared[part].array.shape[axis] if part in shared and shared[part].array.ndim == 2 else -1
            for part, axis in (("lora_A", 1), ("lora_B", 0))
        )
        expected = {"lora_A": (settings.r, into), "lora_B": (out, settings.r)}
    return shape_problems("shared_parameters", shared, expected, FORGOTTEN)


@dataclass(frozen=True)
class _Layer:
    """One adapted linear layer, and the tensors that are to make its update."""

    module: str
    parts: Parts
    shared: Parts
    settings: LoraSettings
    fused: bool

    @property
    def pairs(self) -> int:
        """How many pairs lie one below the other."""
        return len(self.settings.fused) if self.fused else 1

    def problems(self) -> list[Problem]:
        """What keeps the tensors from being an update of the settings."""
        rank, parts = self.settings.r, self.parts
        into, out = self._size("lora_A", 1), self._size("lora_B", 0)
        if self.settings.vera:
            out = (
                self.shared["lora_B"].array.shape[0] if "lora_B" in self.shared else self._size("vera_B", 0)
            )
            expected = {"vera_D": (rank, rank), "vera_B": (out, out)}
        elif self.settings.scales:
            expected = {"lora_B": (out, 1)}
        else:
            for part, axis, wanted in (("lora_A", 0, rank * self.pairs), ("lora_B", 1, rank)):
                if (got := self._size(part, axis)) not in (wanted, -1):
                    return [self._other_rank(got, wanted, parts[part].name)]
            expected = {"lora_A": (rank * self.pairs, into), "lora_B": (out, rank)}
        if self.settings.use_dora:
            expected["m.weight"] = (out, 1)
        problems = shape_problems(self.module, parts, expected)
        if not problems and self.fused and out % self.pairs:
            problems = shape_problems(
                self.module, parts, {**expected, "lora_B": (out - out % self.pairs, rank)}
            )
        return problems

    def _size(self, part: str, axis: int) -> int:
        """A size of a matrix; -1, which no shape has, where there is none."""
        tensor = self.parts.get(part)
        return -1 if tensor is None or tensor.array.ndim != 2 else int(tensor.array.shape[axis])

    def _other_rank(self, got: int, wanted: int, name: str) -> Problem:
        return Problem(
            Code.RANK_MISMATCH,
            self.module,
            got=f"rank {got} in {name}",
            expected=f"{wanted}, as the config's r and attn_matrices say",
            cause="adapter_config.json of another adapter",
            mend=OTHER_CONFIG,
        )

    def update(self) -> LinearUpdate:
        """The factors, or how to get them with the frozen layer."""
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused as such later
            if self.settings.scales:
                scale = self._spread(self._array("lora_B"), 1.0)[:, 0] * self.settings.alpha
                names = {"scale_out": self.parts["lora_B"].name}
                return LinearWeights({"scale_out": scale.astype(np.float32)}, names)
            a, b = self._factors()
            weights = LinearWeights(
                {"lora_A": a.T.astype(np.float32), "lora_B": self._scaled(b)}, self._names()
            )
        if not self.settings.use_dora:
            return weights
        return LinearRecipe(
            kinds=frozenset(["lora_A", "lora_B", "scale_out"]),
            rank=weights.rank,
            tensors=tuple(tensor.name for tensor in self.parts.values()),
            finish=lambda frozen: self._dora(weights, frozen),
        )

    def _factors(self) -> tuple[Array, Array]:
        """A ``[rank, in]`` and B ``[out, rank]`` in float64, without the scaling."""
        if self.settings.vera:
            shared_a, shared_b = (
                self.shared[part].array.astype(np.float64) for part in ("lora_A", "lora_B")
            )
            return self._array("vera_D") @ shared_a, self._array("vera_B") @ shared_b
        a, b = self._array("lora_A"), self._array("lora_B")
        if not self.fused:
            return a, b
        rank = self.settings.r
        wide = np.zeros((b.shape[0], a.shape[0]))
        for pair, rows in enumerate(np.split(np.arange(b.shape[0]), self.pairs)):
            wide[rows, pair * rank : (pair + 1) * rank] = b[rows]
        return a, self._spread(wide, 0.0)

    def _spread(self, rows: Array, fill: float) -> Array:
        """Rows of the adapted thirds among those of all three; the others are ``fill``."""
        if not self.fused:
            return rows
        third = rows.shape[0] // self.pairs
        spread = np.full((3, third, rows.shape[1]), fill)
        spread[self.settings.fused] = rows.reshape(self.pairs, third, rows.shape[1])
        return spread.reshape(3 * third, rows.shape[1])

    def _scaled(self, b: Array) -> Array:
        scaled: Array = (b.T * (self.settings.alpha / self.settings.r)).astype(np.float32)
        return scaled

    def _array(self, part: str) -> Array:
        return self.parts[part].array.astype(np.float64)

    def _names(self) -> dict[str, str]:
        a, b = ("vera_D", "vera_B") if self.settings.vera else ("lora_A", "lora_B")
        return {"lora_A": self.parts[a].name, "lora_B": self.parts[b].name}

    def _dora(self, weights: LinearWeights, frozen: FrozenLinear) -> LinearWeights:
        """The factors with the magnitudes, of which the base decides."""
        name = self.parts["m.weight"].name
        a, b = self._factors()
        with np.errstate(over="ignore", invalid="ignore"):
            update = b @ a
        if frozen.weight.shape != update.shape:
            raise AdapterError(
                f"{self.module} is refused",
                Problem(
                    Code.WRONG_SHAPE,
                    name,
                    got=f"an update of shape {list(update.shape)}",
                    expected=f"{list(frozen.weight.shape)}, as the layer has",
                    cause="trained on another base",
                    mend="bind it to a bundle of its own base",
                ),
            )
        with np.errstate(all="ignore"):  # what is not finite is refused as such later
            norm = np.linalg.norm(frozen.weight.astype(np.float64) + update, axis=1)
            scale = (self._array("m.weight")[:, 0] / norm).astype(np.float32)
        return LinearWeights({**weights.factors, "scale_out": scale}, {**weights.names, "scale_out": name})
