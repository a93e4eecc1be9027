"""Attention with a KV cache in standard ops: ``adexport::CachedAttention`` where there is no kernel for it.

Requires caches with room for what is new. Ensures what :mod:`.cached` ensures, but for the place: the
result is a copy of the cache with the new keys and values in it, or, with ``in_place`` tokens of room, the
cache itself (ONNX ``TensorScatter``).

What lies behind a row's tokens may be anything, NaN too, and ``0 * NaN`` is NaN: a copy has zeros there.
In place nothing is cleaned: there a runtime must begin each text on zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..ops import CACHED_ATTENTION
from .attention import MASKED
from .graph import Emitter, constant, opaque

#: what brings ``RotaryEmbedding``, and what brings ``TensorScatter``
_SINCE_OPSET, _IN_PLACE_SINCE_OPSET = 23, 24


def lower_cached_standard(
    model: ir.Model, *, fused: Callable[[ir.Node], bool], in_place: int | None = None
) -> None:
    """Lower all cached attention; ``fused`` tells which may be the ONNX ``Attention`` op."""
    graph = model.graph
    places: _Places | None = None
    for node in opaque(graph, CACHED_ATTENTION):
        places = places or _Places(graph, node)
        layer = _Layer(graph, node, places, in_place)
        layer.lower(fused=fused(node) and not node.attributes["softcap"].as_float())
    if places is not None:  # between opset 20 and these, the ops of a trace gained types, nothing else
        since = _SINCE_OPSET if in_place is None else _IN_PLACE_SINCE_OPSET
        model.opset_imports[""] = max(model.opset_imports[""], since)


class _Places:
    """Where new tokens and keys stand, computed once for all layers."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph = graph
        emit = self._emit = Emitter(graph, graph[0])
        self.past = node.inputs[6]
        ids = next(value for value in graph.inputs if value.name == "input_ids")
        room = emit("Shape", node.inputs[3], start=2, end=3)
        self._keys = self._range(room)
        new = self._range(emit("Shape", ids, start=1))
        #: the position of every new token, int64 ``[batch, seq]``
        self.each = emit("Add", self._at(self.past, 1), new)
        #: and as places along a cache, ``[batch, 1, seq, 1]``
        self.along = self._at(self.each, 1, 3)
        #: whether a place in a cache holds a token of the past, bool ``[batch, 1, room, 1]``
        self.old = emit("Less", self._at(self._keys, 1), self._at(self.past, 1, 2, 3))
        #: how far each key is behind each query, ``[batch, 1, seq, room]``
        self._behind = emit("Sub", self.along, self._keys)
        self._seen: dict[int, ir.Value] = {}

    def seen(self, window: int) -> ir.Value:
        """Whether a query sees a key, bool ``[batch, 1, seq, room]``; each sees at least its own."""
        if window not in self._seen:
            emit = self._emit
            seen = emit("GreaterOrEqual", self._behind, self._number("zero", 0))
            if window > 0:
                near = emit("Less", self._behind, self._number(f"window_{window}", window))
                seen = emit("And", seen, near)
            self._seen[window] = seen
        return self._seen[window]

    def _range(self, size: ir.Value) -> ir.Value:
        ends = self._number("zero", 0), self._emit("Squeeze", size), self._number("step", 1)
        return self._emit("Range", *ends)

    def _at(self, value: ir.Value | None, *axes: int) -> ir.Value:
        """With sizes of 1 at ``axes``."""
        name = "adexport.axes_" + "_".join(str(axis) for axis in axes)
        return self._emit("Unsqueeze", value, constant(self._graph, name, np.array(axes, np.int64)))

    def _number(self, name: str, value: int) -> ir.Value:
        return constant(self._graph, f"adexport.{name}", np.array(value, np.int64))


