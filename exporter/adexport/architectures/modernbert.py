"""ModernBERT: a pre-LN encoder."""

from __future__ import annotations

from .base import Architecture, BottleneckRule


class ModernBert(Architecture):
    """Its own head has a norm between its layers, so a replaced one has no place in a head slot."""

    bottlenecks = BottleneckRule(
        mh=r"layers\.(?P<layer>\d+)\.attn\.Wo", output=r"layers\.(?P<layer>\d+)\.mlp\.Wo", normed=False
    )
    token_head = None
