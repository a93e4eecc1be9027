"""The local functions that slots are made of: each applies the weights of a row's adapter to that row.

A runtime inlines them, or runs a kernel of the same name instead. All pick rows by Gather: a mask would
let one tenant's NaN into another's rows. ``x`` and ``y`` are ``[batch, tokens, features]``, ``ids`` the
last input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from adexport_runtime.slots import Activation

from ..ops import (
    BOTTLENECK_ADD,
    BOTTLENECK_ADD_IF,
    DOMAIN,
    LORA_ADD,
    LORA_ADD_IF,
    LORA_BIAS_ADD_IF,
    ROW_ADD,
    ROW_LINEAR,
    ROW_SCALE,
    VERSION,
)
from .activation import activate
from .graph import Emit
from .guard import Branch

#: the inputs of each function that are rows of banks
BANKS = {
    LORA_ADD: ("A", "B"),
    LORA_ADD_IF: ("A", "B"),
    LORA_BIAS_ADD_IF: ("A", "B"),
    ROW_SCALE: ("scale",),
    ROW_ADD: ("bias",),
    ROW_LINEAR: ("weight", "bias"),
    BOTTLENECK_ADD: ("down", "down_bias", "up", "up_bias"),
    BOTTLENECK_ADD_IF: ("down", "down_bias", "up", "up_bias"),
}
_ACTIVATIONS = "activations"
_Body = Callable[..., ir.Value]


def call(model: ir.Model, emit: Emit, function: str, *inputs: ir.Value | None) -> ir.Value:
    """Emit a call, and see to it that the model has the function."""
    names, body = _FUNCTIONS[function]
    _define(model, function, names, body)
    return emit(function, *inputs, domain=DOMAIN)


def call_bottleneck(
    model: ir.Model, emit: Emit, function: str, *inputs: ir.Value | None, activations: Sequence[Activation]
) -> ir.Value:
    """The same of a bottleneck, whose ``code`` picks one of the model's activations (None: of one)."""
    names = ["y", "x", "down", "down_bias", "up", "up_bias", "code", "used", "ids"]
    guarded = function == BOTTLENECK_ADD_IF
    if not guarded:
        names.remove("used")

    def body(emit: Emit, *values: ir.Value) -> ir.Value:
        given = dict(zip(names, values, strict=True))
        used = given.pop("used", None)
        if len(activations) == 1:
            del given["code"]

        def added(emit: Emit) -> ir.Value:
            return _bottleneck_add(emit, activations=activations, **given)

        return added(emit) if used is None else _if(emit, used, added, lambda emit: _same(emit, given["y"]))

    _define(model, function, names, body, [_ACTIVATIONS])
    added = emit(function, *inputs, domain=DOMAIN, **{_ACTIVATIONS: ",".join(activations)})
    if inputs[0] is not None:  # ONNX Runtime 1.23 cannot infer it of a kernel
        added.type, added.shape = inputs[0].type, inputs[0].shape
    return added


def _define(
    model: ir.Model, name: str, inputs: Sequence[str], body: _Body, attributes: Sequence[str] = ()
) -> None:
    if (DOMAIN, name, "") in model.functions:
        return
    values = [ir.Value(name=value) for value in inputs]
    nodes: list[ir.Node] = []

    def emit(op: str, *operands: ir.Value, **given: object) -> ir.Value:
        nodes.append(ir.node(op, list(operands), attributes=given or None))  # type: ignore[arg-type]
        return nodes[-1].outputs[0]

    result = body(emit, *values)
    graph = ir.Graph(
        values, [result], nodes=nodes, opset_imports={"": model.graph.opset_imports[""]}, name=name
    )
    unset = [ir.Attr(attribute, ir.AttributeType.STRING, None) for attribute in attributes]
    made = ir.Function(DOMAIN, name, "", graph=graph, attributes=unset)
    model.functions[made.identifier()] = made
    model.opset_imports[DOMAIN] = VERSION


