"""Attention: ``adexport::AttentionMask`` and ``adexport::Attention`` to standard ops.

Requires opaque attention ops; leaves none. Ensures the same numbers whatever the form: the ONNX
``Attention`` op (opset 23 and later, one fused kernel) or primitive ops (any opset).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..ops import ATTENTION, ATTENTION_MASK
from .graph import Emitter, constant, opaque

FUSED_SINCE_OPSET = 23

#: what a masked score becomes before softmax: exp() of it is 0 in every float type
MASKED = -1e9


def lower_attention(model: ir.Model, *, fused: Callable[[ir.Node], bool]) -> None:
    """Lower all attention; ``fused`` tells which may be the ONNX ``Attention`` op."""
    graph = model.graph
    for node in opaque(graph, ATTENTION):
        _lower_one(graph, node, fused=fused(node))
    for node in opaque(graph, ATTENTION_MASK):
        _lower_mask(graph, node)


def _lower_mask(graph: ir.Graph, node: ir.Node) -> None:
    """Bool ``[batch, 1, queries, keys]``, spelt out: ONNX Runtime broadcasts no query axis."""
    emit = Emitter(graph, node)
    (padding,) = node.inputs
    one = constant(graph, "adexport.one", np.array([1], np.int64))
    keys = emit("Shape", padding, start=1, end=2)
    mask = emit(
        "Unsqueeze",
        emit("Cast", padding, to=int(ir.DataType.BOOL)),
        constant(graph, "adexport.axes_1_2", np.array([1, 2], np.int64)),
    )
    before, after = (node.attributes[name].as_int() for name in ("before", "after"))
    if before < 0 and after < 0:
        emit.replace(emit("Expand", mask, emit("Concat", one, one, keys, one, axis=0)))
        return
    zero = constant(graph, "adexport.zero", np.array(0, np.int64))
    step = constant(graph, "adexport.step", np.array(1, np.int64))
    key = emit("Range", zero, emit("Squeeze", keys), step)
    query = emit("Unsqueeze", key, one)
    for limit, distance in ((before, (query, key)), (after, (key, query))):
        if limit >= 0:
            largest = constant(graph, f"adexport.window_{limit}", np.array(limit, np.int64))
            mask = emit("And", mask, emit("LessOrEqual", emit("Sub", *distance), largest))
    emit.replace(mask)


def _lower_one(graph: ir.Graph, node: ir.Node, *, fused: bool) -> None:
    emit = Emitter(graph, node)
    query, key, value, mask = (*node.inputs, None)[:4]
    scale = node.attributes["scale"].as_float()
    if fused:
        context = emit("Attention", query, key, value, mask, scale=scale)
    else:
        groups = node.attributes["num_heads"].as_int() // node.attributes["kv_num_heads"].as_int()
        if groups > 1:
            key, value = _repeat_heads(emit, graph, key, groups), _repeat_heads(emit, graph, value, groups)
        scaled = emit(
            "Mul", query, constant(graph, f"adexport.scale_{scale!r}", np.array(scale, np.float32))
        )
        scores = emit("MatMul", scaled, emit("Transpose", key, perm=[0, 1, 3, 2]))
        if mask is not None:
            masked = constant(graph, "adexport.masked", np.array(MASKED, np.float32))
            scores = emit("Where", mask, scores, masked)
        context = emit("MatMul", emit("Softmax", scores, axis=-1), value)
    emit.replace(emit("Transpose", context, perm=[0, 2, 1, 3]))


def _repeat_heads(emit: Emitter, graph: ir.Graph, value: ir.Value | None, groups: int) -> ir.Value:
    """``[batch, kv, seq, size]`` to ``[batch, kv * groups, seq, size]``, each head repeated."""
    kept = constant(graph, "adexport.keep_4d", np.array([0, -1], np.int64))
    axis = constant(graph, "adexport.axis_2", np.array([2], np.int64))
    times = constant(graph, f"adexport.repeat_{groups}", np.array([1, 1, groups, 1, 1], np.int64))
    repeated = emit("Tile", emit("Unsqueeze", value, axis), times)
    shape = emit("Shape", value, start=2)
    return emit("Reshape", repeated, emit("Concat", kept, shape, axis=0))
