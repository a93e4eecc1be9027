"""The passes for ONNX Runtime: standard ops, slots as local functions that it inlines."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from adexport_runtime.manifest import Site

from .attention import FUSED_SINCE_OPSET, lower_attention
from .linear import lower_linears
from .options import LowerOptions
from .precision import lower_precision


def lower(graph: ir.Model, options: LowerOptions) -> tuple[Site, ...]:
    """Lower in place; returns the sites."""
    lower_attention(graph, fused=graph.graph.opset_imports[""] >= FUSED_SINCE_OPSET)
    sites = lower_linears(graph, options.sites)
    lower_precision(graph, options.dtype)
    RemoveUnusedNodesPass()(graph)
    RemoveUnusedOpsetsPass()(graph)
    graph.graph.name = "onnxruntime"
    return sites
