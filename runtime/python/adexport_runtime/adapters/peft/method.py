"""What a PEFT method is to the reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..neutral import LinearUpdate
from .config import TunerConfig
from .layer import Layer


@dataclass(frozen=True)
class Method:
    """How a method's config and tensors are read.

    ``parts`` are the endings of its tensors' names -> what ``update`` calls them; ``shared`` are those
    that all layers share. ``update`` makes one layer's update; it raises an ``AdapterError`` that names
    all that is wrong with the layer. ``empty``: tensors without elements can be meant.
    """

    config: type[TunerConfig]
    parts: Mapping[str, str]
    update: Callable[[Layer, Any], LinearUpdate]
    shared: tuple[str, ...] = field(default=())
    empty: bool = False


def parts(*names: str) -> dict[str, str]:
    """Tensors that are called in the file what they are called in the equations."""
    return {name: name for name in names}
