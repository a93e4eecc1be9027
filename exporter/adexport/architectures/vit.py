"""ViT: pixels in, a fixed number of patches behind them."""

from __future__ import annotations

from typing import Any

from adexport_runtime.manifest import Input
from adexport_runtime.slots import OwnHead

from .base import IMAGE_CLASSIFICATION, Architecture, BottleneckRule


class ViT(Architecture):
    """Images of one size: ``pixel_values`` is float32 ``[batch, channels, height, width]``."""

    main_input = "pixel_values"
    bottlenecks = BottleneckRule(
        mh=r"layers\.(?P<layer>\d+)\.attention\.o_proj",
        output=r"layers\.(?P<layer>\d+)\.mlp\.fc2",
        normed=False,
    )

    @property
    def max_positions(self) -> int | None:
        """None: an image has no length."""
        return None

    def own_head(self, task: str) -> OwnHead | None:
        """One layer on the class token."""
        return OwnHead(feature="first", out="classifier") if task == IMAGE_CLASSIFICATION else None

    def inputs(self, model: Any) -> tuple[Input, ...]:
        """The pixels."""
        del model
        height, width = self._size()
        shape = ("batch", int(self.config.num_channels), height, width)
        return (Input(name="pixel_values", dtype="fp32", shape=shape),)

    def hidden_length(self, model: Any) -> str | int:
        """The patches and the class token."""
        del model
        (height, width), patch = self._size(), self.config.patch_size
        rows, columns = (patch, patch) if isinstance(patch, int) else patch
        return 1 + (height // rows) * (width // columns)

    def _size(self) -> tuple[int, int]:
        size = self.config.image_size
        return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