def _if(emit: Emit, flag: ir.Value, used: Callable[[Emit], ir.Value], unused: _Body) -> ir.Value:
    """A function's choice: the branches of an ``If``."""
    branches = {}
    for key, body in (("then_branch", used), ("else_branch", unused)):
        branch = Branch(key)
        branches[key] = branch.graph(body(branch), None, {})
    return emit("If", flag, **branches)


def _same(emit: Emit, y: ir.Value) -> ir.Value:
    return emit("Identity", y)


def _lora_add(emit: Emit, y: ir.Value, x: ir.Value, a: ir.Value, b: ir.Value, ids: ir.Value) -> ir.Value:
    """``y + (x A[ids]) B[ids]`` (arXiv:2106.09685, the scaling in B)."""
    down = emit("MatMul", x, emit("Gather", a, ids, axis=0))
    return emit("Add", y, emit("MatMul", down, emit("Gather", b, ids, axis=0)))


def _lora_add_if(
    emit: Emit, y: ir.Value, x: ir.Value, a: ir.Value, b: ir.Value, used: ir.Value, ids: ir.Value
) -> ir.Value:
    """The same; ``y`` if no row uses such a slot."""
    return _if(emit, used, lambda emit: _lora_add(emit, y, x, a, b, ids), lambda emit: _same(emit, y))


def _lora_bias_add_if(
    emit: Emit,
    y: ir.Value,
    bias: ir.Value,
    x: ir.Value,
    a: ir.Value,
    b: ir.Value,
    used: ir.Value,
    ids: ir.Value,
) -> ir.Value:
    """The same of ``y + bias``, which both branches add: a branch that did nothing would be a copy."""
    return _if(
        emit,
        used,
        lambda emit: _lora_add(emit, emit("Add", y, bias), x, a, b, ids),
        lambda emit: emit("Add", y, bias),
    )


def _bottleneck_add(
    emit: Emit,
    y: ir.Value,
    x: ir.Value,
    down: ir.Value,
    down_bias: ir.Value,
    up: ir.Value,
    up_bias: ir.Value,
    ids: ir.Value,
    activations: Sequence[Activation],
    code: ir.Value | None = None,
) -> ir.Value:
    """``y + act(x down[ids] + down_bias[ids]) up[ids] + up_bias[ids]`` (arXiv:1902.00751)."""
    inner = _row_linear(emit, x, down, down_bias, ids)
    active = activate(emit, inner, activations[0])
    if code is not None:
        count = _constant(emit, [len(activations)])
        which = emit("Mod", emit("Gather", code, ids, axis=0), count)
        for index, name in enumerate(activations[1:], start=1):
            flag = emit(
                "Unsqueeze", emit("Equal", which, _constant(emit, [index])), _constant(emit, [1, 2])
            )
            active = emit("Where", flag, activate(emit, inner, name), active)
    return emit("Add", y, _row_linear(emit, active, up, up_bias, ids))


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
    return emit("Unsqueeze", emit("Gather", vector, ids, axis=0), _constant(emit, [1]))


def _constant(emit: Emit, values: list[int]) -> ir.Value:
    return emit("Constant", value=ir.Tensor(np.array(values, np.int64)))


_FUNCTIONS: dict[str, tuple[tuple[str, ...], _Body]] = {
    LORA_ADD: (("y", "x", "A", "B", "ids"), _lora_add),
    LORA_ADD_IF: (("y", "x", "A", "B", "used", "ids"), _lora_add_if),
    LORA_BIAS_ADD_IF: (("y", "bias", "x", "A", "B", "used", "ids"), _lora_bias_add_if),
    ROW_SCALE: (("x", "scale", "ids"), _row_scale),
    ROW_ADD: (("y", "bias", "ids"), _row_add),
    ROW_LINEAR: (("x", "weight", "bias", "ids"), _row_linear),
}
