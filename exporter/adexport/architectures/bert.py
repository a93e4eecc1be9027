"""BERT, and the encoders that kept the shape of its blocks and of its head."""

from __future__ import annotations

from .base import Architecture, BottleneckRule

BLOCKS = BottleneckRule(
    mh=r"encoder\.layer\.(?P<layer>\d+)\.attention\.output\.dense",
    output=r"encoder\.layer\.(?P<layer>\d+)\.output\.dense",
    normed=True,
)


class Bert(Architecture):
    """A pooled head."""

    bottlenecks = BLOCKS
    feature = "pooler"
    head = ("classifier",)


class Electra(Architecture):
    """A head of two layers on the first token."""

    bottlenecks = BLOCKS
    head = ("classifier.dense", "gelu", "classifier.out_proj")


class DebertaV2(Architecture):
    """A pooler that belongs to the head."""

    bottlenecks = BLOCKS
    head = ("pooler.dense", "gelu", "classifier")
