"""Precision: a float32 graph computes in float16 or bfloat16.

Requires a graph without opaque ops. Ensures that weights, slot inputs and all arithmetic are of
the chosen type, and that what callers bring (pixels) and the graph's outputs stay float32, but for caches.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from adexport_runtime import dtypes
from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.tensors import Array

from ..ops import PAST, PRESENT

#: the format's name of a float type -> ONNX's
TYPES = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}


def callers_inputs(model: ir.Model) -> frozenset[str]:
    """The float inputs of a trace that callers bring: not the caches."""
    inputs = (value for value in model.graph.inputs if value.dtype == ir.DataType.FLOAT)
    return frozenset(str(value.name) for value in inputs if not str(value.name).startswith(PAST))


def lower_precision(model: ir.Model, dtype: str, floats: frozenset[str] = frozenset()) -> None:
    """Convert ``model`` in place; ``fp32`` leaves it as it is. The inputs ``floats`` stay float32.

    Raises:
        BuildError: naming every frozen weight that would overflow.
    """
    if dtype == "fp32":
        return
    _check_range(model.graph, dtype)
    limit = dtypes.largest(dtype)

    def rounded(array: Array) -> Array:
        # a lone constant beyond the limit is a mask's "minus infinity": the nearest finite value
        return np.clip(array, -limit, limit).astype(dtypes.NUMPY[dtype])

    _retype(model.graph, TYPES["fp32"], TYPES[dtype], rounded)
    _keep_inputs_float32(model.graph, TYPES[dtype], floats)
    _keep_outputs_float32(model.graph, TYPES[dtype])


def widen_to_float32(model: ir.Model, dtype: str) -> None:
    """Let a lowered graph compute in float32 on its rounded weights (to check it on a CPU)."""
    _retype(model.graph, TYPES[dtype], TYPES["fp32"], lambda array: array.astype(np.float32))


def _check_range(graph: ir.Graph, dtype: str) -> None:
    limit = dtypes.largest(dtype)
    problems = []
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size <= 1:
            continue
        largest = float(np.abs(tensor.numpy()).max())
        if largest > limit:
            problems.append(
                Problem(
                    Code.OVERFLOW,
                    str(name),
                    got=f"{largest:.6g}",
                    expected=f"at most {limit:.6g}",
                    cause=f"the frozen weight does not fit {dtype}",
                    mend="build with --dtype bf16 or fp32",
                )
            )
    if problems:
        raise BuildError(f"{dtype} cannot hold the base", problems)


def _retype(
    graph: ir.Graph, source: ir.DataType, target: ir.DataType, convert: Callable[[Array], Array]
) -> None:
    """Let every value, weight and cast of type ``source`` be of type ``target``."""
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == source:
            value.const_value = ir.Tensor(convert(tensor.numpy()), dtype=target, name=name)
            value.type = ir.TensorType(target)
    for value in graph.inputs:
        if value.dtype == source:
            value.type = ir.TensorType(target)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        to = node.attributes.get("to") if node.op_type == "Cast" else None
        if to is not None and to.as_int() == source:
            node.attributes["to"] = ir.AttrInt64("to", int(target))
        filled = node.attributes.get("value") if node.op_type == "ConstantOfShape" else None
        if filled is not None and filled.as_tensor().dtype == source:
            array = convert(filled.as_tensor().numpy())
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array, dtype=target))
        for output in node.outputs:
            if output.dtype == source:
                output.type = ir.TensorType(target)


def _keep_inputs_float32(graph: ir.Graph, computed: ir.DataType, floats: frozenset[str]) -> None:
    for value in graph.inputs:
        if value.name not in floats:
            continue
        value.type = ir.TensorType(ir.DataType.FLOAT)
        cast = ir.node("Cast", [value], attributes={"to": int(computed)})
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(computed), value.shape
        value.replace_all_uses_with(cast.outputs[0])
        cast.replace_input_with(0, value)
        graph.insert_before(graph[0], cast)


def _keep_outputs_float32(graph: ir.Graph, computed: ir.DataType) -> None:
    for index, output in enumerate(list(graph.outputs)):
        if output.dtype != computed or str(output.name).startswith(PRESENT):
            continue
        name, output.name = output.name, f"{output.name}.{computed.name.lower()}"
        cast = ir.node("Cast", [output], attributes={"to": int(ir.DataType.FLOAT)})
        graph.append(cast)
        result = cast.outputs[0]
        result.name, result.shape = name, output.shape
        result.type = ir.TensorType(ir.DataType.FLOAT)
        graph.outputs[index] = result
