"""torch to a target-free ONNX graph: slots and attention are opaque ops, weights keep their names.

This is the one step that needs torch, and the slow one. Everything behind it is a pass on a graph.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    LiftConstantsToInitializersPass,
)

from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.manifest import Input, Output

from .architectures import BottleneckRule
from .attention import OpaqueAttention
from .cached import CachedAttention
from .lower.graph import Emitter
from .marks import HeadPlace, emit_head, mark_residuals, with_base_output
from .ops import DOMAIN, LINEAR, VERSION
from .slots.rewrite import traced_linears

_ROOT = "adexport_root"

#: sizes of the sample: at least 2 and all different, so that the exporter takes no two for one
_SAMPLE = {"batch": 3, "seq": 11, "room": 17, "wanted": 5}


class _Wrapper(torch.nn.Module):
    """The model with the bundle's inputs and outputs, in order."""

    def __init__(self, model: Any, outputs: Sequence[str], head: HeadPlace | None, pooled: bool) -> None:
        super().__init__()
        self.adexport_root = model
        self._outputs = list(outputs)
        self._head = head
        self._pooled = pooled

    def forward(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        kept, base = with_base_output(self.adexport_root, inputs)
        results = {name: kept[name] for name in self._outputs if name in kept}
        if self._head is not None:
            pooled = base.pooler_output if self._pooled else None
            padding = inputs.get("attention_mask")
            own = results.get("logits")
            results["logits"] = emit_head(self._head, base.last_hidden_state, pooled, padding, own)
        return tuple(results[name] for name in self._outputs)


class _CachedWrapper(torch.nn.Module):
    """A model that generates, with its caches and the positions whose logits are wanted."""

    def __init__(self, model: Any, attention: CachedAttention) -> None:
        super().__init__()
        self.adexport_root = model
        self._attention = attention
        for index, table in enumerate(attention.tables):
            self.register_buffer(f"rotary_{index}_cos", table.cos)
            self.register_buffer(f"rotary_{index}_sin", table.sin)

    def forward(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        ids, lengths, past_lengths, wanted, *past = inputs.values()
        tables = [
            (self.get_buffer(f"rotary_{index}_cos"), self.get_buffer(f"rotary_{index}_sin"))
            for index in range(len(self._attention.tables))
        ]
        positions = past_lengths[:, None] + torch.arange(ids.shape[1])[None]

        def forward() -> Any:
            return self.adexport_root(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                position_ids=positions,
                use_cache=False,
                return_dict=True,
            )

        # the largest product of a step is that of the vocabulary: only where somebody reads it
        head = self.adexport_root.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, args: (_positions_of(args[0], wanted),))
        try:
            result, present = self._attention.run(forward, past, lengths, past_lengths, tables)
        finally:
            handle.remove()
        return (result.logits, *present)


def _positions_of(hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """``[batch, seq, features]`` at ``wanted`` ``[batch, n]``: ``[batch, n, features]``."""
    picked: torch.Tensor = torch.onnx.ops.symbolic(
        "GatherND",
        (hidden, wanted[:, :, None]),
        {"batch_dims": 1},
        dtype=hidden.dtype,
        shape=(*wanted.shape, hidden.shape[-1]),
    )
    return picked


@dataclass(frozen=True)
class Trace:
    """A target-free graph, the names of the model's parameters in it, and why attention is not opaque.

    ``endless`` are layers behind which the family's rule expects the end of a sub-block, in vain.
    """

    graph: ir.Model
    weights: tuple[str, ...]
    eager_reasons: tuple[str, ...]
    endless: tuple[str, ...]


def trace_model(
    model: Any,
    inputs: Sequence[Input],
    outputs: Sequence[Output],
    opset: int,
    *,
    head: HeadPlace | None = None,
    pooled: bool = False,
    bottlenecks: BottleneckRule | None = None,
    cached: CachedAttention | None = None,
) -> Trace:
    """Trace a model once.

    Args:
        model: a float32 transformers model in eval mode; left as it was.
        inputs: the inputs to feed, with symbolic sizes ``batch`` and ``seq``.
        outputs: fields of the model's output to return.
        opset: the ONNX opset of the graph.
        head: where heads go; None for tasks without.
        pooled: heads may read the base's pooled output.
        bottlenecks: where the family's sub-blocks end.
        cached: attention with a cache, which has surveyed the model; then ``inputs`` and ``outputs``
            are those of :mod:`adexport.generating`.

    Raises:
        BuildError: torch cannot export the model.
    """
    sample = {spec.name: _sample(spec) for spec in inputs}
    before = model.config._attn_implementation
    reasons: list[str] = []
    module: torch.nn.Module
    attention: AbstractContextManager[None]
    if cached is not None:
        module, attention = _CachedWrapper(model, cached), cached.tracing(model)
    else:
        module, attention = _Wrapper(model, [spec.name for spec in outputs], head, pooled), nullcontext()
        with torch.no_grad():
            reasons = OpaqueAttention().survey(model, lambda: model(**sample))
    try:
        with attention, traced_linears(model), _quiet():
            program = torch.onnx.export(
                module,
                (),
                kwargs={"inputs": sample},
                dynamic_shapes={"inputs": {spec.name: _dynamic(spec) for spec in inputs}},
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                opset_version=opset,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
            assert program is not None
            _optimize(program, set(dict(model.named_parameters())))
    except Exception as error:
        raise BuildError(
            f"{type(model).__name__} cannot be traced",
            Problem(
                Code.EXPORT_FAILED,
                type(model).__name__,
                got=_first_cause(error),
                expected="code that torch.export can follow",
                mend="report the model; the traceback below this error has torch's own words",
            ),
        ) from error
    finally:
        model.set_attn_implementation(before)
    graph = program.model
    _tidy(graph, inputs, outputs)
    endless = mark_residuals(graph.graph, bottlenecks)
    parameters = dict(model.named_parameters())
    weights = tuple(name for name in graph.graph.initializers if name in parameters)
    return Trace(graph, weights, tuple(reasons), tuple(endless))


def _optimize(program: torch.onnx.ONNXProgram, parameters: set[str]) -> None:
    """Run the exporter's optimizer with the parameters out of its reach.

    It would fold them into new constants, and merge equal ones (zero biases) under one name.
    """
    graph = program.model.graph
    kept = {
        name: value
        for name, value in graph.initializers.items()
        if str(name).removeprefix(f"{_ROOT}.") in parameters
    }
    tensors = {name: value.const_value for name, value in kept.items()}
    for name, value in kept.items():
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    program.optimize()
    graph = program.model.graph
    for value in [value for value in graph.inputs if value.name in kept]:
        graph.inputs.remove(value)
        if value.uses():
            value.const_value = tensors[str(value.name)]
            graph.register_initializer(value)


def _first_cause(error: BaseException) -> str:
    """What went wrong in the model's code, below the exporter's own wrappings."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _sample(spec: Input) -> torch.Tensor:
    shape = [_SAMPLE[size] if isinstance(size, str) else size for size in spec.shape]
    if spec.dtype == "fp32":
        return torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    if spec.fill is not None:
        return torch.full(shape, spec.fill, dtype=torch.int64)
    assert spec.high is not None
    return torch.arange(1, 1 + math.prod(shape)).reshape(shape) % (spec.high + 1)


def _dynamic(spec: Input) -> dict[int, Any]:
    return {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(spec.shape) if isinstance(size, str)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on packages that this project does not use off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _tidy(model: ir.Model, inputs: Sequence[Input], outputs: Sequence[Output]) -> None:
    """Give values, sizes and weights the names of the format; drop what torch left for itself."""
    graph = model.graph
    for name in list(graph.initializers):
        if name.startswith(f"{_ROOT}."):
            value = graph.initializers.pop(name)
            value.name = name.removeprefix(f"{_ROOT}.")
            if value.const_value is not None:
                value.const_value.name = value.name
            graph.initializers[value.name] = value
    _name_sizes(graph, inputs)
    for value, spec in zip(graph.outputs, outputs, strict=True):
        value.shape = ir.Shape(spec.shape)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ClearMetadataAndDocStringPass()(model)  # torch leaves stack traces there, with local paths
    model.producer_name, model.producer_version = DOMAIN, None
    graph.name = "trace"
    model.opset_imports[DOMAIN] = VERSION
    _spread_rotary_tables(graph)
    _store_linears_transposed(graph)


def _name_sizes(graph: ir.Graph, inputs: Sequence[Input]) -> None:
    """Call torch's symbolic sizes what the inputs call them (``batch``, ``seq``), everywhere."""
    by_name = {value.name: value for value in graph.inputs}
    names: dict[str, str] = {}
    for spec in inputs:
        value = by_name[spec.name]
        assert value.shape is not None
        for symbol, size in zip(value.shape, spec.shape, strict=True):
            if isinstance(symbol, ir.SymbolicDim) and symbol.value is not None:
                names[symbol.value] = str(size)
        value.shape = ir.Shape(spec.shape)
    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    return None if size.value is None else names.get(size.value, size.value)


def _spread_rotary_tables(graph: ir.Graph) -> None:
    """Give every row of the batch its rotary table: torch's exporter leaves one for all rows.

    ONNX ``RotaryEmbedding`` without position ids takes tables of ``[batch, seq, size / 2]``.
    """
    for node in [node for node in graph if node.op_type == "RotaryEmbedding" and len(node.inputs) == 3]:
        x = node.inputs[0]
        emit = Emitter(graph, node)
        for index in (1, 2):
            table = node.inputs[index]
            assert table is not None
            shape = emit("Concat", emit("Shape", x, end=1), emit("Shape", table, start=1), axis=0)
            node.replace_input_with(index, emit("Expand", table, shape))


def _store_linears_transposed(graph: ir.Graph) -> None:
    """Store the weights of linear layers ``[in, out]``, as MatMul takes them.

    A weight that something else uses too (a tied embedding) stays as it is; ``transposed`` on
    the op says which way it lies.
    """
    for node in graph:
        if node.domain != DOMAIN or node.op_type != LINEAR or node.attributes["transposed"].as_int():
            continue
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        users = [use.node for use in weight.uses()]
        if all(user.domain == DOMAIN and user.op_type == LINEAR for user in users):
            array = weight.const_value.numpy().T
            weight.const_value = ir.Tensor(array.copy(), name=weight.name)
            weight.shape = ir.Shape(array.shape)
            for user in users:
                user.attributes["transposed"] = ir.AttrInt64("transposed", 1)
