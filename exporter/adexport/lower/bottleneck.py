"""Sub-block ends and their slots: ``adexport::Residual`` to Add, LayerNormalization, and a bottleneck.

Requires opaque ``Residual`` ops; leaves none. Ensures that every planned site has its slot inputs, that
an end without a slot is exactly the base's, and that only what the forms differ in is picked by row.

The equations are those of the ``adapters`` library (1.3); see :class:`BottleneckForm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adexport_runtime.slots import (
    Activation,
    BottleneckForm,
    Bottlenecks,
    BottleneckSite,
    BottleneckSlot,
    Location,
    SlotInput,
)

from ..ops import BOTTLENECK_ADD, BOTTLENECK_ADD_IF, RESIDUAL, ROW_LINEAR
from .activation import Choice, activate
from .graph import Emit, Emitter, add_input, constant, opaque
from .guard import Guard
from .options import BottleneckOptions
from .rows import call, call_bottleneck

#: of the adapters' own norms, whatever the base's is
_EPSILON = 1e-5


def bottleneck_places(model: ir.Model) -> dict[str, tuple[int, Location]]:
    """Where bottlenecks can go in a trace, by path in graph order: their block and location."""
    return {node.attributes["site"].as_string(): _place(node) for node in opaque(model.graph, RESIDUAL)}


def bottleneck_features(model: ir.Model) -> dict[str, int]:
    """The features at each place for a bottleneck."""
    ends = opaque(model.graph, RESIDUAL)
    return {node.attributes["site"].as_string(): node.attributes["features"].as_int() for node in ends}


def _place(node: ir.Node) -> tuple[int, Location]:
    location: Location = "mh" if node.attributes["location"].as_string() == "mh" else "output"
    return node.attributes["layer"].as_int(), location


def lower_residuals(
    model: ir.Model,
    options: BottleneckOptions | None,
    ids: ir.Value | None,
    guard: Guard | None = None,
) -> Bottlenecks | None:
    """Lower all sub-block ends; with ``options`` those at its sites get a bottleneck slot."""
    graph = model.graph
    made: dict[str, BottleneckSite] = {}
    inputs: dict[str, ir.Value] = {}
    for node in opaque(graph, RESIDUAL):
        emit = Emitter(graph, node)
        path = node.attributes["site"].as_string()
        if options is None or (options.sites is not None and path not in options.sites):
            emit.replace(_End(model, node, emit).plain())
            continue
        if path not in made:
            made[path] = _site(node, options)
            for factor in made[path].slot.factors.values():
                dtype = ir.DataType.INT64 if factor.dtype == "int64" else ir.DataType.FLOAT
                inputs[factor.name] = add_input(graph, factor.name, factor.shape, dtype)
        factors = {name: inputs[slot.name] for name, slot in made[path].slot.factors.items()}
        if guard is None or _is_one_sum(options):
            flag = None if guard is None else guard.flag
            emit.replace(_End(model, node, emit).slotted(factors, options, ids, flag))
            continue
        chosen = guard.choose(
            emit,
            f"{path}.{node.name}",
            node.outputs[0],
            lambda branch, node=node, factors=factors: _End(model, node, branch).slotted(  # type: ignore[misc]
                factors, options, ids
            ),
            lambda branch, node=node: _End(model, node, branch).plain(),  # type: ignore[misc]
        )
        emit.replace(chosen)
    if options is None or not made:
        return None
    return Bottlenecks(forms=options.forms, activations=options.activations, sites=tuple(made.values()))


def _site(node: ir.Node, options: BottleneckOptions) -> BottleneckSite:
    attributes = node.attributes
    path, features = attributes["site"].as_string(), attributes["features"].as_int()
    width = f"{path}.width"
    shapes: dict[str, tuple[str | int, ...]] = {
        "down": (features, width),
        "down_bias": (width,),
        "up": (width, features),
        "up_bias": (features,),
    }
    for norm, there in (
        ("norm_before", any(form.norm_before for form in options.forms)),
        ("norm_after", any(form.norm_after != "none" for form in options.forms)),
    ):
        if there:
            shapes |= {f"{norm}_weight": (features,), f"{norm}_bias": (features,)}
    slots = {
        name: SlotInput(name=f"{path}.bottleneck.{name}", shape=("rows", *shape))
        for name, shape in shapes.items()
    }
    if len(options.forms) * len(options.activations) > 1:
        slots["code"] = SlotInput(name=f"{path}.bottleneck.code", shape=("rows",), dtype="int64")
    layer, location = _place(node)
    return BottleneckSite(
        path=path,
        layer=layer,
        location=location,
        features=features,
        normed=len(node.inputs) > 2,
        slot=BottleneckSlot(**slots),
    )


def _is_one_sum(options: BottleneckOptions) -> bool:
    """Whether a bottleneck is but one more addend, of what is there anyhow: then it needs no branch."""
    inputs = {form.input for form in options.forms}
    return inputs in ({"hidden"}, {"residual"}) and all(
        form.close and _skips_hidden(form) and form.norm_after == "none" and not form.norm_before
        for form in options.forms
    )


@dataclass
class _Bottleneck:
    """Emits ``u = act(z down + down_bias) up + up_bias``."""

    model: ir.Model
    emit: Emit
    factors: Mapping[str, ir.Value]
    activations: tuple[Activation, ...]
    ids: ir.Value | None
    used: ir.Value | None

    def added(self, y: ir.Value, z: ir.Value) -> ir.Value:
        """``y + u``."""
        weights = [self.factors[name] for name in ("down", "down_bias", "up", "up_bias")]
        code = self.factors.get("code") if len(self.activations) > 1 else None
        function, flags = BOTTLENECK_ADD, []
        if self.used is not None:
            function, flags = BOTTLENECK_ADD_IF, [self.used]
        return call_bottleneck(
            self.model,
            self.emit,
            function,
            y,
            z,
            *weights,
            code,
            *flags,
            self.ids,
            activations=self.activations,
        )

    def alone(self, choice: Choice, codes: int, z: ir.Value) -> ir.Value:
        """``u``."""
        down = self._linear(z, "down")
        active = choice.pick(
            {name: activate(self.emit, down, name) for name in self.activations},
            [name for _ in range(codes // len(self.activations)) for name in self.activations],
            3,
        )
        return self._linear(active, "up")

    def _linear(self, x: ir.Value, which: str) -> ir.Value:
        return call(
            self.model,
            self.emit,
            ROW_LINEAR,
            x,
            self.factors[which],
            self.factors[f"{which}_bias"],
            self.ids,
        )


@dataclass
class _End:
    """Emits the end of one sub-block."""

    model: ir.Model
    node: ir.Node
    emit: Emit

    def plain(self) -> ir.Value:
        """``norm(h + x)``."""
        h, x = self.node.inputs[:2]
        return self._close(self.emit("Add", h, x))

    def slotted(
        self,
        factors: Mapping[str, ir.Value],
        options: BottleneckOptions,
        ids: ir.Value | None,
        used: ir.Value | None = None,
    ) -> ir.Value:
        """The same with a bottleneck, in the form that each row's code says, if any is ``used``."""
        forms, activations = options.forms, options.activations
        spread = [form for form in forms for _ in activations]  # by code
        code = factors.get("code")
        row = None if code is None else self.emit("Gather", code, ids, axis=0)
        choice = Choice(self.model.graph, self.emit, row, len(spread))
        h, x = self.node.inputs[:2]
        assert h is not None
        assert x is not None
        total = self.emit("Add", h, x)
        total.type, total.shape = self.node.outputs[0].type, self.node.outputs[0].shape
        options_in = {"hidden": h, "residual": x, "sum": total}
        if any(form.input == "normed" for form in forms):
            options_in["normed"] = self._close(total)
        z = choice.pick(options_in, [form.input for form in spread], 3)
        before = ["norm" if form.norm_before else "bare" for form in spread]
        if "norm" in before:
            z = choice.pick({"bare": z, "norm": self._norm(z, factors, "norm_before", ids)}, before, 3)
        slot = _Bottleneck(self.model, self.emit, factors, options.activations, ids, used)
        plain = all(form.norm_after == "none" for form in forms)
        if plain and all(form.close and _skips_hidden(form) for form in forms):
            return self._close(slot.added(total, z))  # norm((u + h) + x), one Add fewer
        skips = [_skip(form) for form in spread]
        r = choice.pick(options_in, skips, 3)
        out = self._joined(choice, slot, spread, z, r)
        if not any(form.close for form in forms):
            return out
        ends = {"open": out, "close": self._close(self.emit("Add", out, x))}
        return choice.pick(ends, ["close" if form.close else "open" for form in spread], 3)

    def _joined(
        self, choice: Choice, slot: _Bottleneck, spread: list[BottleneckForm], z: ir.Value, r: ir.Value
    ) -> ir.Value:
        """``u + r``, with the norm after it around the sum or around the update."""
        kinds = [form.norm_after for form in spread]
        joined = {"none": slot.added(r, z)}
        if "sum" in kinds:
            joined["sum"] = self._norm(joined["none"], slot.factors, "norm_after", slot.ids)
        if "update" in kinds:
            normed = self._norm(slot.alone(choice, len(spread), z), slot.factors, "norm_after", slot.ids)
            joined["update"] = self.emit("Add", normed, r)
        return choice.pick(joined, kinds, 3)

    def _close(self, total: ir.Value) -> ir.Value:
        """The block's own norm, if it has one."""
        if len(self.node.inputs) == 2:
            return total
        epsilon = self.node.attributes["epsilon"].as_float()
        return self.emit("LayerNormalization", total, *self.node.inputs[2:], axis=-1, epsilon=epsilon)

    def _norm(
        self, x: ir.Value, factors: Mapping[str, ir.Value], which: str, ids: ir.Value | None
    ) -> ir.Value:
        """A LayerNorm with weights of the row's adapter."""
        features = self.node.attributes["features"].as_int()
        ones = constant(self.model.graph, f"adexport.ones_{features}", np.ones(features, np.float32))
        bare = self.emit("LayerNormalization", x, ones, axis=-1, epsilon=_EPSILON)
        scaled = call(self.model, self.emit, "RowScale", bare, factors[f"{which}_weight"], ids)
        return call(self.model, self.emit, "RowAdd", scaled, factors[f"{which}_bias"], ids)


def _skip(form: BottleneckForm) -> str:
    return form.input if form.skip == "input" else form.skip


def _skips_hidden(form: BottleneckForm) -> bool:
    return _skip(form) == "hidden"
