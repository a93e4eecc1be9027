"""RoBERTa and its descendants: positions start behind the padding id."""

from __future__ import annotations

from .base import Architecture
from .bert import BLOCKS


class Roberta(Architecture):
    """Position ids count from ``pad_token_id + 1``, so that many of them are no positions."""

    bottlenecks = BLOCKS
    head = ("classifier.dense", "tanh", "classifier.out_proj")

    @property
    def max_positions(self) -> int | None:
        """The longest sequence, in tokens."""
        limit = super().max_positions
        return None if limit is None else limit - (self.config.pad_token_id or 0) - 1
