"""DistilBERT: BERT's blocks under names of its own, and a head on the first token."""

from __future__ import annotations

from .base import Architecture, BottleneckRule


class DistilBert(Architecture):
    """No pooler; the head has a layer in its place."""

    bottlenecks = BottleneckRule(
        mh=r"transformer\.layer\.(?P<layer>\d+)\.attention\.out_lin",
        output=r"transformer\.layer\.(?P<layer>\d+)\.ffn\.lin2",
        normed=True,
    )
    head = ("pre_classifier", "relu", "classifier")
