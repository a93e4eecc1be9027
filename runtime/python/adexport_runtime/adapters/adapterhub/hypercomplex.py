"""Hypercomplex (PHM) projections of AdapterHub, made dense.

A projection ``[in, out]`` is the sum over i of ``kron(rule_i, W_i)``, with rules ``[n, n, n]`` and ``W``
``[n, in / n, out / n]``, either of them a product of two factors, either of them shared by all layers
(Mahabadi et al., arXiv:2106.04647; ``adapters.methods.modeling.PHMLayer``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from ...tensors import Array
from .keys import Parts
from .settings import Settings

Shapes = dict[str, tuple[int, ...]]


class PhmSettings(Settings):
    """How a projection is put together; without ``phm_layer`` it is a plain matrix."""

    phm_layer: bool = False
    phm_dim: Annotated[int, Field(gt=0)] = 4
    phm_rank: Annotated[int, Field(gt=0)] | None = 1
    phm_bias: bool | None = True
    factorized_phm_W: bool | None = True
    shared_W_phm: bool | None = False
    factorized_phm_rule: bool | None = False
    shared_phm_rule: bool | None = True


def own_shapes(path: str, into: int, out: int, settings: PhmSettings) -> Shapes:
    """The tensors of one projection, by part; those that all layers share are not among them."""
    shapes: Shapes = {}
    if not settings.shared_phm_rule:
        shapes |= _rule(f"{path}.phm_rule", settings)
    if not settings.shared_W_phm:
        shapes |= _matrix(f"{path}.W", into, out, settings)
    if settings.phm_bias:
        shapes[f"{path}.b"] = (out,)
    return shapes


def shared_shapes(features: int, width: int, settings: PhmSettings) -> Shapes:
    """The tensors that all layers share."""
    shapes: Shapes = {}
    if settings.phm_layer and settings.shared_phm_rule:
        shapes |= _rule("phm_rule", settings)
    if settings.phm_layer and settings.shared_W_phm:
        shapes |= _matrix("W_down", features, width, settings) | _matrix("W_up", width, features, settings)
    return shapes


def dense(
    path: str, side: str, own: Parts, shared: Parts, out: int, settings: PhmSettings
) -> tuple[Array, Array]:
    """The matrix ``[in, out]`` and the bias ``[out]`` of a projection whose tensors have their shapes."""
    rule = _product("phm_rule", shared) if settings.shared_phm_rule else _product(f"{path}.phm_rule", own)
    matrix = _product(f"W_{side}", shared) if settings.shared_W_phm else _product(f"{path}.W", own)
    rows, columns = rule.shape[1] * matrix.shape[1], rule.shape[2] * matrix.shape[2]
    summed = np.einsum("iab,icd->acbd", rule, matrix).reshape(rows, columns)
    bias = own[f"{path}.b"].array.astype(np.float64) if settings.phm_bias else np.zeros(out)
    return summed, bias


def _rule(path: str, settings: PhmSettings) -> Shapes:
    n = settings.phm_dim
    if settings.factorized_phm_rule:
        return {f"{path}_left": (n, n, 1), f"{path}_right": (n, 1, n)}
    return {path: (n, n, n)}


def _matrix(path: str, into: int, out: int, settings: PhmSettings) -> Shapes:
    n, rank = settings.phm_dim, settings.phm_rank or 0
    if settings.factorized_phm_W:
        return {f"{path}_left": (n, into // n, rank), f"{path}_right": (n, rank, out // n)}
    return {path: (n, into // n, out // n)}


def _product(path: str, parts: Mapping[str, tuple[str, Array]]) -> Array:
    """A stack of matrices, or the product of two."""
    if path in parts:
        return parts[path][1].astype(np.float64)
    left, right = (parts[f"{path}_{half}"][1].astype(np.float64) for half in ("left", "right"))
    return left @ right
