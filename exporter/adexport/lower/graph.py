"""Small tools that the passes share: emit nodes before a node, and put a value in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from ..ops import DOMAIN

#: adds a node with one output somewhere: ``emit("Add", x, y)`` returns the new value
Emit = Callable[..., ir.Value]


class Emitter:
    """Emits nodes right before ``node``: ``emit("Add", x, y)`` returns the new value."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        """Keep the graph and the place."""
        self._graph = graph
        self._node = node

    def __call__(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node with one output and return that output."""
        node = ir.node(op, list(inputs), attributes=attributes or None, domain=domain)
        self._graph.insert_before(self._node, node)
        return node.outputs[0]

    def replace(self, value: ir.Value) -> None:
        """Let ``value`` stand where the node's output stood, and remove the node."""
        old = self._node.outputs[0]
        if value.type is None:
            value.type = old.type
        if value.shape is None:
            value.shape = old.shape
        if old.is_graph_output():
            value.name = old.name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)


def opaque(graph: ir.Graph, op: str) -> Iterator[ir.Node]:
    """The opaque ops of one kind, in graph order; the graph may be changed meanwhile."""
    yield from [node for node in graph if node.domain == DOMAIN and node.op_type == op]


def constant(graph: ir.Graph, name: str, value: np.ndarray[Any, Any]) -> ir.Value:
    """An initializer of that name, made once."""
    known = graph.initializers.get(name)
    if known is not None:
        return known
    tensor = ir.Tensor(value, name=name)
    made = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(value.shape), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(made)
    return made


def add_input(graph: ir.Graph, name: str, shape: tuple[str | int, ...], dtype: ir.DataType) -> ir.Value:
    """A new graph input."""
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value
