"""ALBERT: one block, run many times."""

from __future__ import annotations

from .base import Architecture, BottleneckRule


class Albert(Architecture):
    """A bottleneck in the shared block acts wherever the block runs; blocks count within their group."""

    bottlenecks = BottleneckRule(
        mh=r"albert_layer_groups\.0\.albert_layers\.(?P<layer>\d+)\.attention\.dense",
        output=r"albert_layer_groups\.0\.albert_layers\.(?P<layer>\d+)\.ffn_output",
        normed=True,
    )
    feature = "pooler"
    head = ("classifier",)
