"""Every slot against its equation in ``adexport_runtime.slots``, followed in float64, row by row.

The graphs are one opaque op each, so that hypothesis can try every form, activation and absence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st

from adexport.lower import ADAPTER_IDS, BottleneckOptions, HeadOptions, LowerOptions, Slotted, lower
from adexport.slots.kinds import ACTIVATIONS, FACTORS, with_neutral
from adexport_runtime.slots import BottleneckForm, BottleneckStyle, HeadStyle, SlotInput

Array = np.ndarray[Any, Any]
Draw = st.DataObject

BATCH, SEQ, FEATURES = 4, 3, 6
LIMIT = 1e-5
#: of the base's norms; that of an adapter's own is 1e-5, as in torch
EPSILON = 1e-6
SITE = "block.0.dense"

ACT: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "linear": lambda x: x,
}

few = settings(max_examples=30, deadline=None)
opsets = st.sampled_from([20, 21, 23])
activations = st.lists(st.sampled_from(ACTIVATIONS), min_size=1, unique=True).map(tuple)
forms = st.builds(
    BottleneckForm,
    input=st.sampled_from(["hidden", "normed", "residual"]),
    skip=st.sampled_from(["hidden", "input", "sum"]),
    close=st.booleans(),
    norm_before=st.booleans(),
    norm_after=st.sampled_from(["none", "sum", "update"]),
)


class Graph:
    """One opaque op between graph inputs and one output."""

    def __init__(self, op: str, inputs: Mapping[str, Array | None], opset: int, **attributes: Any) -> None:
        """``inputs`` whose name has a dot are frozen weights; what is None is absent."""
        self.feeds = {k: v for k, v in inputs.items() if v is not None and "." not in k}
        values = [None if v is None else self._value(k, v) for k, v in inputs.items()]
        while values[-1] is None:
            values.pop()
        node = ir.node(op, values, attributes=attributes, domain="adexport", name="op")
        node.outputs[0].name = "y"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        there = [value for value in values if value is not None]
        graph = ir.Graph(
            [value for value in there if value.const_value is None],
            node.outputs,
            nodes=[node],
            initializers=[value for value in there if value.const_value is not None],
            opset_imports={"": opset, "adexport": 1},
            name="trace",
        )
        self.output = node.outputs[0]
        self.model = ir.Model(graph, ir_version=10)

    @staticmethod
    def _value(name: str, array: Array) -> ir.Value:
        frozen = "." in name
        dtype = ir.DataType.INT64 if array.dtype == np.int64 else ir.DataType.FLOAT
        shape = array.shape if frozen else (*("batch", "seq", 2)[: array.ndim - 1], array.shape[-1])
        if name == "padding":
            shape = ("batch", "seq")
        made = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        if frozen:
            made.const_value = ir.tensor(array, name=name)
        return made

    def run(
        self, options: LowerOptions, rows: Sequence[Mapping[str, Array]], ids: Array
    ) -> tuple[Slotted, Array]:
        """Lower, fill the banks (row 0 is the identity) by factor, and run."""
        lowered = lower(self.model, options)
        slots = lowered.slots
        factors: dict[str, SlotInput] = {}
        for site in slots.sites:
            factors |= site.linear.factors
        for end in slots.bottlenecks.sites if slots.bottlenecks else ():
            factors |= end.slot.factors
        if slots.head is not None:
            factors |= slots.head.slot.factors
        banks = banks_of(factors, rows)
        for guard in slots.guards.factors.values() if slots.guards else ():
            banks[guard.name] = np.array([0] + [1] * len(rows))
        content = ir.serde.serialize_model(lowered.graph).SerializeToString()
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        (result,) = session.run(None, {**self.feeds, **banks, ADAPTER_IDS: ids})
        return slots, np.asarray(result)


def banks_of(factors: Mapping[str, SlotInput], rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Slot inputs for rows behind the identity; what they lack or are short of is the identity's."""
    sizes: dict[str, int] = {}
    for row in rows:
        for name, array in row.items():
            for symbol, size in zip(factors[name].shape[1:], array.shape, strict=True):
                if isinstance(symbol, str):
                    sizes[symbol] = max(size, sizes.get(symbol, 0))
    banks = {}
    for name, slot in factors.items():
        shape = [size if isinstance(size, int) else sizes.get(size, 0) for size in slot.shape[1:]]
        dtype = np.float32 if slot.dtype == "float" else np.int64
        made = np.full([len(rows) + 1, *shape], slot.identity == "ones", dtype)
        for index, row in enumerate(rows, start=1):
            if name in row:
                made[index, ...][tuple(slice(size) for size in row[name].shape)] = row[name]
        banks[slot.name] = made
    return banks


