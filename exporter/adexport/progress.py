"""How long work tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

#: Called with the name of each step as it starts.
Progress = Callable[[str], None]


def silent(_step: str) -> None:
    """Tell nobody."""
