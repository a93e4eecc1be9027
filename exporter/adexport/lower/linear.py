"""Linear layers and their slots: ``adexport::Linear`` to MatMul, Add and a local function.

Requires opaque ``Linear`` ops; leaves none. Ensures that every planned site has its slot inputs,
and that a layer without a slot is exactly the frozen layer.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from adexport_runtime.manifest import LinearSlot, Site, SlotInput

from ..ops import DOMAIN, LINEAR, LORA_ADD, VERSION
from .graph import Emitter, add_input, constant, opaque

ADAPTER_IDS = "adapter_ids"
BATCH = "batch"


def lower_linears(model: ir.Model, sites: Collection[str]) -> tuple[Site, ...]:
    """Lower all linear layers; those in ``sites`` get a LoRA slot.

    Every site must be one of :func:`slot_candidates`. Returns the sites with their slot inputs,
    in graph order. A layer that the graph runs several times (shared layers) is one site with
    one pair of slot inputs.
    """
    graph = model.graph
    wanted = frozenset(sites)
    made: dict[str, Site] = {}
    inputs: dict[str, ir.Value] = {}
    ids = add_input(graph, ADAPTER_IDS, ("ids",), ir.DataType.INT64) if wanted else None
    for node in opaque(graph, LINEAR):
        emit = Emitter(graph, node)
        x, weight, bias = (*node.inputs, None)[:3]
        assert x is not None
        assert weight is not None
        site = _site(node, weight)
        matrix = (
            weight if node.attributes["transposed"].as_int() else emit("Transpose", weight, perm=[1, 0])
        )
        y = emit("MatMul", x, matrix)
        if bias is not None:
            y = emit("Add", y, bias)
        if site.path in wanted:
            if site.path not in made:
                made[site.path] = site
                for factor in (site.linear.lora_A, site.linear.lora_B):
                    inputs[factor.name] = add_input(graph, factor.name, factor.shape, ir.DataType.FLOAT)
            a, b = inputs[site.linear.lora_A.name], inputs[site.linear.lora_B.name]
            y = _add_slot(graph, emit, y, x, a, b, ids)
        emit.replace(y)
    if made:
        function = _lora_add(graph.opset_imports[""])
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = VERSION
    return tuple(made.values())


def _add_slot(graph: ir.Graph, emit: Emitter, y: ir.Value, x: ir.Value, *bank: ir.Value | None) -> ir.Value:
    """The slot behind ``y``; it works on ``[batch, tokens, features]``, so other ranks are bent."""
    assert x.shape is not None
    if len(x.shape) == 3:
        return emit(LORA_ADD, y, x, *bank, domain=DOMAIN)
    tokens = constant(graph, "adexport.by_row", np.array([0, -1], np.int64))

    def by_row(value: ir.Value) -> ir.Value:
        return emit("Reshape", value, emit("Concat", tokens, emit("Shape", value, start=-1), axis=0))

    slotted = emit(LORA_ADD, by_row(y), by_row(x), *bank, domain=DOMAIN)
    return emit("Reshape", slotted, emit("Shape", y))


def linear_layers(model: ir.Model) -> dict[str, bool]:
    """The linear layers of a trace by module path, in graph order, and whether each can be a site.

    A layer can be one if the batch comes first wherever it is used; where a model mixes the rows
    before a layer, no row of it belongs to one tenant.
    """
    layers: dict[str, bool] = {}
    for node in opaque(model.graph, LINEAR):
        x = node.inputs[0]
        assert x is not None
        path = node.attributes["site"].as_string()
        by_row = x.shape is not None and len(x.shape) > 1 and str(x.shape[0]) == BATCH
        layers[path] = by_row and layers.get(path, True)
    return layers


def slot_candidates(model: ir.Model) -> tuple[str, ...]:
    """The linear layers of a trace that can be sites."""
    return tuple(path for path, fit in linear_layers(model).items() if fit)


def _site(node: ir.Node, weight: ir.Value) -> Site:
    attributes = node.attributes
    path = attributes["site"].as_string()
    into, out = attributes["in_features"].as_int(), attributes["out_features"].as_int()
    rank = f"{path}.rank"  # a symbol for each site: sites may differ in rank
    assert weight.name is not None
    return Site(
        path=path,
        weight=weight.name,
        in_features=into,
        out_features=out,
        linear=LinearSlot(
            lora_A=SlotInput(name=f"{path}.lora_A", shape=("rows", into, rank)),
            lora_B=SlotInput(name=f"{path}.lora_B", shape=("rows", rank, out)),
        ),
    )


def _lora_add(opset: int) -> ir.Function:
    """``LoraAdd(y, x, A, B, ids) = y + (x A[ids]) B[ids]`` (arXiv:2106.09685, the scaling in B).

    Gather picks the rows: a mask would let one tenant's NaN into another's rows.
    """
    y, x, a, b, ids = (ir.Value(name=name) for name in ("y", "x", "A", "B", "ids"))
    gathered_a = ir.node("Gather", [a, ids], attributes={"axis": 0})
    gathered_b = ir.node("Gather", [b, ids], attributes={"axis": 0})
    down = ir.node("MatMul", [x, gathered_a.outputs[0]])
    up = ir.node("MatMul", [down.outputs[0], gathered_b.outputs[0]])
    total = ir.node("Add", [y, up.outputs[0]])
    graph = ir.Graph(
        [y, x, a, b, ids],
        total.outputs,
        nodes=[gathered_a, gathered_b, down, up, total],
        opset_imports={"": opset},
    )
    return ir.Function(DOMAIN, LORA_ADD, "", graph=graph, attributes=[])