class _Layer:
    """Emits one attention."""

    def __init__(self, graph: ir.Graph, node: ir.Node, places: _Places, in_place: int | None) -> None:
        self._graph, self._node, self._places = graph, node, places
        self._in_place = in_place
        self._emit = Emitter(graph, node)
        self._heads, self._kv_heads = (node.attributes[n].as_int() for n in ("num_heads", "kv_num_heads"))
        context = node.outputs[0]
        assert context.shape is not None
        size = context.shape[3]
        assert isinstance(size, int)
        self._size = size

    def lower(self, *, fused: bool) -> None:
        """The context, and the caches under the names that they have."""
        node, emit = self._node, self._emit
        counts = (self._heads, self._kv_heads, self._kv_heads)
        query, key, value = (
            self._heads_of(given, count) for given, count in zip(node.inputs[:3], counts, strict=True)
        )
        cos, sin = (*node.inputs[7:], None, None)[:2]
        if cos is not None:
            query, key = self._rotated(query, cos, sin), self._rotated(key, cos, sin)
        keys, values = (
            self._written(past, new) for past, new in zip(node.inputs[3:5], (key, value), strict=True)
        )
        for old, made in zip(node.outputs[1:], (keys, values), strict=True):
            made.type, made.shape, name = old.type, old.shape, old.name
            old.replace_all_uses_with(made, replace_graph_outputs=True)
            old.name, made.name = f"{name}.opaque", name
        seen = self._places.seen(node.attributes["window"].as_int())
        if fused:
            scale = node.attributes["scale"].as_float()
            context = emit("Attention", query, keys, values, seen, scale=scale)
        else:
            context = self._spelt(query, keys, values, seen)
        emit.replace(emit("Transpose", context, perm=[0, 2, 1, 3]))

    def _spelt(self, query: ir.Value, keys: ir.Value, values: ir.Value, seen: ir.Value) -> ir.Value:
        """In primitive ops. Heads that share keys stand behind each other, so that no key is repeated."""
        emit, attributes = self._emit, self._node.attributes
        scale, softcap = (attributes[name].as_float() for name in ("scale", "softcap"))
        grouped = self._heads > self._kv_heads
        room = emit("Shape", keys, start=2, end=3)
        query = emit("Mul", query, self._number(f"scale_{scale!r}", scale))
        if grouped:
            query = self._heads_of(query, self._kv_heads)
        scores = emit("MatMul", query, emit("Transpose", keys, perm=[0, 1, 3, 2]))
        if softcap:
            cap = self._number(f"softcap_{softcap!r}", softcap)
            scores = emit("Mul", emit("Tanh", emit("Div", scores, cap)), cap)
        if grouped:
            scores = self._by_room(scores, self._heads, room)
        scores = emit("Where", seen, scores, self._number("masked", MASKED))
        weights = emit("Softmax", scores, axis=-1)
        if grouped:
            weights = self._by_room(weights, self._kv_heads, room)
        context = emit("MatMul", weights, values)
        return self._heads_of(context, self._heads) if grouped else context

    def _rotated(self, x: ir.Value, cos: ir.Value, sin: ir.Value | None) -> ir.Value:
        """Rotary embedding (arXiv:2104.09864), in halves, of the first features of each head."""
        assert cos.shape is not None
        half = cos.shape[1]
        assert isinstance(half, int)
        part = 2 * half if 2 * half < self._size else 0
        return self._emit("RotaryEmbedding", x, cos, sin, self._places.each, rotary_embedding_dim=part)

    def _written(self, past: ir.Value | None, new: ir.Value) -> ir.Value:
        """The cache with what is new behind the past of each row."""
        emit, places = self._emit, self._places
        assert past is not None
        if self._in_place is not None:
            past.shape = ir.Shape(
                [size if at != 2 else self._in_place for at, size in enumerate(past.shape or ())]
            )
            return emit("TensorScatter", past, new, places.past, axis=2, mode="linear")
        clean = emit("Where", places.old, past, self._number("zero_float", 0.0))
        at = emit("Expand", places.along, emit("Shape", new))
        return emit("ScatterElements", clean, at, new, axis=2)

    def _heads_of(self, x: ir.Value | None, heads: int) -> ir.Value:
        """``[batch, heads, tokens, size]`` with a number of heads that can be read from the graph."""
        shape = np.array([0, heads, -1, self._size], np.int64)
        return self._emit(
            "Reshape", x, constant(self._graph, f"adexport.heads_{heads}_of_{self._size}", shape)
        )

    def _by_room(self, scores: ir.Value, heads: int, room: ir.Value) -> ir.Value:
        """``[batch, heads, queries, room]``."""
        kept = constant(self._graph, f"adexport.heads_{heads}", np.array([0, heads, -1], np.int64))
        return self._emit("Reshape", scores, self._emit("Concat", kept, room, axis=0))

    def _number(self, name: str, value: float) -> ir.Value:
        return constant(self._graph, f"adexport.{name}", np.array(value, np.float32))