def randoms(random: np.random.Generator, *shape: int) -> Array:
    return random.normal(size=shape).astype(np.float32)


def norm(x: Array, weight: Array, bias: Array | None, epsilon: float) -> Array:
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight
    return scaled if bias is None else scaled + bias


def close(got: Array, expected: Array) -> bool:
    return bool(np.abs(got - expected).max(initial=0) <= LIMIT * max(1.0, np.abs(expected).max(initial=0)))


def bottleneck(
    form: BottleneckForm, activation: str, w: Mapping[str, Array], h: Array, x: Array, base: Any
) -> Array:
    """The equations of :class:`BottleneckForm`; ``base`` is the block's own norm."""

    def own(which: str, value: Array) -> Array:
        return norm(value, w[f"{which}_weight"], w[f"{which}_bias"], 1e-5)

    z = {"hidden": h, "normed": base(h + x), "residual": x}[form.input]
    inside = own("norm_before", z) if form.norm_before else z
    u = ACT[activation](inside @ w["down"] + w["down_bias"]) @ w["up"] + w["up_bias"]
    r = {"hidden": h, "input": z, "sum": h + x}[form.skip]
    o = {
        "none": lambda: u + r,
        "sum": lambda: own("norm_after", u + r),
        "update": lambda: own("norm_after", u) + r,
    }[form.norm_after]()
    return np.asarray(base(o + x) if form.close else o)


@few
@given(
    source=st.data(),
    asked=st.lists(forms, min_size=1, max_size=4),
    acts=activations,
    normed=st.booleans(),
    affine=st.booleans(),
    guarded=st.booleans(),
    opset=opsets,
)
def test_bottlenecks(
    source: Draw,
    asked: list[BottleneckForm],
    acts: tuple[Any, ...],
    normed: bool,
    affine: bool,
    guarded: bool,
    opset: int,
) -> None:
    random = np.random.default_rng(source.draw(st.integers(0, 99)))
    taken = with_neutral(asked)
    h, x = (randoms(random, BATCH, SEQ, FEATURES) for _ in range(2))
    weight = randoms(random, FEATURES) if normed else None
    bias = randoms(random, FEATURES) if normed and affine else None

    def base(value: Array) -> Array:
        return value if weight is None else norm(value, weight, bias, EPSILON)

    inputs = {"h": h, "x": x, "norm.weight": weight, "norm.bias": bias}
    graph = Graph(
        "Residual", inputs, opset, site=SITE, layer=0, location="output", features=FEATURES, epsilon=EPSILON
    )
    graph.output.shape = ir.Shape(("batch", "seq", FEATURES))
    styles = [BottleneckStyle(form=form, activation=act) for form in taken for act in acts]
    rows: list[dict[str, Array]] = []
    for code, style in enumerate(styles):
        width = int(random.integers(1, 5))
        shapes = {"down": (FEATURES, width), "down_bias": (width,), "up": (width, FEATURES)}
        weights = {
            name: randoms(random, *shapes.get(name, (FEATURES,))) for name in sorted(style.form.factors)
        }
        codes = {"code": np.array(code)} if len(styles) > 1 else {}  # one style needs no code
        rows.append({**weights, **codes})
    picked = source.draw(st.lists(st.integers(0, len(rows)), min_size=BATCH, max_size=BATCH))
    options = LowerOptions(bottlenecks=BottleneckOptions(taken, acts), guarded=guarded)
    slots, got = graph.run(options, rows, np.array(picked))
    assert slots.bottlenecks is not None
    assert [slots.bottlenecks.code(style) for style in styles] == list(range(len(styles)))
    assert not slots.bottlenecks.faults()
    for row, index in enumerate(picked):
        one, other = h[row].astype(np.float64), x[row].astype(np.float64)
        if index == 0:
            expected = base(one + other)
        else:
            style = styles[index - 1]
            expected = bottleneck(style.form, style.activation, rows[index - 1], one, other, base)
        assert close(got[row], expected), (index and styles[index - 1], np.abs(got[row] - expected).max())
    one_for_all = graph.run(options, rows, np.array(picked[:1]))[1]
    assert close(one_for_all[0], got[0])


