"""libadexport_kernels in ONNX Runtime: the same as the local functions whose names its operators have.

Skipped where it was not built; ``ADEXPORT_KERNELS`` names another one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, parser

from tests.contract.kernels import kernel_library, needs_kernels

pytestmark = needs_kernels

_IN, _OUT, _ROWS = 20, 37, 5
_PICK = "a = Gather<axis=0>(A, ids)  b = Gather<axis=0>(B, ids)"
_LORA = "h = MatMul(x, a)  u = MatMul(h, b)"
_DOWN = """
    a = Gather<axis=0>(down, ids)  b = Gather<axis=0>(up, ids)  one = Constant<value_ints=[1]>()
    ab0 = Gather<axis=0>(down_bias, ids)  ab = Unsqueeze(ab0, one)
    bb0 = Gather<axis=0>(up_bias, ids)  bb = Unsqueeze(bb0, one)
    h0 = MatMul(x, a)  h = Add(h0, ab)
"""
_UP = "u0 = MatMul(g, b)  u = Add(u0, bb)"
_CODED = """
    c = Gather<axis=0>(code, ids)  two = Constant<value_int=2>()  left = Mod(c, two)
    flag0 = Cast<to=9>(left)  ends = Constant<value_ints=[1, 2]>()  flag = Unsqueeze(flag0, ends)
    g1 = Tanh(h)  g2 = Relu(h)  g = Where(flag, g1, g2)
"""
_BY_TOKEN = "s0 = Gather<axis=0>({}, ids)  one = Constant<value_ints=[1]>()  s = Unsqueeze(s0, one) "
_IF = """out = If(used) <
    then_branch = t () => (some) {{ {0}  some = Add(y, u) }},
    else_branch = e () => (none) {{ none = Identity(y) }}>"""

#: each operator's inputs and what it computes; ids of 0 have banks of zeros here, as in a bank of adapters
FUNCTIONS = {
    "LoraAdd": ("y, x, A, B, ids", f"{_PICK} {_LORA} out = Add(y, u)"),
    "LoraAddIf": ("y, x, A, B, used, ids", _IF.format(f"{_PICK} {_LORA}")),
    "LoraBiasAddIf": (
        "y, bias, x, A, B, used, ids",
        _IF.format(f"{_PICK} {_LORA}").replace("(y, u)", "(z, u)").replace("(y)", "(z)"),
    ),
    "BottleneckAdd": (
        "y, x, down, down_bias, up, up_bias, code, ids",
        f"{_DOWN} {_CODED} {_UP} out = Add(y, u)",
    ),
    "BottleneckAddIf": (
        "y, x, down, down_bias, up, up_bias, code, used, ids",
        _IF.format(f"{_DOWN} {_CODED} {_UP}"),
    ),
    "RowScale": (
        "x, scale, ids",
        _BY_TOKEN.format("scale") + "out = Mul(x, s)",
    ),
    "RowAdd": (
        "y, bias, ids",
        _BY_TOKEN.format("bias") + "out = Add(y, s)",
    ),
}

_TYPES = {
    "A": "float[rows,20,rank]",
    "B": "float[rows,rank,37]",
    "down": "float[rows,20,rank]",
    "down_bias": "float[rows,rank]",
    "up": "float[rows,rank,37]",
    "up_bias": "float[rows,37]",
    "code": "int64[rows]",
    "ids": "int64[ids]",
    "used": "bool",
    "y": "float[batch,tokens,37]",
    "x": "float[batch,tokens,20]",
    "bias": "float[37]",
    "scale": "float[rows,20]",
}


def _types(name: str) -> dict[str, str]:
    return _TYPES | ({"bias": "float[rows,37]"} if name == "RowAdd" else {})


def _model(name: str, *, branch: bool = False, inputs: str | None = None) -> onnx.ModelProto:
    """A model that calls one operator, with its function; `branch` puts it into an ``If``."""
    names, body = FUNCTIONS[name]
    if "(z" in body:
        body = f"z = Add(y, bias)  {body}"
    attributes = "<activations>" if "down" in names else ""
    given = '<activations="relu,tanh">' if attributes else ""
    types = _types(name)
    feeds = ", ".join(f"{types[each]} {each}" for each in names.split(", ")) + ", bool there"
    first = names.split(",")[0]
    call = f"adexport.{name}{given}({names if inputs is None else inputs})"
    if branch:
        call = (
            f"If(there) <then_branch = t () => ({types[first]} p) {{ p = {call} }},"
            f" else_branch = e () => ({types[first]} q) {{ q = Identity({first}) }}>"
        )
    return parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": 20, "adexport": 1]>
        g ({feeds}) => ({types[first]} result) {{ called = {call}  result = Neg(called) }}
        <domain: "adexport", opset_import: ["": 20]>
        {name} {attributes} ({names}) => (out) {{ {body} }}
    """)


