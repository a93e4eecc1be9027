"""The local functions that slots are made of: each applies the weights of a row's adapter to that row.

A runtime inlines them, or runs a kernel of the same name instead. All pick rows by Gather: a mask would
let one tenant's NaN into another's rows. ``x`` and ``y`` are ``[batch, tokens, features]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from ..ops import DOMAIN, LORA_ADD, ROW_ADD, ROW_LINEAR, ROW_SCALE, VERSION
from .graph import Emit


def call(model: ir.Model, emit: Emit, function: str, *inputs: ir.Value | None) -> ir.Value:
    """Emit a call, and see to it that the model has the function."""
    names, body = _FUNCTIONS[function]
    key = (DOMAIN, function, "")
    if key not in model.functions:
        made = _function(function, names, body, model.graph.opset_imports[""])
        model.functions[made.identifier()] = made
        model.opset_imports[DOMAIN] = VERSION
    return emit(function, *inputs, domain=DOMAIN)


def _lora_add(emit: Emit, y: ir.Value, x: ir.Value, a: ir.Value, b: ir.Value, ids: ir.Value) -> ir.Value:
    """``y + (x A[ids]) B[ids]`` (arXiv:2106.09685, the scaling in B)."""
    down = emit("MatMul", x, emit("Gather", a, ids, axis=0))
    return emit("Add", y, emit("MatMul", down, emit("Gather", b, ids, axis=0)))


def _row_scale(emit: Emit, x: ir.Value, scale: ir.Value, ids: ir.Value) -> ir.Value:
    """``x * scale[ids]`` (arXiv:2205.05638)."""
    return emit("Mul", x, _by_token(emit, scale, ids))


def _row_add(emit: Emit, y: ir.Value, bias: ir.Value, ids: ir.Value) -> ir.Value:
    """``y + bias[ids]``."""
    return emit("Add", y, _by_token(emit, bias, ids))


def _row_linear(emit: Emit, x: ir.Value, weight: ir.Value, bias: ir.Value, ids: ir.Value) -> ir.Value:
    """``x weight[ids] + bias[ids]``."""
    y = emit("MatMul", x, emit("Gather", weight, ids, axis=0))
    return emit("Add", y, _by_token(emit, bias, ids))


def _by_token(emit: Emit, vector: ir.Value, ids: ir.Value) -> ir.Value:
    """``[rows, features]`` to the rows' ``[batch, 1, features]``."""
    axis = emit("Constant", value=ir.Tensor(np.array([1], np.int64)))
    return emit("Unsqueeze", emit("Gather", vector, ids, axis=0), axis)


_FUNCTIONS: dict[str, tuple[tuple[str, ...], Callable[..., ir.Value]]] = {
    LORA_ADD: (("y", "x", "A", "B", "ids"), _lora_add),
    ROW_SCALE: (("x", "scale", "ids"), _row_scale),
    ROW_ADD: (("y", "bias", "ids"), _row_add),
    ROW_LINEAR: (("x", "weight", "bias", "ids"), _row_linear),
}


def _function(name: str, inputs: Sequence[str], body: Callable[..., ir.Value], opset: int) -> ir.Function:
    values = [ir.Value(name=value) for value in inputs]
    nodes: list[ir.Node] = []

    def emit(op: str, *operands: ir.Value, **attributes: object) -> ir.Value:
        nodes.append(ir.node(op, list(operands), attributes=attributes or None))  # type: ignore[arg-type]
        return nodes[-1].outputs[0]

    result = body(emit, *values)
    graph = ir.Graph(values, [result], nodes=nodes, opset_imports={"": opset})
    return ir.Function(DOMAIN, name, "", graph=graph, attributes=[])
