"""Passes that turn the target-free trace into a graph for one target; none of them needs torch.

One file for each pass, with what it requires and ensures; one for each target, with the passes it
takes. A target has a line in ``_TARGETS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from adexport_runtime.manifest import Site

from . import onnxruntime
from .linear import ADAPTER_IDS, linear_layers, slot_candidates
from .options import LowerOptions

__all__ = ["ADAPTER_IDS", "LowerOptions", "Lowered", "linear_layers", "lower", "slot_candidates"]

_TARGETS: dict[str, Callable[[ir.Model, LowerOptions], tuple[Site, ...]]] = {
    "onnxruntime": onnxruntime.lower,
}


@dataclass(frozen=True)
class Lowered:
    """A graph ready for its target, and the sites with the slot inputs that it got."""

    graph: ir.Model
    sites: tuple[Site, ...]


def lower(trace: ir.Model, options: LowerOptions, target: str = "onnxruntime") -> Lowered:
    """Lower a copy of ``trace``; the trace itself is left as it is."""
    graph = trace.clone()
    sites = _TARGETS[target](graph, options)
    return Lowered(graph, sites)
