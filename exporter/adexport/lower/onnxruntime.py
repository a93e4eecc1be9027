"""The passes for ONNX Runtime: standard ops, slots as local functions that it inlines."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from .attention import FUSED_SINCE_OPSET, lower_attention
from .bottleneck import lower_residuals
from .graph import add_input
from .head import lower_head
from .linear import lower_linears
from .options import LowerOptions
from .precision import lower_precision
from .slotted import ADAPTER_IDS, Slotted


def lower(graph: ir.Model, options: LowerOptions) -> Slotted:
    """Lower in place; returns the slots with their inputs."""
    lower_attention(graph, fused=graph.graph.opset_imports[""] >= FUSED_SINCE_OPSET)
    slotted = options.sites or options.bottlenecks is not None or options.head is not None
    ids = add_input(graph.graph, ADAPTER_IDS, ("ids",), ir.DataType.INT64) if slotted else None
    slots = Slotted(
        sites=lower_linears(graph, options.sites, ids),
        bottlenecks=lower_residuals(graph, options.bottlenecks, ids),
        head=lower_head(graph, options.head, ids),
    )
    lower_precision(graph, options.dtype)
    RemoveUnusedNodesPass()(graph)
    RemoveUnusedOpsetsPass()(graph)
    graph.graph.name = "onnxruntime"
    return slots
