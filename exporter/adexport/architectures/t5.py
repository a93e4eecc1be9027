"""T5's encoder: relative positions, norms without a mean."""

from __future__ import annotations

from .base import Architecture, BottleneckRule


class T5Encoder(Architecture):
    """The encoder alone: the decoder needs a cache."""

    bare_loader = "T5EncoderModel"
    bottlenecks = BottleneckRule(
        mh=r"block\.(?P<layer>\d+)\.layer\.0\.SelfAttention\.o",
        output=r"block\.(?P<layer>\d+)\.layer\.1\.DenseReluDense\.wo",
        normed=False,
    )

    @property
    def max_positions(self) -> int | None:
        """None: positions are relative."""
        return None
