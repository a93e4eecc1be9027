"""Trained biases of the base's own layers (``bias='…_only'``): PEFT puts them in the base's place."""

from __future__ import annotations

import numpy as np

from ...errors import AdapterError, Code, Problem
from ...tensors import Array
from ..neutral import FrozenLinear, LinearRecipe, LinearUpdate, LinearWeights
from .layer import single


def with_saved_bias(module: str, update: LinearUpdate, saved: tuple[str, Array] | None) -> LinearRecipe:
    """An update, and ``bias = saved - base`` beside it; ``saved`` ``[out]`` has its name in the file.

    A layer without a bias has none to save, so that whether one is lost is known with the base.
    """

    def finish(base: FrozenLinear) -> LinearWeights:
        if saved is None:
            if base.bias is not None:
                raise _refuse(module, _lost(module))
            return update.solve(lambda: base)
        name, values = saved
        if base.bias is None or values.shape != base.bias.shape or values.dtype.kind not in "fV":
            has = "no bias" if base.bias is None else f"a bias of shape {list(base.bias.shape)}"
            got = f"{values.dtype} of shape {list(values.shape)}"
            cause = "trained on another base"
            raise _refuse(module, Problem(Code.WRONG_SHAPE, name, got=got, expected=has, cause=cause))
        weights = update.solve(lambda: base)
        change = values.astype(np.float64) - base.bias + weights.factors.get("bias", 0.0)
        names = weights.names.get("bias")
        return LinearWeights(
            factors={**weights.factors, "bias": single(change)},
            names={**weights.names, "bias": name if names is None else f"{names}, {name}"},
        )

    own = () if saved is None else (saved[0],)
    kinds = update.kinds | ({"bias"} if saved is not None else frozenset())
    return LinearRecipe(kinds=kinds, rank=update.rank, tensors=(*update.tensors, *own), finish=finish)


def _refuse(module: str, problem: Problem) -> AdapterError:
    return AdapterError(f"{module} is refused", problem)


def _lost(module: str) -> Problem:
    return Problem(
        Code.HALF_MISSING,
        module,
        got="no base_layer.bias",
        expected="the trained bias, as the config's bias says",
        cause="a partial save, or the config of another adapter",
        mend="save the adapter again",
    )
