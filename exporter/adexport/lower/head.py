"""Heads: ``adexport::Head`` to the base's own logits, or to a head for each row.

Requires opaque ``Head`` ops; leaves none. Ensures that a row without a head of its own gets the base's
logits untouched, and that logits are as wide as the widest head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adexport_runtime.slots import Feature, Head, HeadSlot, OwnHead, SlotInput

from ..ops import HEAD, ROW_LINEAR
from .activation import Choice, activate
from .graph import Emitter, add_input, constant, opaque
from .options import HeadOptions
from .rows import call

_PREFIX = "adapter_head"
_LABELS = f"{_PREFIX}.labels"
_OWN = "own"


def has_head(model: ir.Model) -> bool:
    """Whether a trace has a place for heads."""
    return any(True for _ in opaque(model.graph, HEAD))


def lower_head(model: ir.Model, options: HeadOptions | None, ids: ir.Value | None) -> Head | None:
    """Lower the head, if the trace has one; with ``options`` each row may bring its own."""
    head = None
    for node in opaque(model.graph, HEAD):
        emit = Emitter(model.graph, node)
        own = _inputs(node)[3]
        if options is None:
            assert own is not None, "a base without a head is built with head slots only"
            emit.replace(own)
            continue
        head = _head(node, options)
        inputs = {}
        for name, factor in head.slot.factors.items():
            dtype = ir.DataType.INT64 if factor.dtype == "int64" else ir.DataType.FLOAT
            inputs[name] = add_input(model.graph, factor.name, factor.shape, dtype)
        emit.replace(_Rows(model, emit, node, head, inputs, ids).logits())
    return head


def _head(node: ir.Node, options: HeadOptions) -> Head:
    attributes = node.attributes
    features = attributes["features"].as_int()
    shapes: dict[str, tuple[str | int, ...]] = {
        "dense": (features, f"{_PREFIX}.mid"),
        "dense_bias": (f"{_PREFIX}.mid",),
        "deep": (f"{_PREFIX}.mid", _LABELS),
        "out": (features, _LABELS),
        "out_bias": (_LABELS,),
    }
    slots = {
        name: SlotInput(name=f"{_PREFIX}.{name}", shape=("rows", *shape)) for name, shape in shapes.items()
    }
    slots["code"] = SlotInput(name=f"{_PREFIX}.code", shape=("rows",), dtype="int64")
    own = attributes["own"].as_string()
    return Head(
        features=features,
        inputs=_features(node),
        activations=options.activations,
        own=OwnHead.model_validate_json(own) if own else None,
        slot=HeadSlot(**slots),
    )


def _inputs(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """``hidden``, ``pooled``, ``padding``, ``own``: what is absent at the end is not written."""
    return (*node.inputs, None, None, None)[:4]


def _features(node: ir.Node) -> tuple[Feature, ...]:
    """What a head can read here; a pooled output is one more choice where it is by row, as the logits."""
    first = node.attributes["feature"].as_string()
    features: list[Feature] = [kind for kind in ("first", "last", "tokens") if kind == first]
    if _inputs(node)[1] is not None and first != "tokens":
        features.append("pooler")
    return tuple(features)


@dataclass
class _Rows:
    """Emits one head for each row."""

    model: ir.Model
    emit: Emitter
    node: ir.Node
    head: Head
    inputs: Mapping[str, ir.Value]
    ids: ir.Value | None

    def logits(self) -> ir.Value:
        """``act(x dense + dense_bias) deep + x out + out_bias``, or the base's own logits."""
        code = self.emit("Gather", self.inputs["code"], self.ids, axis=0)
        activations = self.head.activations
        codes = [(feature, name) for feature in self.head.inputs for name in activations]
        choice = Choice(self.model.graph, self.emit, code, 1 + len(codes))
        feature = [self.head.inputs[0], *(feature for feature, _ in codes)]
        x = choice.pick({name: self._feature(name) for name in self.head.inputs}, feature, 3)
        dense = self._linear(x, "dense", "dense_bias")
        active = choice.pick(
            {name: activate(self.emit, dense, name) for name in activations},
            [activations[0], *(name for _, name in codes)],
            3,
        )
        deep = self.emit("MatMul", active, self.emit("Gather", self.inputs["deep"], self.ids, axis=0))
        logits = self.emit("Add", deep, self._linear(x, "out", "out_bias"))
        if self.head.inputs[0] != "tokens":
            logits = self.emit("Squeeze", logits, self._constant("axis_1", [1]))
        own = _inputs(self.node)[3]
        if own is None:
            return logits
        rank = 3 if self.head.inputs[0] == "tokens" else 2
        sizes = [self.emit("Shape", value, start=-1) for value in (own, logits)]
        wide = self.emit("Max", *sizes)
        both = {
            name: self._padded(value, self.emit("Sub", wide, size))
            for name, value, size in zip((_OWN, "heads"), (own, logits), sizes, strict=True)
        }
        return choice.pick(both, [_OWN, *("heads" for _ in codes)], rank)

    def _feature(self, feature: Feature) -> ir.Value:
        """What a head reads, ``[batch, 1 or tokens, features]``."""
        hidden, pooled, padding, _ = _inputs(self.node)
        assert hidden is not None
        if feature == "tokens":
            return hidden
        if feature == "pooler":
            return self.emit("Unsqueeze", pooled, self._constant("axis_1", [1]))
        if feature == "first":
            start, end = self._constant("zero_1", [0]), self._constant("one", [1])
            return self.emit("Slice", hidden, start, end, end)
        # the last token: the largest position that the padding mask leaves
        keys = self.emit("Shape", padding, start=1, end=2)
        zero, step = self._constant("zero", 0), self._constant("step", 1)
        positions = self.emit("Range", zero, self.emit("Squeeze", keys), step)
        last = self.emit("ArgMax", self.emit("Mul", positions, padding), axis=1, keepdims=1)
        one_hot = self.emit("Unsqueeze", last, self._constant("axis_2", [2]))
        wide = self.emit(
            "Expand",
            one_hot,
            self._constant(f"features_{self.head.features}", [1, 1, self.head.features]),
        )
        return self.emit("GatherElements", hidden, wide, axis=1)

    def _linear(self, x: ir.Value, weight: str, bias: str) -> ir.Value:
        return call(self.model, self.emit, ROW_LINEAR, x, self.inputs[weight], self.inputs[bias], self.ids)

    def _padded(self, logits: ir.Value, lacking: ir.Value) -> ir.Value:
        """Logits with ``lacking`` zeros behind them."""
        pads = self.emit("Concat", self._constant("zero_1", [0]), lacking, axis=0)
        return self.emit("Pad", logits, pads, None, self._constant("minus_1", [-1]))

    def _constant(self, name: str, value: object) -> ir.Value:
        return constant(self.model.graph, f"adexport.{name}", np.array(value, np.int64))
