"""VeRA (arXiv:2310.11454): ``y = W x + b + lambda_b (B (lambda_d (A x)))`` (``peft.tuners.vera``).

All layers share A and B, made for the largest of them: a layer takes the first columns and rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ...errors import Code, Problem
from ..neutral import FrozenLinear, LinearRecipe, LinearUpdate, LinearWeights
from .config import Count, TunerConfig
from .layer import Layer
from .method import Method, parts


class VeraConfig(TunerConfig):
    """The keys of a VeRA config that decide what its tensors mean."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["fan_in_fan_out", "projection_prng_key", "vera_dropout", "d_initial", "init_weights"]
    )

    r: Count
    save_projection: bool = True

    @classmethod
    def refusals(cls, data: Mapping[str, Any]) -> list[Problem]:
        """Projections that torch's generator makes are not in the file."""
        problems = super().refusals(data)
        if data.get("save_projection", True) is False:
            problems.append(
                Problem(
                    Code.UNSUPPORTED,
                    "save_projection",
                    got="False",
                    expected="True",
                    cause="vera_A and vera_B are not in the file; PEFT makes them with torch's generator",
                    mend="load it with PEFT, set save_projection=True in its config, save it again",
                )
            )
        return problems


def update(layer: Layer, config: VeraConfig) -> LinearUpdate:
    """One layer of a VeRA: ``lambda_d`` ``[rank]``, ``lambda_b`` ``[out]``, and the shared A and B."""
    layer.need("vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B")
    shapes = {"vera_lambda_d": ("rank",), "vera_lambda_b": ("out",), "vera_A": ("rank", "most in")}
    sizes = layer.sizes({**shapes, "vera_B": ("most out", "rank")})
    rank, out = sizes["rank"], sizes["out"]
    layer.expect("rank", rank, config.r)
    if sizes["most out"] < out:
        raise layer.refusal(_too_small(layer, "vera_B", f"{sizes['most out']} rows", out))

    def finish(base: FrozenLinear) -> LinearWeights:
        into = base.weight.shape[1]
        layer.fits(base, "vera_lambda_b", out=out)
        if sizes["most in"] < into:
            raise layer.refusal(_too_small(layer, "vera_A", f"{sizes['most in']} columns", into))
        return layer.product(
            layer.values("vera_lambda_b")[:, None] * layer.values("vera_B")[:out],
            layer.values("vera_lambda_d")[:, None] * layer.values("vera_A")[:, :into],
            layer.name("vera_B", "vera_lambda_b"),
            layer.name("vera_A", "vera_lambda_d"),
        )

    return LinearRecipe(frozenset(("lora_A", "lora_B")), rank, tuple(layer.names.values()), finish)


def _too_small(layer: Layer, part: str, got: str, needed: int) -> Problem:
    cause = "the projections of another adapter, or trained on another base"
    return Problem(Code.WRONG_SHAPE, layer.names[part], got=got, expected=f"at least {needed}", cause=cause)


VERA = Method(VeraConfig, parts("vera_lambda_b", "vera_lambda_d"), update, shared=("vera_A", "vera_B"))
