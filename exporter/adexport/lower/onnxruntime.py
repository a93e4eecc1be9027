"""The passes for ONNX Runtime: standard ops, slots as local functions that it inlines."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from adexport_runtime.slots import Guards

from .attention import FUSED_SINCE_OPSET, lower_attention
from .bottleneck import lower_residuals
from .graph import add_input
from .guard import Guard
from .head import lower_head
from .linear import lower_linears
from .options import LowerOptions
from .precision import lower_precision
from .slotted import ADAPTER_IDS, Slotted


def _guards(graph: ir.Model, options: LowerOptions, ids: ir.Value | None) -> dict[str, Guard]:
    if ids is None or not options.guarded:
        return {}
    kinds = {"linear": bool(options.sites), "bottleneck": options.bottlenecks is not None}
    return {kind: Guard(graph, kind, ids) for kind, there in kinds.items() if there}


def lower(graph: ir.Model, options: LowerOptions) -> Slotted:
    """Lower in place; returns the slots with their inputs."""
    lower_attention(graph, fused=graph.graph.opset_imports[""] >= FUSED_SINCE_OPSET)
    slotted = options.sites or options.bottlenecks is not None or options.head is not None
    ids = add_input(graph.graph, ADAPTER_IDS, ("ids",), ir.DataType.INT64) if slotted else None
    guards = _guards(graph, options, ids)
    slots = Slotted(
        sites=lower_linears(graph, options.sites, ids, guards.get("linear")),
        bottlenecks=lower_residuals(graph, options.bottlenecks, ids, guards.get("bottleneck")),
        head=lower_head(graph, options.head, ids),
        guards=Guards(**{kind: guard.slot for kind, guard in guards.items()}) if guards else None,
    )
    lower_precision(graph, options.dtype)
    RemoveUnusedNodesPass()(graph)
    RemoveUnusedOpsetsPass()(graph)
    graph.graph.name = "onnxruntime"
    return slots
