"""Banks of 16 bits under a float32 base: half the memory, and half of what a decode step reads of them.

Requires slots as local functions. Ensures that slot inputs of linear layers and bottlenecks are of the
chosen type, and that a function widens what it picked before it computes; a kernel widens as it reads.
Heads keep the base's type: they are small, and read once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import onnx_ir as ir

from adexport_runtime.slots import BankDtype, BottleneckSlot, LinearSlot

from ..ops import DOMAIN
from .precision import TYPES
from .rows import BANKS
from .slotted import Slotted

_Slot = TypeVar("_Slot", LinearSlot, BottleneckSlot)


def lower_banks(model: ir.Model, slots: Slotted, dtype: BankDtype) -> Slotted:
    """Narrow the slot inputs in place; returns the slots as they are then."""
    for function in model.functions.values():
        if function.domain == DOMAIN:
            _widen(function)
    sites = tuple(site.model_copy(update={"linear": _narrowed(site.linear, dtype)}) for site in slots.sites)
    bottlenecks = slots.bottlenecks
    if bottlenecks is not None:
        ends = tuple(
            site.model_copy(update={"slot": _narrowed(site.slot, dtype)}) for site in bottlenecks.sites
        )
        bottlenecks = bottlenecks.model_copy(update={"sites": ends})
    ends_slots = () if bottlenecks is None else tuple(site.slot for site in bottlenecks.sites)
    named = {
        factor.name
        for slot in (*(site.linear for site in sites), *ends_slots)
        for factor in slot.factors.values()
        if factor.dtype == dtype
    }
    for value in model.graph.inputs:
        if value.name in named:
            value.type = ir.TensorType(TYPES[dtype])
    return replace(slots, sites=sites, bottlenecks=bottlenecks)


def _narrowed(slot: _Slot, dtype: BankDtype) -> _Slot:
    return slot.model_copy(
        update={
            name: factor.model_copy(update={"dtype": dtype})
            for name, factor in slot.factors.items()
            if factor.dtype == "float"
        }
    )


def _widen(function: ir.Function) -> None:
    """Cast what a function picks from its banks to the type of its first input, which is computed."""
    inputs = function.graph.inputs
    for bank in (value for value in inputs if value.name in BANKS[function.name]):
        for node, index in list(bank.uses()):
            if node.op_type == "Gather":
                wide = _cast_behind(node.outputs[0], inputs[0])
                node.outputs[0].replace_all_uses_with(wide)
                wide.producer().replace_input_with(0, node.outputs[0])  # type: ignore[union-attr]
                continue
            cast = ir.node("CastLike", [bank, inputs[0]])
            assert node.graph is not None
            node.graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])


def _cast_behind(value: ir.Value, like: ir.Value) -> ir.Value:
    node = value.producer()
    assert node is not None
    assert node.graph is not None
    cast = ir.node("CastLike", [value, like])
    node.graph.insert_after(node, cast)
    return cast.outputs[0]