@given(form=forms, normed=st.booleans(), act=st.sampled_from(ACTIVATIONS))
def test_zero_weights_of_a_neutral_form_are_the_base(form: BottleneckForm, normed: bool, act: str) -> None:
    """What :attr:`BottleneckForm.neutral` says holds of the equations, for blocks of both shapes."""
    random = np.random.default_rng(0)
    h, x = (random.normal(size=(SEQ, FEATURES)) for _ in range(2))
    weight, bias = (random.normal(size=FEATURES) for _ in range(2))
    zeros: dict[str, Array] = {
        "down": np.zeros((FEATURES, 2)),
        "down_bias": np.zeros(2),
        "up": np.zeros((2, FEATURES)),
        **{name: np.zeros(FEATURES) for name in {*form.norms, "up_bias"}},
    }

    def base(value: Array) -> Array:
        return norm(value, weight, bias, EPSILON) if normed else value

    unchanged = close(bottleneck(form, act, zeros, h, x, base), base(h + x))
    assert unchanged or not form.neutral
    if normed and form.norm_after == "none":  # elsewhere more forms happen to leave the base alone
        assert unchanged == form.neutral


@few
@given(
    source=st.data(),
    feature=st.sampled_from(["first", "last", "tokens"]),
    acts=activations,
    pools=st.booleans(),
    labels=st.none() | st.integers(1, 4),
    opset=opsets,
)
def test_heads(
    source: Draw, feature: str, acts: tuple[Any, ...], pools: bool, labels: int | None, opset: int
) -> None:
    random = np.random.default_rng(source.draw(st.integers(0, 99)))
    tokens = (SEQ,) if feature == "tokens" else ()
    hidden = randoms(random, BATCH, SEQ, FEATURES)
    pooled = randoms(random, BATCH, FEATURES) if pools else None
    lengths = random.integers(1, SEQ + 1, BATCH)
    padding = (np.arange(SEQ) < lengths[:, None]).astype(np.int64) if feature == "last" else None
    own = None if labels is None else randoms(random, BATCH, *tokens, labels)
    inputs = {"hidden": hidden, "pooled": pooled, "padding": padding, "logits": own}
    graph = Graph("Head", inputs, opset, feature=feature, features=FEATURES, own="")
    heads: list[HeadStyle] = []
    rows: list[dict[str, Array]] = []
    for kind in (feature, "pooler") if pools and feature != "tokens" else (feature,):
        for act in (None, *acts):
            mid, out = (int(size) for size in random.integers(1, 6, 2))
            names = tuple(str(index) for index in range(out))
            heads.append(HeadStyle(feature=kind, activation=act, labels=names))  # type: ignore[arg-type]
            shapes = {
                "dense": (FEATURES, mid),
                "dense_bias": (mid,),
                "deep": (mid, out),
                "out": (FEATURES, out),
            }
            rows.append(
                {name: randoms(random, *shapes.get(name, (out,))) for name in sorted(heads[-1].factors)}
            )
    options = LowerOptions(head=HeadOptions(acts))
    head = lower(graph.model, options).slots.head
    assert head is not None
    assert not head.faults()
    assert list(head.inputs) == list(dict.fromkeys(style.feature for style in heads))
    for style, row in zip(heads, rows, strict=True):
        row["code"] = np.array(head.code(style))
    picked = source.draw(st.lists(st.integers(0, len(rows)), min_size=BATCH, max_size=BATCH))
    _, got = graph.run(options, rows, np.array(picked))
    widest = max(labels or 0, *(len(style.labels) for style in heads))
    assert got.shape == (BATCH, *tokens, widest)
    for row, index in enumerate(picked):
        if index == 0:
            expected = np.zeros((*tokens, 0)) if own is None else own[row]
        else:
            style, w = heads[index - 1], rows[index - 1]
            last = {"first": 0, "last": lengths[row] - 1, "tokens": slice(None)}
            x = (
                pooled[row]
                if style.feature == "pooler" and pooled is not None
                else hidden[row, last[feature]]
            )
            x = x.astype(np.float64)
            if style.activation is None:
                expected = x @ w["out"] + w["out_bias"]
            else:
                expected = (
                    ACT[style.activation](x @ w["dense"] + w["dense_bias"]) @ w["deep"] + w["out_bias"]
                )
        assert close(got[row][..., : expected.shape[-1]], expected), index and heads[index - 1]
    if own is not None and set(picked) == {0}:
        np.testing.assert_array_equal(got[..., :labels], own)


