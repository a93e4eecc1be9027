"""Slots that cost nothing when nobody uses them: each stands in the branch of an ``If``.

Requires the graph's first node to be there. Ensures that both branches give the same where no row of
the batch has anything for the slot; the one without the slot is the frozen layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from adexport_runtime.slots import SlotInput

from .graph import Emitter, add_input

_PREFIX = "adapter_uses"


class Branch:
    """Emits the nodes of a branch; values of the graph around it can be used as they are."""

    def __init__(self, name: str) -> None:
        """``name`` begins the names of the branch's values: they must differ from all others."""
        self._name = name
        self._nodes: list[ir.Node] = []

    def __call__(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node with one output and return that output."""
        node = ir.node(op, list(inputs), attributes=attributes or None, domain=domain)
        node.outputs[0].name = f"{self._name}.{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    def graph(self, result: ir.Value, like: ir.Value | None, opsets: dict[str, int]) -> ir.Graph:
        """The branch, whose result has the type and the shape of ``like``, if that is known."""
        if like is not None:
            result.type, result.shape = like.type, like.shape
        return ir.Graph([], [result], nodes=self._nodes, opset_imports=opsets, name=self._name)


class Guard:
    """One flag for all slots of a kind."""

    def __init__(self, model: ir.Model, kind: str, ids: ir.Value) -> None:
        """Add the slot input that tells what rows use, and compute ``flag`` before all else."""
        self.slot = SlotInput(name=f"{_PREFIX}.{kind}", shape=("rows",), dtype="int64")
        self._opsets = model.graph.opset_imports
        uses = add_input(model.graph, self.slot.name, self.slot.shape, ir.DataType.INT64)
        emit = Emitter(model.graph, model.graph[0])
        most = emit("ReduceMax", emit("Gather", uses, ids, axis=0), keepdims=0)
        self.flag = emit("Cast", most, to=int(ir.DataType.BOOL))

    def choose(
        self,
        emit: Emitter,
        name: str,
        like: ir.Value,
        slotted: Callable[[Branch], ir.Value],
        plain: Callable[[Branch], ir.Value],
    ) -> ir.Value:
        """``slotted`` if any row uses such slots, else ``plain``."""

        def graph(key: str, body: Callable[[Branch], ir.Value]) -> ir.Graph:
            branch = Branch(f"{name}.{key}")
            return branch.graph(body(branch), like, self._opsets)

        return emit("If", self.flag, then_branch=graph("used", slotted), else_branch=graph("unused", plain))
