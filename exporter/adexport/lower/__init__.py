"""Passes that turn the target-free trace into a graph for one target; none of them needs torch.

One file for each pass, with what it requires and ensures; one for each target, with the passes it
takes. A target has a line in ``_TARGETS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from . import onnxruntime, tensorrt
from .bottleneck import bottleneck_features, bottleneck_places
from .head import has_head
from .linear import layer_features, linear_layers, slot_candidates
from .options import BottleneckOptions, HeadOptions, LowerOptions, lora_at
from .slotted import ADAPTER_IDS, Slotted

__all__ = [
    "ADAPTER_IDS",
    "ONNXRUNTIME",
    "TENSORRT",
    "BottleneckOptions",
    "HeadOptions",
    "LowerOptions",
    "Lowered",
    "Slotted",
    "bottleneck_features",
    "bottleneck_places",
    "has_head",
    "layer_features",
    "linear_layers",
    "lora_at",
    "lower",
    "slot_candidates",
]

ONNXRUNTIME = "onnxruntime"
TENSORRT = "tensorrt"

_TARGETS: dict[str, Callable[[ir.Model, LowerOptions], Slotted]] = {
    ONNXRUNTIME: onnxruntime.lower,
    TENSORRT: tensorrt.lower,
}


@dataclass(frozen=True)
class Lowered:
    """A graph ready for its target, and the slots that it got."""

    graph: ir.Model
    slots: Slotted


def lower(trace: ir.Model, options: LowerOptions, target: str = ONNXRUNTIME) -> Lowered:
    """Lower a copy of ``trace``; the trace itself is left as it is."""
    graph = trace.clone()
    return Lowered(graph, _TARGETS[target](graph, options))
