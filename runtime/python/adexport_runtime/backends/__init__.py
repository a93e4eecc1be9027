"""What can run a bundle's graph: one file or package for each backend, and a line in ``open.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ..bank import Lease
from ..batch_rows import BatchRows
from ..limits import Limits
from ..tensors import Array

__all__ = ["Backend", "Binding", "Caches"]


class Binding:
    """What a backend has bound for a batch that decodes; nothing until the first step."""

    def __init__(self) -> None:
        """An empty one."""
        self.io: Any = None
        self.slots: tuple[object, ...] = ()
        self.caches: tuple[object, ...] = ()


class Caches(Protocol):
    """The KV caches of a batch, wherever they lie; a backend takes those that it made."""

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, when full."""
        ...

    @property
    def movable(self) -> bool:
        """Whether rows can be moved."""
        ...

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a row over another row."""
        ...


class Backend(Protocol):
    """Runs the graph of a bundle. Safe to call from several threads."""

    @property
    def provider(self) -> str:
        """What the graph runs on, as the library names it."""
        ...

    @property
    def limits(self) -> Limits:
        """The largest sizes that the graph can run with."""
        ...

    def run(self, feeds: Mapping[str, Array], lease: Lease) -> dict[str, Array]:
        """Run once: ``feeds`` by input name, the slot inputs from the lease; outputs by name."""
        ...

    def caches(self, rows: int, room: int) -> Caches:
        """Reserve caches for a graph that generates: ``rows`` texts of up to ``room`` tokens."""
        ...

    def step(
        self, feeds: Mapping[str, Array], slots: BatchRows, caches: Caches, rows: slice, binding: Binding
    ) -> Array:
        """Run new tokens of the rows, which the caches take up; the logits that ``feeds`` asks for.

        ``feeds`` by input name with the rows first. ``binding`` is kept by the caller from step to step.
        """
        ...

    def close(self) -> None:
        """Free what the backend holds."""
        ...