def _session(model: onnx.ModelProto, folder: Path | None, *, kernels: bool = True) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    if folder is not None:
        options.optimized_model_filepath = str(folder / "optimized.onnx")
    if kernels:
        options.register_custom_ops_library(str(kernel_library()))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _operators(graph: onnx.GraphProto) -> set[str]:
    found = {node.op_type for node in graph.node}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _operators(attribute.g)
    return found


def _feeds(
    name: str, *, batch: int = 3, tokens: int = 7, rank: int = 9, used: bool = True
) -> dict[str, Any]:
    random = np.random.default_rng(0)
    sizes = {"rows": _ROWS, "rank": rank, "batch": batch, "tokens": tokens}
    feeds: dict[str, Any] = {"there": np.array(True)}
    types = _types(name)
    for each in FUNCTIONS[name][0].split(", "):
        if each in ("ids", "used", "code"):
            continue
        shape = [sizes[s] if s in sizes else int(s) for s in types[each].split("[")[1][:-1].split(",")]
        feeds[each] = random.standard_normal(shape).astype(np.float32)
        if shape[0] == _ROWS and types[each].startswith("float[rows"):
            feeds[each][0] = 1 if each == "scale" else 0  # the identity
    feeds["ids"] = np.array([3, 0, 4] * batch, np.int64)[:batch]
    if "used" in FUNCTIONS[name][0]:
        feeds["used"] = np.array(used)
    if "code" in FUNCTIONS[name][0]:
        feeds["code"] = np.arange(_ROWS)
    return feeds


