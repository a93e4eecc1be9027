"""Slots whose inputs come with a row for each row of the batch: no ``adapter_ids``, nothing to pick.

Requires a graph whose slots pick their rows by ``Gather(input, adapter_ids, axis=0)``, in local functions,
branches, or the graph itself. Ensures that no such node is left: a runtime lays the rows of a batch side
by side once, not in every layer of every step.
"""

from __future__ import annotations

import onnx_ir as ir

from ..ops import DOMAIN


def lower_batched(model: ir.Model, ids: ir.Value) -> None:
    """Drop ``ids`` and every Gather by it, in place."""
    for function in model.functions.values():
        if function.domain == DOMAIN:
            inputs = function.graph.inputs
            _drop_gathers(inputs[-1])
            inputs.remove(inputs[-1])
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == DOMAIN and node.inputs[-1] is ids:
            node.resize_inputs(len(node.inputs) - 1)
    _drop_gathers(ids)
    model.graph.inputs.remove(ids)


def _drop_gathers(ids: ir.Value) -> None:
    for node in [use.node for use in ids.uses()]:
        assert node.op_type == "Gather"
        assert node.inputs[1] is ids
        assert node.inputs[0] is not None
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        assert node.graph is not None
        node.graph.remove(node, safe=True)
    assert not ids.uses()
