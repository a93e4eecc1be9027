"""Quantization: frozen weights of linear layers become integers; slots stay as they are.

Requires a float32 graph without opaque ops. Ensures that every product
with a frozen weight that is to be quantized reads integers, also inside the branches of an ``If``.
Only weights that :func:`find_frozen` named can be: what a slot multiplies with is never among them.

Weight-only: ONNX Runtime's ``MatMulNBits``, packed by its own functions. Dynamic, for ``x`` of any
shape with the features last:

    y = m / 127 * (round(127 x / m) · Q) * scale        m = max |x| over a token's features
    Q = round(W / scale)                                scale = max |W| / 127, for each output

ONNX's ``DynamicQuantizeLinear`` has one ``m`` for the whole tensor: a tenant with large values would
then blur all other rows of the batch, and one with an infinity would end them. Here each token has its
own, as in Dettmers et al., "LLM.int8()" (2022), section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from adexport_runtime.backends.onnxruntime import import_onnxruntime
from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.outputs import LOGITS
from adexport_runtime.quantization import Quantization
from adexport_runtime.tensors import Array

from ..ops import HEAD, LINEAR
from .graph import Emitter, constant, opaque

#: begins the names of constants: other passes have theirs
_OURS = "adexport.quantized"
MICROSOFT = "com.microsoft"
_INPUT_IDS = "input_ids"
_ZERO_POINT = 128
#: the largest integer of a weight; inside a branch 7 bits: what ONNX Runtime does for CPUs that add two
#: products uint8 · int8 in 16 bits, it does not do there, and 2 · 255 · 64 still fits
_LARGEST, _LARGEST_INSIDE = 127, 64
#: keeps a token of zeros from being divided by zero, and is lost in any other
_TINY = 1e-30


@dataclass(frozen=True)
class Frozen:
    """Names of frozen weights: of all linear layers, and of those among them that give the logits."""

    linears: frozenset[str]
    logits: frozenset[str]


def find_frozen(model: ir.Model) -> Frozen:
    """The frozen weights of a trace. Requires its opaque ops."""
    linears = frozenset(_weight(node) for node in opaque(model.graph, LINEAR))
    return Frozen(linears, frozenset(_logits_weights(model.graph)))


def lower_quantization(model: ir.Model, quantization: Quantization | None, frozen: Frozen) -> None:
    """Quantize ``model`` in place; None leaves it as it is.

    Raises:
        BuildError: the embeddings are to be quantized, and cannot be.
    """
    if quantization is None:
        return
    wanted = frozen.linears if quantization.lm_head else frozen.linears - frozen.logits
    work = _Work(model.graph, quantization)
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        found = frozen_matrix(node, wanted)
        if found is not None and quantization.method == "dynamic":
            work.dynamic(node, *found)
        elif found is not None:
            work.blocks(node, *found)
    if quantization.embeddings:
        work.embeddings()
    model.graph.opset_imports[MICROSOFT] = 1


def _weight(node: ir.Node) -> str:
    return str(node.inputs[1].name) if node.inputs[1] is not None else ""


def _logits_weights(graph: ir.Graph) -> set[str]:
    """Weights of the layers between which and the logits there is no other."""
    found: set[str] = set()
    todo: list[ir.Value | None] = [value for value in graph.outputs if value.name == LOGITS]
    seen: set[ir.Value] = set()
    while todo:
        value = todo.pop()
        node = value.producer() if value is not None and value not in seen else None
        if value is None or node is None:
            continue
        seen.add(value)
        if node.op_type == LINEAR:
            found.add(_weight(node))
        else:  # of a place for heads, the base's own logits
            todo += node.inputs[3:] if node.op_type == HEAD else node.inputs
    return found


def embedding_lookups(graph: ir.Graph, quantization: Quantization) -> list[ir.Node]:
    """The nodes that let ``input_ids`` pick rows of a table.

    Raises:
        BuildError: there is none, or its rows are no whole blocks.
    """
    nodes = [
        node
        for node in graph
        if node.op_type == "Gather"
        and node.inputs[0] is not None
        and node.inputs[0].const_value is not None
        and node.inputs[1] is not None
        and node.inputs[1].name == _INPUT_IDS
    ]
    if not nodes:
        raise _no_embeddings("no table that input_ids pick rows from", "leave embeddings out")
    size = quantization.block_size
    assert size is not None
    for node in nodes:
        assert node.inputs[0] is not None
        assert node.inputs[0].const_value is not None
        width = node.inputs[0].const_value.shape[1]
        assert isinstance(width, int)
        if width % size:
            raise _no_embeddings(f"rows of {width} values", f"leave embeddings out: blocks hold {size}")
    return nodes


def frozen_matrix(node: ir.Node, wanted: frozenset[str]) -> tuple[str, Array] | None:
    """The name and the values ``[in, out]`` of the frozen weight that a node multiplies with."""
    value = node.inputs[1] if node.op_type == "MatMul" and not node.domain else None
    turned = value.producer() if value is not None else None
    if turned is not None and turned.op_type == "Transpose":
        value = turned.inputs[0]
    if value is None or value.name not in wanted or value.const_value is None:
        return None
    matrix = value.const_value.numpy()
    return value.name, matrix if turned is None else matrix.T


@dataclass
class _Work:
    """The graph, and what was made in it: each weight is packed once, each activation quantized once."""

    graph: ir.Graph
    quantization: Quantization
    activations: dict[tuple[ir.Graph, ir.Value], tuple[ir.Value, ir.Value]] = field(default_factory=dict)

    def blocks(self, node: ir.Node, name: str, matrix: Array) -> None:
        """A product with a weight in blocks."""
        bits, size = self.quantization.bits, self.quantization.block_size
        emit = _Named(node)
        product = emit(
            "MatMulNBits",
            node.inputs[0],
            *self._packed(name, matrix),
            domain=MICROSOFT,
            K=matrix.shape[0],
            N=matrix.shape[1],
            bits=bits,
            block_size=size,
            accuracy_level=self.quantization.accuracy_level,
        )
        emit.replace(product)

    def dynamic(self, node: ir.Node, name: str, matrix: Array) -> None:
        """A product of int8 with an activation that is quantized on the way."""
        x = node.inputs[0]
        assert x is not None
        assert isinstance(node.graph, ir.Graph)
        emit = _Named(node)
        unit, zero_point = (
            constant(self.graph, f"{_OURS}.{key}", value)
            for key, value in (
                ("unit", np.array(1 / 127, np.float32)),
                ("zero_point", np.array(_ZERO_POINT, np.uint8)),
            )
        )
        place = (node.graph, x)
        if place not in self.activations:
            axes = constant(self.graph, f"{_OURS}.axes", np.array([-1], np.int64))
            tiny = constant(self.graph, f"{_OURS}.tiny", np.array(_TINY, np.float32))
            largest = emit("Add", emit("ReduceMax", emit("Abs", x), axes, keepdims=1), tiny)
            integers = emit("QuantizeLinear", emit("Div", x, largest), unit, zero_point)
            self.activations[place] = (integers, largest)
        integers, largest = self.activations[place]
        top = _LARGEST if node.graph is self.graph else _LARGEST_INSIDE
        weight, scale = self._columns(name, matrix, top)
        product = emit("MatMulIntegerToFloat", integers, weight, unit, scale, zero_point, domain=MICROSOFT)
        emit.replace(emit("Mul", product, largest))

    def embeddings(self) -> None:
        """Let ``input_ids`` pick rows of integers."""
        for node in embedding_lookups(self.graph, self.quantization):
            table = node.inputs[0]
            assert table is not None
            assert table.const_value is not None
            values = table.const_value.numpy()
            packed, scale = self._packed(f"{table.name}.rows", values.T, flat=True)
            emit = _Named(node)
            ids = node.inputs[1]
            options = {
                "bits": self.quantization.bits,
                "block_size": self.quantization.block_size,
                "quantize_axis": 1,
            }
            emit.replace(emit("GatherBlockQuantized", packed, ids, scale, domain=MICROSOFT, **options))

    def _packed(self, name: str, matrix: Array, *, flat: bool = False) -> tuple[ir.Value, ir.Value]:
        """Integers and scales as ``MatMulNBits`` takes them: ``[out, blocks, bytes]``, ``[out, blocks]``.

        ``flat``: ``[out, bytes]``, as ``GatherBlockQuantized`` takes them.
        """
        names = f"{name}.int{self.quantization.bits}", f"{name}.scales"
        if names[0] not in self.graph.initializers:
            assert self.quantization.block_size is not None
            packed, scales = pack(matrix, self.quantization.bits, self.quantization.block_size)
            constant(self.graph, names[0], packed.reshape(len(packed), -1) if flat else packed)
            constant(self.graph, names[1], scales)
        return self.graph.initializers[names[0]], self.graph.initializers[names[1]]

    def _columns(self, name: str, matrix: Array, top: int) -> tuple[ir.Value, ir.Value]:
        """int8 ``[in, out]`` and a scale for each output."""
        stem = name if top == _LARGEST else f"{name}.inside"
        names = f"{stem}.int8", f"{stem}.scales"
        if names[0] not in self.graph.initializers:
            scale = np.maximum(np.abs(matrix).max(axis=0), np.float32(_TINY)) / np.float32(top)
            constant(self.graph, names[0], np.rint(matrix / scale).astype(np.int8))
            constant(self.graph, names[1], scale)
        return self.graph.initializers[names[0]], self.graph.initializers[names[1]]


class _Named:
    """Emits nodes before one, in whatever graph it stands, under names that no branch has twice."""

    def __init__(self, node: ir.Node) -> None:
        assert isinstance(node.graph, ir.Graph)
        self._emitter = Emitter(node.graph, node)
        self._name = node.outputs[0].name
        self._count = 0

    def __call__(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        value = self._emitter(op, *inputs, domain=domain, **attributes)
        value.name = f"{self._name}.quantized.{self._count}"
        self._count += 1
        return value

    def replace(self, value: ir.Value) -> None:
        self._emitter.replace(value)


def pack(matrix: Array, bits: int, block_size: int) -> tuple[Array, Array]:
    """Quantize ``[in, out]`` symmetrically in blocks along ``in``, as ONNX Runtime does.

    Returns:
        uint8 ``[out, blocks, block_size * bits / 8]`` with a zero point of ``2 ** (bits - 1)``, and
        float32 scales ``[out, blocks]``.
    """
    import_onnxruntime()
    # what its MatMulNBitsQuantizer packs with; that module would set up the logging of the process
    from onnxruntime.capi import _pybind_state as native

    into, out = matrix.shape
    blocks = -(-into // block_size)
    padded = np.zeros((blocks * block_size, out), np.float32)
    padded[:into] = matrix
    packed = np.zeros((out, blocks, block_size * bits // 8), np.uint8)
    scales = np.zeros((out, blocks), np.float32)
    zero_points = np.zeros((out, -(-blocks * bits // 8)), np.uint8)
    function = {4: native.quantize_matmul_4bits, 8: native.quantize_matmul_8bits}[bits]
    function(packed, padded, scales, zero_points, block_size, out, into, True)
    return packed, scales


def _no_embeddings(got: str, mend: str) -> BuildError:
    return BuildError(
        "the embeddings cannot be quantized",
        Problem(
            Code.UNSUPPORTED,
            "--quantize-also embeddings",
            got=got,
            expected="a table [vocabulary, features] of whole blocks",
            mend=mend,
        ),
    )
