"""Attention with a KV cache: ``adexport::CachedAttention`` to ONNX Runtime's ``GroupQueryAttention``.

Requires that rows with a past bring whole rows of new tokens, that only a batch of one brings more than
one token to a past, and that the caches have room. Ensures that a cache bound in place (the past and the
present in one buffer) is written in place: a step then copies none of it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..ops import CACHED_ATTENTION
from .graph import Emitter, constant, opaque

_MICROSOFT = "com.microsoft"
_SPLIT = (0, 2, 1, 3)
#: the rotary embedding of the attention itself wants heads, and what it rotates, in multiples of this
_ROTARY_STEP = 16


def lower_cached(model: ir.Model) -> None:
    """Lower all cached attention in place."""
    graph = model.graph
    positions: _Positions | None = None
    for node in opaque(graph, CACHED_ATTENTION):
        positions = positions or _Positions(graph, node)
        _lower_one(graph, node, positions)
        model.opset_imports[_MICROSOFT] = 1


class _Positions:
    """Where the rows of a batch stand, computed once for all layers."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        lengths, self._past = node.inputs[5:7]
        self._graph = graph
        emit = self._emit = Emitter(graph, graph[0])
        ids = next(value for value in graph.inputs if value.name == "input_ids")
        self._seq = emit("Squeeze", emit("Shape", ids, start=1))
        one = constant(graph, "adexport.one", np.array([1], np.int64))
        int32 = int(ir.DataType.INT32)
        #: the last position of each row, int32 ``[batch]``
        self.last = emit("Cast", emit("Sub", emit("Add", lengths, self._past), one), to=int32)
        #: how far the longest row reaches, an int32 scalar
        self.total = emit(
            "Cast", emit("Add", emit("ReduceMax", self._past, keepdims=0), self._seq), to=int32
        )
        self._each: ir.Value | None = None

    @property
    def each(self) -> ir.Value:
        """The position of every new token, int64 ``[batch, seq]``."""
        if self._each is None:
            zero, step = (
                constant(self._graph, f"adexport.{name}", np.array(value, np.int64))
                for name, value in (("zero", 0), ("step", 1))
            )
            axis = constant(self._graph, "adexport.axis_1", np.array([1], np.int64))
            new = self._emit("Range", zero, self._seq, step)
            self._each = self._emit("Add", self._emit("Unsqueeze", self._past, axis), new)
        return self._each


def _lower_one(graph: ir.Graph, node: ir.Node, positions: _Positions) -> None:
    emit = Emitter(graph, node)
    query, key, value = (_flat(emit, graph, given) for given in node.inputs[:3])
    cos, sin = (*node.inputs[7:], None, None)[:2]
    heads, kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    context = node.outputs[0]
    assert context.shape is not None
    size = context.shape[3]
    assert isinstance(size, int)
    if cos is not None and (size % _ROTARY_STEP or 2 * _half(cos) % _ROTARY_STEP):
        query, key = (
            _rotated(emit, given, number, positions, cos, sin)
            for given, number in ((query, heads), (key, kv_heads))
        )
        cos = sin = None
    attended = ir.node(
        "GroupQueryAttention",
        [query, key, value, *node.inputs[3:5], positions.last, positions.total, cos, sin],
        attributes={
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "scale": node.attributes["scale"].as_float(),
            "local_window_size": node.attributes["window"].as_int() or -1,
            "softcap": node.attributes["softcap"].as_float(),
            "do_rotary": int(cos is not None),
        },
        domain=_MICROSOFT,
        num_outputs=3,
    )
    graph.insert_before(node, attended)
    for old, new in zip(node.outputs[1:], attended.outputs[1:], strict=True):
        new.type, new.shape, name = old.type, old.shape, old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = f"{name}.opaque", name
    split = constant(graph, f"adexport.heads_{heads}_{size}", np.array([0, 0, heads, size], np.int64))
    emit.replace(emit("Reshape", attended.outputs[0], split))


def _rotated(
    emit: Emitter,
    flat: ir.Value,
    heads: int,
    positions: _Positions,
    cos: ir.Value,
    sin: ir.Value | None,
) -> ir.Value:
    """Rotary embedding by an op of its own, on ``[batch, seq, heads * size]``."""
    return emit(
        "RotaryEmbedding",
        flat,
        positions.each,
        cos,
        sin,
        domain=_MICROSOFT,
        num_heads=heads,
        rotary_embedding_dim=2 * _half(cos),
    )


def _half(table: ir.Value) -> int:
    """How many angles a position has."""
    assert table.shape is not None
    half = table.shape[1]
    assert isinstance(half, int)
    return half


def _flat(emit: Emitter, graph: ir.Graph, value: ir.Value | None) -> ir.Value:
    """``[batch, heads, seq, size]`` to ``[batch, seq, heads * size]``."""
    assert value is not None
    made = value.producer()
    by_token: ir.Value | None
    if made is not None and _splits_heads(made):
        by_token = made.inputs[0]  # the model has split the heads just before: undo it
    else:
        by_token = emit("Transpose", value, perm=_SPLIT)
    joined = constant(graph, "adexport.join_heads", np.array([0, 0, -1], np.int64))
    return emit("Reshape", by_token, joined)


def _splits_heads(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == _SPLIT
