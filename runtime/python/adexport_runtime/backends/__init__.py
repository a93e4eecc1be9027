"""What can run a bundle's graph, one file per backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ..bank import Lease
from ..tensors import Array

__all__ = ["Backend"]


class Backend(Protocol):
    """Runs the graph of a bundle. Safe to call from several threads."""

    @property
    def provider(self) -> str:
        """What the graph runs on, as the library names it."""
        ...

    def run(self, feeds: Mapping[str, Array], lease: Lease) -> dict[str, Array]:
        """Run once: ``feeds`` by input name, the slot inputs from the lease; outputs by name."""
        ...

    def close(self) -> None:
        """Free what the backend holds."""
        ...
