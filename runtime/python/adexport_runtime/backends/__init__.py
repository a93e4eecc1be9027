"""What can run a bundle's graph, one file per backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ..bank import Lease
from ..batch_rows import BatchRows
from ..tensors import Array
from .kv_caches import KvCaches

__all__ = ["Backend", "Binding", "KvCaches"]


class Binding:
    """What a backend has bound for a batch that decodes; nothing until the first step."""

    def __init__(self) -> None:
        """An empty one."""
        self.io: Any = None
        self.slots: tuple[object, ...] = ()
        self.caches: tuple[object, ...] = ()


class Backend(Protocol):
    """Runs the graph of a bundle. Safe to call from several threads."""

    @property
    def provider(self) -> str:
        """What the graph runs on, as the library names it."""
        ...

    def run(self, feeds: Mapping[str, Array], lease: Lease) -> dict[str, Array]:
        """Run once: ``feeds`` by input name, the slot inputs from the lease; outputs by name."""
        ...

    def caches(self, rows: int, room: int) -> KvCaches:
        """Reserve caches for a graph that generates: ``rows`` texts of up to ``room`` tokens."""
        ...

    def step(
        self, feeds: Mapping[str, Array], slots: BatchRows, caches: KvCaches, rows: slice, binding: Binding
    ) -> Array:
        """Run new tokens of the rows, which the caches take up; the logits that ``feeds`` asks for.

        ``feeds`` by input name with the rows first. ``binding`` is kept by the caller from step to step.
        """
        ...

    def close(self) -> None:
        """Free what the backend holds."""
        ...