@pytest.mark.parametrize("branch", [False, True], ids=["main", "branch"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernel_is_its_function(name: str, branch: bool, tmp_path: Path) -> None:
    """Also where tokens and ranks are none, the ids are one for all, and nobody uses the slot."""
    model = _model(name, branch=branch)
    plain, kernel = _session(model, None, kernels=False), _session(model, tmp_path)
    assert name in _operators(onnx.load(tmp_path / "optimized.onnx").graph)
    one = {"ids": np.array([2], np.int64)}
    cases = [
        _feeds(name),
        _feeds(name, batch=40, tokens=3, rank=17),
        _feeds(name, tokens=1, rank=1),
        _feeds(name, tokens=0),
        _feeds(name, rank=0),
        _feeds(name, tokens=150) | one,
    ]
    if "used" in cases[0]:
        cases.append(_feeds(name, used=False))
    for feeds in cases:
        expected, got = plain.run(None, feeds)[0], kernel.run(None, feeds)[0]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_ids_are_named(name: str) -> None:
    """An id that is no row is an error that says so, and leaves the session usable."""
    session = _session(_model(name), None)
    feeds = _feeds(name)
    for bad in ([1, 5, -1], [1, 2**62, -(2**62)]):
        with pytest.raises(Exception, match=rf"{name}.*adapter id {bad[1]} .*adapter id {bad[2]} .*5 rows"):
            session.run(None, feeds | {"ids": np.array(bad, np.int64)})
    with pytest.raises(Exception, match=rf"{name}.*ids has 2 values"):
        session.run(None, feeds | {"ids": np.array([1, 2], np.int64)})
    session.run(None, feeds)


def test_shapes_that_differ_are_named() -> None:
    """Banks are never read beyond their end."""
    session = _session(_model("LoraAdd"), None)
    feeds = _feeds("LoraAdd")
    with pytest.raises(Exception, match=r"B is \[5, 8, 37\], expected \[rows = 5, rank = 9, out = 37\]"):
        session.run(None, feeds | {"B": feeds["B"][:, :8]})
    with pytest.raises(Exception, match=r"B is \[4, 9, 37\], expected \[rows = 5"):
        session.run(None, feeds | {"B": feeds["B"][:4]})
    with pytest.raises(Exception, match=r"x is \[3, 6, 20\], expected \[batch = 3, tokens = 7"):
        session.run(None, feeds | {"x": feeds["x"][:, :6]})


def test_rows_of_the_batch() -> None:
    """Without ids the banks' rows are the batch's, the first one too."""
    session = _session(_model("LoraAdd", inputs="y, x, A, B"), None)
    feeds = _feeds("LoraAdd")
    feeds |= {"A": feeds["A"][1:4], "B": feeds["B"][1:4]}
    expected = -(feeds["y"] + feeds["x"] @ feeds["A"] @ feeds["B"])
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-5, atol=2e-5)
    with pytest.raises(Exception, match="2 rows for a batch of 3"):
        session.run(None, feeds | {"A": feeds["A"][:2], "B": feeds["B"][:2]})


def test_one_activation_takes_no_code() -> None:
    """A missing input before the last is left empty."""
    model = _model("BottleneckAdd", inputs='y, x, down, down_bias, up, up_bias, "", ids'.replace('""', ""))
    node = model.graph.node[0]
    node.attribute[0].s = b"tanh"
    session = _session(model, None)
    feeds = _feeds("BottleneckAdd")
    expected = feeds["y"].copy()
    for row, adapter in enumerate(feeds["ids"]):
        hidden = np.tanh(feeds["x"][row] @ feeds["down"][adapter] + feeds["down_bias"][adapter])
        expected[row] += hidden @ feeds["up"][adapter] + feeds["up_bias"][adapter]
    np.testing.assert_allclose(session.run(None, feeds)[0], -expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("activations", "problem"),
    [(b"relu,swish", "'swish', expected names among relu, gelu"), (None, "must be one string")],
)
def test_activations_that_nobody_knows(activations: bytes | None, problem: str) -> None:
    """They are refused when the session is made; so is a list, which older ONNX Runtimes cannot read."""
    model = _model("BottleneckAdd")
    attribute = model.graph.node[0].attribute[0]
    attribute.CopyFrom(helper.make_attribute("activations", activations or ["relu"]))
    with pytest.raises(Exception, match=problem):
        _session(model, None)


@pytest.mark.parametrize(
    ("flow", "bank"),
    [
        (TensorProto.FLOAT16, TensorProto.FLOAT16),
        (TensorProto.BFLOAT16, TensorProto.BFLOAT16),
        (TensorProto.FLOAT, TensorProto.FLOAT16),
        (TensorProto.FLOAT, TensorProto.BFLOAT16),
    ],
)
@pytest.mark.parametrize("branch", [False, True], ids=["main", "branch"])
def test_pairs_of_types(flow: int, bank: int, branch: bool) -> None:
    """Sums are in float32 whatever the types are."""
    numpy_types: dict[int, Any] = {
        TensorProto.FLOAT: np.float32,
        TensorProto.FLOAT16: np.float16,
        TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    }
    model, feeds = _model("LoraAdd", branch=branch), _feeds("LoraAdd")
    graph = model.graph
    casts = [
        helper.make_node("Cast", [name], [f"{name}.cast"], to=flow if name in "xy" else bank)
        for name in ("y", "x", "A", "B")
    ]
    call = graph.node[0]
    bodies = [attribute.g for attribute in call.attribute] if branch else [graph]
    for body in bodies:
        for node in body.node:
            for place, name in enumerate(node.input):
                if name in ("y", "x", "A", "B"):
                    node.input[place] = f"{name}.cast"
        for result in body.output if branch else []:
            result.type.tensor_type.elem_type = flow
    graph.node[1].CopyFrom(helper.make_node("Cast", [call.output[0]], ["result"], to=TensorProto.FLOAT))
    for at, cast in enumerate(casts):
        graph.node.insert(at, cast)
    del model.functions[:]
    got = _session(model, None).run(None, feeds)[0]
    rounded = {
        name: feeds[name].astype(numpy_types[flow if name in "xy" else bank]).astype(np.float64)
        for name in ("y", "x", "A", "B")
    }
    ids = feeds["ids"]
    exact = rounded["y"] + rounded["x"] @ rounded["A"][ids] @ rounded["B"][ids]
    expected = exact.astype(numpy_types[flow]).astype(np.float32)
    steps: dict[int, float] = {
        TensorProto.FLOAT: 1e-5,
        TensorProto.FLOAT16: 1e-3,
        TensorProto.BFLOAT16: 8e-3,
    }
    np.testing.assert_allclose(got, expected, rtol=steps[flow], atol=2e-5)


@pytest.mark.parametrize(("isa", "fits"), [("portable", True), ("mmx", False)])
def test_environment_chooses_instructions(isa: str, fits: bool) -> None:
    """In a process of its own: the choice is made once."""
    code = (
        "import ctypes, sys, onnxruntime as ort\n"
        "ort.SessionOptions().register_custom_ops_library(sys.argv[1])\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "library.adexport_kernels_isa.restype = ctypes.c_char_p\n"
        "print(library.adexport_kernels_isa().decode())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(kernel_library())],
        env=os.environ | {"ADEXPORT_KERNELS_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode == 0) == fits, run.stderr
    if fits:
        assert run.stdout.strip() == isa
    else:
        assert "ADEXPORT_KERNELS_ISA is 'mmx', but this CPU can run" in run.stderr