@few
@given(
    source=st.data(),
    factors=st.sets(st.sampled_from(sorted(FACTORS - {"lora_B"})), min_size=1),
    rank=st.sampled_from([2, 3, 4]),
    biased=st.booleans(),
    transposed=st.booleans(),
    guarded=st.booleans(),
    opset=opsets,
)
def test_linear_factors(
    source: Draw,
    factors: set[str],
    rank: int,
    biased: bool,
    transposed: bool,
    guarded: bool,
    opset: int,
) -> None:
    """``scale_out * (W (scale_in * x) + b + (x A) B) + bias``, for inputs of any rank."""
    random = np.random.default_rng(source.draw(st.integers(0, 99)))
    out = 5
    x = randoms(random, *(BATCH, SEQ, 2)[: rank - 1], FEATURES)
    weight, bias = randoms(random, out, FEATURES), randoms(random, out) if biased else None
    stored = np.ascontiguousarray(weight.T) if transposed else weight
    inputs = {"x": x, f"{SITE}.weight": stored, f"{SITE}.bias": bias}
    graph = Graph(
        "Linear",
        inputs,
        opset,
        site=SITE,
        in_features=FEATURES,
        out_features=out,
        transposed=int(transposed),
    )
    graph.output.shape = ir.Shape((*graph.model.graph.inputs[0].shape[:-1], out))  # type: ignore[index]
    taken = factors | ({"lora_B"} if "lora_A" in factors else set())
    rows = []
    for size in (1, 4):
        shapes = {"lora_A": (FEATURES, size), "lora_B": (size, out), "scale_in": (FEATURES,)}
        rows.append({name: randoms(random, *shapes.get(name, (out,))) for name in sorted(taken)})
    rows.append({name: rows[0][name] for name in ("scale_in", "scale_out", "bias") if name in taken})
    picked = source.draw(st.lists(st.integers(0, len(rows)), min_size=BATCH, max_size=BATCH))
    options = LowerOptions(sites={SITE: frozenset(taken)}, guarded=guarded)
    slots, got = graph.run(options, rows, np.array(picked))
    assert not slots.sites[0].faults()
    for row, index in enumerate(picked):
        w = rows[index - 1] if index else {}
        one = x[row].astype(np.float64)
        y = (one * w.get("scale_in", 1)) @ weight.T + (0 if bias is None else bias)
        if "lora_A" in w:
            y = y + one @ w["lora_A"] @ w["lora_B"]
        assert close(got[row], y * w.get("scale_out", 1) + w.get("bias", 0))
