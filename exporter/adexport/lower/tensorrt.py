"""The passes for TensorRT: standard ops alone, no branches, no functions, sizes named by their kind.

A size has one name wherever it may be one: the ranks of all sites, the rows of a batch and of
``adapter_ids``. Engines are then built in a fraction of the time (see BENCHMARKS.md); a runtime pads all
sites to the largest rank.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    NameFixPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from adexport_runtime.graph_io import BATCH, IDS, ROWS, kind_of

from ..ops import ATTENTION, ATTENTION_MASK, CACHED_ATTENTION
from .attention import FUSED_SINCE_OPSET, lower_attention
from .batched import lower_batched
from .bottleneck import lower_residuals
from .cached_standard import lower_cached_standard
from .graph import Emitter, add_input, constant, opaque
from .head import lower_head
from .linear import lower_linears
from .options import LowerOptions
from .precision import callers_inputs, lower_precision
from .qdq import check_quantization, lower_qdq
from .quantization import find_frozen
from .slotted import ADAPTER_IDS, Slotted

#: of a head, for the ``Attention`` op
_FUSED_SIZES = range(16, 257, 8)


def lower(graph: ir.Model, options: LowerOptions) -> Slotted:
    """Lower in place; returns the slots with their inputs.

    Raises:
        BuildError: the quantization has no form for TensorRT.
    """
    check_quantization(options.quantization)
    frozen, floats = find_frozen(graph), callers_inputs(graph)
    batched = any(opaque(graph.graph, CACHED_ATTENTION))
    fused = _fused_nodes(graph, options.dtype)
    lower_attention(graph, fused=lambda node: node in fused)
    lower_cached_standard(graph, fused=lambda node: node in fused, in_place=options.in_place)
    slotted = options.sites or options.bottlenecks is not None or options.head is not None
    ids = add_input(graph.graph, ADAPTER_IDS, ("ids",), ir.DataType.INT64) if slotted else None
    slots = Slotted(
        sites=lower_linears(graph, options.sites, ids),
        bottlenecks=lower_residuals(graph, options.bottlenecks, ids),
        head=lower_head(graph, options.head, ids),
        rows="batch" if batched and ids is not None else "bank",
    )
    if batched and ids is not None:
        lower_batched(graph, ids)
    InlinePass()(graph)
    lower_precision(graph, options.dtype, floats)
    lower_qdq(graph, options.quantization, frozen)
    _name_sizes_by_kind(graph.graph, batched=batched)
    for finish in (RemoveUnusedNodesPass(), RemoveUnusedOpsetsPass(), NameFixPass()):
        finish(graph)
    graph.graph.name = "tensorrt"
    return slots


def _fused_nodes(model: ir.Model, dtype: str) -> set[ir.Node]:
    """Attention that may be the ``Attention`` op: TensorRT takes it in half precision only.

    A query that sees no key at all gives NaN there, which the next layer would spread by ``0 * NaN``: so
    not where a window could leave padding with nothing.
    """
    if dtype == "fp32" or model.graph.opset_imports[""] < FUSED_SINCE_OPSET:
        return set()
    fused = set()
    for node in opaque(model.graph, ATTENTION):
        mask = (*node.inputs, None)[3]
        made = None if mask is None else mask.producer()
        windowed = made is not None and (
            made.op_type != ATTENTION_MASK
            or any(made.attributes[side].as_int() >= 0 for side in ("before", "after"))
        )
        if not windowed and _head_size(node) in _FUSED_SIZES:
            _state_heads(model.graph, node)
            fused.add(node)
    return fused | {
        node for node in opaque(model.graph, CACHED_ATTENTION) if _head_size(node) in _FUSED_SIZES
    }


def _head_size(node: ir.Node) -> int:
    shape = node.outputs[0].shape
    return shape[3] if shape is not None and isinstance(shape[3], int) else 0


def _state_heads(graph: ir.Graph, node: ir.Node) -> None:
    """Let the number of heads be read from the graph: TensorRT wants to know it."""
    emit = Emitter(graph, node)
    names = ("num_heads", "kv_num_heads", "kv_num_heads")
    for index, name in enumerate(names):
        heads, size = node.attributes[name].as_int(), _head_size(node)
        shape = constant(
            graph, f"adexport.heads_{heads}_of_{size}", np.array([0, heads, -1, size], np.int64)
        )
        node.replace_input_with(index, emit("Reshape", node.inputs[index], shape))


def _name_sizes_by_kind(graph: ir.Graph, *, batched: bool) -> None:
    """Sizes as :func:`~adexport_runtime.graph_io.engine_inputs` has them."""
    same = {IDS: BATCH} | ({ROWS: BATCH} if batched else {})
    for value in graph.inputs:
        named: list[int | str] = []
        for size in value.shape or ():
            kind = size if isinstance(size, int) else kind_of(str(size.value))
            named.append(same.get(kind, kind) if isinstance(kind, str) else kind)
        value.shape = ir.Shape(named)
