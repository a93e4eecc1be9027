"""Places for slots that no module of the model stands for: the ends of sub-blocks, and heads.

Sub-block ends are found on the traced graph: behind a layer that the family's rule names, the block adds
its input, and a LayerNorm may follow. The two become one opaque ``Residual`` op.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from adexport_runtime.slots import Feature, OwnHead

from .architectures import BottleneckRule
from .lower.graph import Emitter, opaque
from .ops import DOMAIN, HEAD, LINEAR, RESIDUAL


@dataclass(frozen=True)
class HeadPlace:
    """Where heads go: what they read, ``[…, features]``, and how the family's own head reads."""

    feature: Feature
    features: int
    own: OwnHead | None


def emit_head(
    place: HeadPlace,
    hidden: torch.Tensor,
    pooled: torch.Tensor | None,
    padding: torch.Tensor | None,
    own: torch.Tensor | None,
) -> torch.Tensor:
    """``adexport::Head``; the result has the shape of ``own``, or stands for labels yet unknown."""
    tokens = hidden.shape[:2] if place.feature == "tokens" else hidden.shape[:1]
    result: torch.Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{HEAD}",
        (hidden, pooled, padding, own),
        {
            "feature": place.feature,
            "features": place.features,
            "own": place.own.model_dump_json() if place.own else "",
        },
        dtype=hidden.dtype,
        shape=(*tokens, 2) if own is None else tuple(own.shape),
        version=1,
    )
    return result


def with_base_output(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    """The model's output, and that of the base inside it, of one call."""
    kept: list[Any] = []
    handle = model.base_model.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        result = model(**inputs, return_dict=True)
    finally:
        handle.remove()
    return result, kept[-1]


def mark_residuals(graph: ir.Graph, rule: BottleneckRule | None) -> list[str]:
    """Put ``Residual`` ops at the ends of sub-blocks; returns the layers where there is no such end."""
    missed = []
    for node in list(opaque(graph, LINEAR)) if rule else ():
        assert rule is not None
        path = node.attributes["site"].as_string()
        place = rule.find(path)
        if place is not None and not _mark(graph, node, path, *place, normed=rule.normed):
            missed.append(path)
    return missed


def _mark(graph: ir.Graph, node: ir.Node, path: str, layer: int, location: str, *, normed: bool) -> bool:
    h = node.outputs[0]
    add = _only_user(h, "Add")
    if add is None:
        return False
    end, weights, epsilon = add, [], 0.0
    if normed:
        norm = _only_user(add.outputs[0], "LayerNormalization")
        if norm is None or norm.inputs[0] is not add.outputs[0]:
            return False
        end, weights, epsilon = norm, list(norm.inputs[1:]), norm.attributes["epsilon"].as_float()
    x = next(value for value in add.inputs if value is not h)
    value = Emitter(graph, end)(
        RESIDUAL,
        h,
        x,
        *weights,
        domain=DOMAIN,
        site=path,
        layer=layer,
        location=location,
        features=node.attributes["out_features"].as_int(),
        epsilon=epsilon,
    )
    Emitter(graph, end).replace(value)
    if end is not add:
        graph.remove(add, safe=True)
    return True


def _only_user(value: ir.Value, op: str) -> ir.Node | None:
    """The one node that uses a value, if it is of that kind."""
    users = [use.node for use in value.uses()]
    if len(users) != 1 or value.is_graph_output() or users[0].op_type != op or users[0].domain:
        return None
    return users[0]
