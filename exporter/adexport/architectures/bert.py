"""BERT, and the encoders that kept the shape of its blocks and of its head."""

from __future__ import annotations

from typing import get_args

from adexport_runtime.slots import Activation, OwnHead

from .base import TEXT_CLASSIFICATION, Architecture, BottleneckRule

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
    """A pooler that belongs to the head, with an activation of the config's."""

    bottlenecks = BLOCKS

    def own_head(self, task: str) -> OwnHead | None:
        """The pooler and the classifier; None where no slot has the activation between them."""
        if task != TEXT_CLASSIFICATION:
            return super().own_head(task)
        activation = self.config.pooler_hidden_act
        if activation not in get_args(Activation):
            return None
        return OwnHead(feature="first", dense="pooler.dense", activation=activation, out="classifier")
