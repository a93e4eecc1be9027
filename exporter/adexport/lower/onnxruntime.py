"""The passes for ONNX Runtime: standard ops, its attention with a cache, slots as local functions."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from adexport_runtime.slots import Guards

from ..ops import CACHED_ATTENTION
from ..slots.kinds import LORA
from .attention import FUSED_SINCE_OPSET, lower_attention
from .banks import lower_banks
from .batched import lower_batched
from .bottleneck import lower_residuals
from .cached import lower_cached
from .graph import add_input, opaque
from .guard import Guard
from .head import lower_head
from .linear import lower_linears
from .options import LowerOptions
from .precision import callers_inputs, lower_precision
from .quantization import find_frozen, lower_quantization
from .slotted import ADAPTER_IDS, Slotted


def _guards(
    graph: ir.Model, options: LowerOptions, ids: ir.Value | None, *, batched: bool
) -> dict[str, Guard]:
    if ids is None or not options.guarded:
        return {}
    factors = frozenset[str]().union(*options.sites.values())
    # a batch without LoRA comes with matrices of rank 0 there, which cost less than a branch
    linear = bool(factors - LORA) if batched else bool(factors)
    kinds = {"linear": linear, "bottleneck": options.bottlenecks is not None}
    return {kind: Guard(graph, kind, ids) for kind, there in kinds.items() if there}


def lower(graph: ir.Model, options: LowerOptions) -> Slotted:
    """Lower in place; returns the slots with their inputs."""
    frozen, floats = find_frozen(graph), callers_inputs(graph)
    batched = any(opaque(graph.graph, CACHED_ATTENTION))
    fused = graph.graph.opset_imports[""] >= FUSED_SINCE_OPSET
    lower_attention(graph, fused=lambda _: fused)
    lower_cached(graph)
    slotted = options.sites or options.bottlenecks is not None or options.head is not None
    ids = add_input(graph.graph, ADAPTER_IDS, ("ids",), ir.DataType.INT64) if slotted else None
    guards = _guards(graph, options, ids, batched=batched)
    slots = Slotted(
        sites=lower_linears(graph, options.sites, ids, guards.get("linear")),
        bottlenecks=lower_residuals(graph, options.bottlenecks, ids, guards.get("bottleneck")),
        head=lower_head(graph, options.head, ids),
        guards=Guards(**{kind: guard.slot for kind, guard in guards.items()}) if guards else None,
        rows="batch" if batched and ids is not None else "bank",
    )
    if batched and ids is not None:
        lower_batched(graph, ids)
    if options.bank_dtype is not None:
        slots = lower_banks(graph, slots, options.bank_dtype)
    lower_precision(graph, options.dtype, floats)
    lower_quantization(graph, options.quantization, frozen)
    RemoveUnusedNodesPass()(graph)
    RemoveUnusedOpsetsPass()(graph)
    graph.graph.name = "onnxruntime"
    return slots
