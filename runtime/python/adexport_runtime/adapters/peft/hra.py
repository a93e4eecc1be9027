"""HRA (arXiv:2405.17484): ``y = W H x + b`` with Householder's reflections (``peft.tuners.hra``).

``H = (I - 2 u1 u1ᵀ) … (I - 2 ur urᵀ)`` for the columns of U at unit length; with ``apply_GS`` they
are made orthonormal first, so that ``H = I - 2 V Vᵀ``.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ...errors import Code, Problem
from ..neutral import FrozenLinear, LinearRecipe, LinearUpdate, LinearWeights
from .config import Count, TunerConfig
from .layer import Layer
from .method import Method, parts
from .numeric import orthonormal, reflections


class HRAConfig(TunerConfig):
    """The keys of an HRA config that decide what its tensors mean."""

    ignored: ClassVar[frozenset[str]] = frozenset(["init_weights"])

    r: Count
    apply_GS: bool = False


def update(layer: Layer, config: HRAConfig) -> LinearUpdate:
    """One layer of an HRA: U ``[in, rank]``."""
    layer.need("hra_u")
    sizes = layer.sizes({"hra_u": ("in", "rank")})
    layer.expect("rank", sizes["rank"], config.r)
    vectors = layer.values("hra_u")
    name = layer.name("hra_u")
    if config.apply_GS:
        found = orthonormal(vectors)
        if found is None:
            raise layer.refusal(
                Problem(
                    Code.UNSUPPORTED,
                    name,
                    got="columns of which one depends on the others",
                    cause="what Gram and Schmidt make of them is rounding noise: hardly trained",
                    mend="train it further, or with apply_GS=False",
                )
            )
        right, change = found.T, -2 * found
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = vectors / np.linalg.norm(vectors, axis=0)
        right, change = unit.T, reflections(unit)

    def finish(base: FrozenLinear) -> LinearWeights:
        layer.fits(base, "hra_u", into=sizes["in"])
        return layer.product(base.weight.astype(np.float64) @ change, right, name, name)

    return LinearRecipe(frozenset(("lora_A", "lora_B")), sizes["rank"], (name,), finish)


HRA = Method(HRAConfig, parts("hra_u"), update)
