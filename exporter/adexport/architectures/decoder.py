"""Decoders: pre-LN blocks, and heads on the last token. Here they run prompts, without a cache."""

from __future__ import annotations

from .base import Architecture, BottleneckRule


class Decoder(Architecture):
    """Llama, and what kept its names."""

    bottlenecks: BottleneckRule | None = BottleneckRule(
        mh=r"layers\.(?P<layer>\d+)\.self_attn\.o_proj",
        output=r"layers\.(?P<layer>\d+)\.mlp\.down_proj",
        normed=False,
    )
    feature = "last"
    head = ("score",)
    token_head: str | None = "score"


class Gemma(Decoder):
    """Gemma 2 and 3 norm a sub-block's output before they add it: no form of bottleneck is known there."""

    bottlenecks = None


class GPT2(Decoder):
    """Names of its own, and fused projections."""

    bottlenecks = BottleneckRule(
        mh=r"h\.(?P<layer>\d+)\.attn\.c_proj", output=r"h\.(?P<layer>\d+)\.mlp\.c_proj", normed=False
    )
    token_head = "classifier"
