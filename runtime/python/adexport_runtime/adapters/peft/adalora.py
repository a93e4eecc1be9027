"""AdaLoRA (arXiv:2303.10512): ``y = W x + b + s B (A * E) x`` (``peft.tuners.adalora``).

``s = alpha / (init_r + 1e-5)``: the divisor stays that of the start, however many rows were pruned. An
alpha of 0 or less means the rows that are left.
"""

from __future__ import annotations

import re
from typing import ClassVar

from ...errors import Code, Problem
from ..neutral import LinearUpdate, LinearWeights
from .config import Count, Finite, Refusals, TunerConfig
from .layer import Layer
from .lora import LoraConfig
from .method import Method, parts


class AdaLoraConfig(TunerConfig):
    """The keys of an AdaLoRA config that decide what its tensors mean."""

    #: AdaLoRA shares LoRA's config, and reads none of these
    ignored: ClassVar[frozenset[str]] = LoraConfig.ignored | frozenset(
        [
            "r",
            "fan_in_fan_out",
            "use_rslora",
            "alpha_pattern",
            "init_lora_weights",
            "lora_bias",
            "target_r",
            "tinit",
            "tfinal",
            "deltaT",
            "beta1",
            "beta2",
            "orth_reg_weight",
            "total_step",
        ]
    )
    refused: ClassVar[Refusals] = {
        **LoraConfig.refused,
        **dict.fromkeys(
            ("use_dora", "use_bdlora", "velora_config"),
            ("PEFT has no such AdaLoRA", "put the config beside the file that it was saved with"),
        ),
    }

    init_r: Count
    lora_alpha: Finite
    rank_pattern: dict[str, list[bool]] | None = None

    def rank(self, module: str) -> int:
        """The rows that are left of a module."""
        for name, kept in (self.rank_pattern or {}).items():
            if re.sub(r"\.lora_E(\.default)?$", "", name) == module:
                return sum(kept)
        return self.init_r


def update(layer: Layer, config: AdaLoraConfig) -> LinearUpdate:
    """One layer of an AdaLoRA: A ``[rank, in]``, E ``[rank, 1]``, B ``[out, rank]``."""
    shapes = {"lora_A": ("rank", "in"), "lora_B": ("out", "rank"), "lora_E": ("rank", "one")}
    layer.need(*shapes)
    sizes = layer.sizes(shapes, zero=("rank",))
    layer.expect("rank", sizes["rank"], config.rank(layer.module))
    if sizes["one"] != 1:
        got = f"shape {list(layer.tensors['lora_E'].shape)}"
        raise layer.refusal(Problem(Code.WRONG_SHAPE, layer.names["lora_E"], got=got, expected="[rank, 1]"))
    if sizes["rank"] == 0:
        return LinearWeights({}, {})
    alpha = config.lora_alpha if config.lora_alpha > 0 else sizes["rank"]
    scaling = alpha / (config.init_r + 1e-5)
    return layer.product(
        layer.values("lora_B") * scaling,
        layer.values("lora_A") * layer.values("lora_E"),
        layer.name("lora_B"),
        layer.name("lora_A", "lora_E"),
    )


ADALORA = Method(AdaLoraConfig, parts("lora_A", "lora_B", "lora_E"), update, empty=True)
