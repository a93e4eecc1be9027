"""What a lowering can choose."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from adexport_runtime.quantization import Quantization
from adexport_runtime.slots import Activation, BankDtype, BottleneckForm

from ..slots.kinds import LORA


@dataclass(frozen=True)
class BottleneckOptions:
    """The forms and activations that bottleneck slots take, and their sites (None: all)."""

    forms: tuple[BottleneckForm, ...]
    activations: tuple[Activation, ...]
    sites: tuple[str, ...] | None = None


@dataclass(frozen=True)
class HeadOptions:
    """The activations between the layers of heads."""

    activations: tuple[Activation, ...]


@dataclass(frozen=True)
class LowerOptions:
    """The slots (none: the plain base), the precision, and the quantization.

    ``sites`` are linear layers by path, each with the factors that its slot has. ``guarded``: slots are
    skipped when no row of the batch has anything for them, at the price of an ``If`` for each.
    ``bank_dtype``: slot inputs are of that type, whatever computes; None: of ``dtype``.
    ``in_place``: caches of just so many tokens are written where they lie (for TensorRT; None: copied).
    """

    sites: Mapping[str, Collection[str]] = field(default_factory=dict)
    bottlenecks: BottleneckOptions | None = None
    head: HeadOptions | None = None
    dtype: str = "fp32"
    guarded: bool = True
    quantization: Quantization | None = None
    in_place: int | None = None
    bank_dtype: BankDtype | None = None


def lora_at(paths: Iterable[str]) -> dict[str, frozenset[str]]:
    """Sites with LoRA factors only."""
    return dict.fromkeys(paths, LORA)
