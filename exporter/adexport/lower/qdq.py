"""Quantized weights as ``DequantizeLinear``, in standard ops: for targets that fuse it with the product.

Requires a float graph without opaque ops and without branches. Ensures that frozen weights which are to be
quantized are integers with a scale for each block of inputs; the arithmetic behind them stays float.

Of 4 bits they are the very integers that :mod:`.quantization` packs. ONNX Runtime's of 8 bits have negative
scales, which TensorRT refuses: here ``W = Q * max |W| / 127``, a little nearer to the float weights.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.quantization import Quantization
from adexport_runtime.tensors import Array

from .graph import Emitter, constant
from .quantization import Frozen, embedding_lookups, frozen_matrix, pack

#: what brings scales for blocks, and integers of 4 bits
_SINCE_OPSET = 21
_TYPES = {8: np.dtype(np.int8), 4: np.dtype(ml_dtypes.int4)}


def check_quantization(quantization: Quantization | None) -> None:
    """See whether weights can be stored so.

    Raises:
        BuildError: activations are to be quantized, each token by its own scale.
    """
    if quantization is not None and quantization.method == "dynamic":
        raise BuildError(
            "the bundle cannot be lowered for TensorRT",
            Problem(
                Code.UNSUPPORTED,
                "quantization",
                got="dynamic: int8 activations with a scale for each token",
                expected="weight-only",
                cause="TensorRT has no int8 scale for each token; one for a batch would let rows meet",
                mend="give --quantize int8 --quantize-method weight-only, or --quantize none",
            ),
        )


def lower_qdq(model: ir.Model, quantization: Quantization | None, frozen: Frozen) -> None:
    """Quantize ``model`` in place; None leaves it as it is."""
    if quantization is None:
        return
    graph = model.graph
    wanted = frozen.linears if quantization.lm_head else frozen.linears - frozen.logits
    for node in list(graph):
        found = frozen_matrix(node, wanted)
        if found is not None:
            name, matrix = found
            node.replace_input_with(1, _dequantized(graph, node, name, matrix, quantization))
    if quantization.embeddings:
        for node in embedding_lookups(graph, quantization):
            table = node.inputs[0]
            assert table is not None
            assert table.const_value is not None
            values = table.const_value.numpy().T
            rows = _dequantized(graph, node, f"{table.name}.rows", values, quantization)
            node.replace_input_with(0, Emitter(graph, node)("Transpose", rows, perm=[1, 0]))
    # between opset 20 and this, the ops of a trace gained types, nothing else
    model.opset_imports[""] = max(model.opset_imports[""], _SINCE_OPSET)


def _dequantized(
    graph: ir.Graph, node: ir.Node, name: str, matrix: Array, quantization: Quantization
) -> ir.Value:
    """The values ``[in, out]`` of a weight, read from integers in blocks along ``in``."""
    bits, size = quantization.bits, quantization.block_size
    assert size is not None
    names = f"{name}.int{bits}", f"{name}.scales"
    if names[0] not in graph.initializers:
        integers, scales = _halves(matrix, size) if bits == 4 else _bytes(matrix, size)
        constant(graph, names[0], integers.astype(_TYPES[bits]))
        constant(graph, names[1], np.where(scales == 0, np.float32(1), scales))  # a block of zeros
    emit = Emitter(graph, node)
    values = emit("DequantizeLinear", *(graph.initializers[key] for key in names), axis=0, block_size=size)
    if matrix.shape[0] % size:  # whole blocks, the last one padded
        ends = (
            constant(graph, f"adexport.{key}", np.array([at], np.int64))
            for key, at in (("from_0", 0), (f"to_{matrix.shape[0]}", matrix.shape[0]), ("axis_0", 0))
        )
        values = emit("Slice", values, *ends)
    return values


def _halves(matrix: Array, size: int) -> tuple[Array, Array]:
    """Integers from -8 to 7 ``[blocks * size, out]`` and scales ``[blocks, out]``, as ONNX Runtime's."""
    packed, scales = pack(matrix, 4, size)
    low_first = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    return np.ascontiguousarray(low_first.T.astype(np.int16) - 8), np.ascontiguousarray(scales.T)


def _bytes(matrix: Array, size: int) -> tuple[Array, Array]:
    """The same from -127 to 127."""
    into, out = matrix.shape
    blocks = np.zeros((-(-into // size), size, out), np.float32)
    blocks.reshape(-1, out)[:into] = matrix
    scales = np.abs(blocks).max(axis=1) / np.float32(127)
    integers = np.rint(blocks / np.where(scales == 0, np.float32(1), scales)[:, None])
    return integers.reshape(-1, out), scales
