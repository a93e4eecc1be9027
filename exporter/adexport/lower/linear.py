"""Linear layers and their slots: ``adexport::Linear`` to MatMul, Add and local functions.

Requires opaque ``Linear`` ops; leaves none. Ensures that every planned site has its slot inputs,
and that a layer without a slot is exactly the frozen layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adexport_runtime.slots import LinearSlot, Site, SlotInput

from ..ops import LINEAR, LORA_ADD, LORA_ADD_IF, LORA_BIAS_ADD_IF, ROW_ADD, ROW_SCALE
from ..slots.kinds import LORA
from .graph import Emit, Emitter, add_input, constant, opaque
from .guard import Branch, Guard
from .rows import call

BATCH = "batch"


def lower_linears(
    model: ir.Model,
    sites: Mapping[str, Collection[str]],
    ids: ir.Value | None,
    guard: Guard | None = None,
) -> tuple[Site, ...]:
    """Lower all linear layers; those in ``sites`` get a slot with the factors named there.

    Every site must be one of :func:`slot_candidates`. Returns the sites with their slot inputs,
    in graph order. A layer that the graph runs several times (shared layers) is one site with
    one set of slot inputs.
    """
    graph = model.graph
    made: dict[str, Site] = {}
    inputs: dict[str, ir.Value] = {}
    for node in opaque(graph, LINEAR):
        emit = Emitter(graph, node)
        x, weight, bias = (*node.inputs, None)[:3]
        assert x is not None
        assert weight is not None
        path = node.attributes["site"].as_string()
        if path in sites and path not in made:
            made[path] = _site(node, weight, bias, sites[path])
            for factor in made[path].linear.factors.values():
                inputs[factor.name] = add_input(graph, factor.name, factor.shape, ir.DataType.FLOAT)
        factors = made[path].linear.factors if path in made else {}
        matrix = (
            weight if node.attributes["transposed"].as_int() else emit("Transpose", weight, perm=[1, 0])
        )
        slot = _Slot(model, {name: inputs[f.name] for name, f in factors.items()}, ids, x, matrix, bias)
        emit.replace(slot.emitted(emit, f"{path}.{node.name}", node.outputs[0], guard))
    return tuple(made.values())


@dataclass
class _Slot:
    """Emits one layer with the factors that its slot has; without any it is the frozen layer."""

    model: ir.Model
    factors: Mapping[str, ir.Value]
    ids: ir.Value | None
    x: ir.Value
    matrix: ir.Value
    bias: ir.Value | None

    def emitted(self, emit: Emitter, name: str, like: ir.Value, guard: Guard | None) -> ir.Value:
        """The layer's output; behind a guard, the slot's work is done only if some row uses it."""
        assert self.x.shape is not None
        if not self.factors:
            return self._frozen(emit, self._product(emit, self.x))
        if len(self.x.shape) != 3:
            return self._bent(emit)
        if guard is None:
            return self._slotted(emit, self.x, None)
        if self.factors.keys() == LORA:
            return self._lora(emit, guard.flag)
        # the product stands outside of the branches, so that its weight is packed once
        product = None if "scale_in" in self.factors else self._product(emit, self.x)

        def plain(branch: Branch) -> ir.Value:
            found = product if product is not None else self._product(branch, self.x)
            return branch("Identity", found) if self.bias is None else self._frozen(branch, found)

        return guard.choose(emit, name, like, lambda branch: self._slotted(branch, self.x, product), plain)

    def _lora(self, emit: Emit, used: ir.Value) -> ir.Value:
        """LoRA alone is one function, which a kernel can run in one pass without any branch."""
        halves = (self.factors["lora_A"], self.factors["lora_B"])
        product = self._product(emit, self.x)
        if self.bias is None:
            return call(self.model, emit, LORA_ADD_IF, product, self.x, *halves, used, self.ids)
        return call(self.model, emit, LORA_BIAS_ADD_IF, product, self.bias, self.x, *halves, used, self.ids)

    def _product(self, emit: Emit, x: ir.Value) -> ir.Value:
        return emit("MatMul", x, self.matrix)

    def _frozen(self, emit: Emit, product: ir.Value) -> ir.Value:
        return product if self.bias is None else emit("Add", product, self.bias)

    def _slotted(self, emit: Emit, x: ir.Value, product: ir.Value | None) -> ir.Value:
        """``scale_out * (W (scale_in * x) + b + (x lora_A) lora_B) + bias``."""
        if product is None:
            product = self._product(emit, self._scaled(emit, "scale_in", x))
        y = self._frozen(emit, product)
        if "lora_A" in self.factors:
            halves = (self.factors["lora_A"], self.factors["lora_B"])
            y = call(self.model, emit, LORA_ADD, y, x, *halves, self.ids)
        y = self._scaled(emit, "scale_out", y)
        if "bias" in self.factors:
            y = call(self.model, emit, ROW_ADD, y, self.factors["bias"], self.ids)
        return y

    def _scaled(self, emit: Emit, factor: str, x: ir.Value) -> ir.Value:
        if factor not in self.factors:
            return x
        return call(self.model, emit, ROW_SCALE, x, self.factors[factor], self.ids)

    def _bent(self, emit: Emitter) -> ir.Value:
        """The same for an ``x`` that is not ``[batch, tokens, features]``."""
        graph = self.model.graph
        kept = constant(graph, "adexport.by_row", np.array([0, -1], np.int64))
        wanted = emit("Concat", kept, emit("Shape", self.x, start=-1), axis=0)
        y = self._slotted(emit, emit("Reshape", self.x, wanted), None)
        first, last = (
            constant(graph, f"adexport.{name}", np.array([at], np.int64))
            for name, at in (("zero_1", 0), ("minus_1", -1))
        )
        leading = emit("Slice", emit("Shape", self.x), first, last)
        return emit("Reshape", y, emit("Concat", leading, emit("Shape", y, start=-1), axis=0))


def linear_layers(model: ir.Model) -> dict[str, bool]:
    """The linear layers of a trace by module path, in graph order, and whether each can be a site.

    A layer can be one if the batch comes first wherever it is used; where a model mixes the rows
    before a layer, no row of it belongs to one tenant.
    """
    layers: dict[str, bool] = {}
    for node in opaque(model.graph, LINEAR):
        x = node.inputs[0]
        assert x is not None
        path = node.attributes["site"].as_string()
        by_row = x.shape is not None and len(x.shape) > 1 and str(x.shape[0]) == BATCH
        layers[path] = by_row and layers.get(path, True)
    return layers


def layer_features(model: ir.Model) -> dict[str, tuple[int, int]]:
    """The layers of a trace that can be sites, with their ``(in, out)``."""
    features = {}
    for node in opaque(model.graph, LINEAR):
        attributes = node.attributes
        sizes = (attributes["in_features"].as_int(), attributes["out_features"].as_int())
        features[attributes["site"].as_string()] = sizes
    return {path: features[path] for path in slot_candidates(model)}


def slot_candidates(model: ir.Model) -> tuple[str, ...]:
    """The linear layers of a trace that can be sites."""
    return tuple(path for path, fit in linear_layers(model).items() if fit)


def _site(node: ir.Node, weight: ir.Value, bias: ir.Value | None, factors: Collection[str]) -> Site:
    attributes = node.attributes
    path = attributes["site"].as_string()
    into, out = attributes["in_features"].as_int(), attributes["out_features"].as_int()
    rank = f"{path}.rank"  # a symbol for each site: sites may differ in rank
    possible = {
        "lora_A": SlotInput(name=f"{path}.lora_A", shape=("rows", into, rank)),
        "lora_B": SlotInput(name=f"{path}.lora_B", shape=("rows", rank, out)),
        "bias": SlotInput(name=f"{path}.adapter_bias", shape=("rows", out)),
        "scale_in": SlotInput(name=f"{path}.scale_in", shape=("rows", into), identity="ones"),
        "scale_out": SlotInput(name=f"{path}.scale_out", shape=("rows", out), identity="ones"),
    }
    assert weight.name is not None
    return Site(
        path=path,
        weight=weight.name,
        bias=None if bias is None else bias.name,
        in_features=into,
        out_features=out,
        linear=LinearSlot(**{name: slot for name, slot in possible.items() if name in factors}),
    )
