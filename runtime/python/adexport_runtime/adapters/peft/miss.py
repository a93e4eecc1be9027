"""MiSS (arXiv:2409.15371): ``y = W x + b + Dᵀ`` (sums of every r-th feature of x) (``peft.tuners.miss``).

The mini variant repeats D over the output features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...errors import Code, Problem
from ..neutral import FrozenLinear, LinearRecipe, LinearUpdate, LinearWeights
from .config import Count, TunerConfig
from .layer import Layer
from .method import Method, parts


class MissConfig(TunerConfig):
    """The keys of a MiSS config that decide what its tensors mean."""

    ignored: ClassVar[frozenset[str]] = frozenset(["miss_dropout"])

    r: Count
    mini_r: Count = 1
    init_weights: bool | str | None = True

    @classmethod
    def refusals(cls, data: Mapping[str, Any]) -> list[Problem]:
        """The variant that multiplies the base's weight."""
        problems = super().refusals(data)
        init = data.get("init_weights", True)
        if isinstance(init, str) and init != "mini":
            known = init == "bat"
            problems.append(
                Problem(
                    Code.UNSUPPORTED,
                    "init_weights",
                    got=repr(init),
                    expected="true, false or 'mini'",
                    cause="this variant multiplies blocks of the base's weight: a change of full rank"
                    if known
                    else "saved by a newer PEFT: what it means is not known",
                    mend="train with init_weights=True or 'mini'",
                )
            )
        return problems


def update(layer: Layer, config: MissConfig) -> LinearUpdate:
    """One layer of a MiSS: D ``[rank, out]``, or ``[rank, mini_r]``."""
    layer.need("miss_block")
    sizes = layer.sizes({"miss_block": ("rank", "out")})
    rank, columns = sizes["rank"], sizes["out"]
    layer.expect("rank", rank, config.r)
    mini = config.init_weights == "mini"
    if mini:
        layer.expect("mini_r", columns, config.mini_r, Code.WRONG_SHAPE)

    def finish(base: FrozenLinear) -> LinearWeights:
        out, into = base.weight.shape
        if not mini:
            layer.fits(base, "miss_block", out=columns)
        if rank > into or out % columns:
            raise layer.refusal(
                Problem(
                    Code.WRONG_SHAPE,
                    layer.names["miss_block"],
                    got=f"shape [{rank}, {columns}] for a layer of {into} by {out}",
                    expected=f"at most {into} rows, and columns that divide {out}",
                    cause="trained on another base",
                    mend="bind it to a bundle of its own base",
                )
            )
        block = np.tile(layer.values("miss_block"), out // columns)
        folds = (np.arange(into) % rank == np.arange(rank)[:, None]).astype(np.float64)
        name = layer.name("miss_block")
        return layer.product(block.T, folds, name, name)

    return LinearRecipe(frozenset(("lora_A", "lora_B")), rank, tuple(layer.names.values()), finish)


MISS = Method(MissConfig, parts("miss_block"), update)
