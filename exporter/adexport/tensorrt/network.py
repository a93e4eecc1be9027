"""An ONNX file as a network of TensorRT, which must have the inputs and outputs that it is to have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.graph_io import Tensor

#: the runtime's names of types, by TensorRT's
DTYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT32": "int32", "INT64": "int64"}

_HEADLINE = "TensorRT refuses the graph"


@dataclass(frozen=True)
class Network:
    """A parsed network with all that it lives on: the weights are the parser's."""

    definition: Any
    parser: Any
    builder: Any

    @property
    def layers(self) -> int:
        """How many layers there are before the builder fuses them."""
        return int(self.definition.num_layers)


def parse_network(trt: Any, logger: Any, graph: Path) -> Network:
    """Parse an ONNX file, with its external data, into a strongly typed network.

    Raises:
        BuildError: naming every node that TensorRT refuses.
    """
    builder = trt.Builder(logger)
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(flag)
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse_from_file(str(graph)):
        # the errors die with the parser
        problems = [_parser_problem(parser.get_error(index)) for index in range(parser.num_errors)]
        raise BuildError(_HEADLINE, problems or Problem(Code.EXPORT_FAILED, str(graph), got="no reason"))
    return Network(definition, parser, builder)


def check_network(trt: Any, definition: Any, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> None:
    """Compare the network's inputs and outputs with what they are to be.

    Raises:
        BuildError: naming every name, type, rank and size that differs.
    """
    taken = [definition.get_input(index) for index in range(definition.num_inputs)]
    given = [definition.get_output(index) for index in range(definition.num_outputs)]
    problems = _compare(trt, "input", taken, inputs) + _compare(trt, "output", given, outputs)
    problems += [
        Problem(
            Code.UNSUPPORTED,
            tensor.name,
            got="an input whose values decide sizes",
            expected="inputs that are data alone",
        )
        for tensor in taken
        if tensor.is_shape_tensor
    ]
    if problems:
        raise BuildError("the graph has not the inputs and outputs of the bundle", problems)


def _compare(trt: Any, what: str, found: list[Any], wanted: Iterable[Tensor]) -> list[Problem]:
    expected = {tensor.name: tensor for tensor in wanted}
    there = {tensor.name: tensor for tensor in found}
    problems = [
        Problem(Code.ABSENT, name, got=f"no such {what}", expected=_words(expected[name]))
        for name in expected
        if name not in there
    ]
    problems += [
        Problem(Code.UNKNOWN_TENSOR, name, got=f"an {what}", expected="none of this name")
        for name in there
        if name not in expected
    ]
    for name in expected.keys() & there.keys():
        problems += _differences(trt, what, there[name], expected[name])
    return sorted(problems, key=lambda problem: problem.subject)


def _differences(trt: Any, what: str, found: Any, wanted: Tensor) -> list[Problem]:
    problems = []
    native = _dtype_name(trt, found.dtype)
    dtype = DTYPES.get(native, native)
    if dtype != wanted.dtype:
        problems.append(Problem(Code.WRONG_DTYPE, wanted.name, got=dtype, expected=wanted.dtype))
    sizes = list(found.shape)
    # the size of an output may stay open where it can be worked out only in a run
    fits = len(sizes) == len(wanted.shape) and all(
        (size == -1 and (isinstance(want, str) or what == "output")) or size == want
        for size, want in zip(sizes, wanted.shape, strict=True)
    )
    if not fits:
        shape = ", ".join("?" if size == -1 else str(size) for size in sizes)
        problems.append(Problem(Code.WRONG_SHAPE, wanted.name, got=f"[{shape}]", expected=_words(wanted)))
    return problems


def _dtype_name(trt: Any, dtype: Any) -> str:
    return next((name for name, member in trt.DataType.__members__.items() if member == dtype), str(dtype))


def _words(tensor: Tensor) -> str:
    return f"{tensor.dtype} [{', '.join(str(size) for size in tensor.shape)}]"


def _parser_problem(error: Any) -> Problem:
    name, operator = str(error.node_name()), str(error.node_operator())
    return Problem(
        Code.EXPORT_FAILED,
        f"{operator} {name}".strip() or "the graph",
        got=str(error.desc()).strip(),
        expected="an operator that TensorRT's ONNX parser takes",
    )
