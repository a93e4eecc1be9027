"""The passes for TensorRT: standard ops alone, no branches, caches by Concat."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from ..ops import CACHED_ATTENTION, PRESENT
from .attention import FUSED_SINCE_OPSET, lower_attention
from .batched import lower_batched
from .bottleneck import lower_residuals
from .graph import add_input, opaque
from .head import lower_head
from .linear import lower_linears
from .options import LowerOptions
from .precision import lower_precision
from .slotted import ADAPTER_IDS, Slotted


def lower(graph: ir.Model, options: LowerOptions) -> Slotted:
    """Lower in place; returns the slots with their inputs."""
    batched = any(opaque(graph.graph, CACHED_ATTENTION))
    lower_attention(
        graph, fused=graph.graph.opset_imports[""] >= FUSED_SINCE_OPSET and options.dtype != "fp32"
    )
    slotted = options.sites or options.bottlenecks is not None or options.head is not None
    ids = add_input(graph.graph, ADAPTER_IDS, ("ids",), ir.DataType.INT64) if slotted else None
    slots = Slotted(
        sites=lower_linears(graph, options.sites, ids, None),
        bottlenecks=lower_residuals(graph, options.bottlenecks, ids, None),
        head=lower_head(graph, options.head, ids),
        rows="batch" if batched and ids is not None else "bank",
    )
    if batched and ids is not None:
        lower_batched(graph, ids)
    lower_precision(graph, options.dtype, kept=lambda name: name.startswith(PRESENT))
    RemoveUnusedNodesPass()(graph)
    RemoveUnusedOpsetsPass()(graph)
    graph.graph.name = "tensorrt"
    return slots
