"""What the samples say, and how they show that something takes a while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

console = Console(highlight=False)
terminal = Console(stderr=True)


def near(path: Path) -> Path:
    """A path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def say(text: str) -> None:
    """Print a line whole, so that it can be copied."""
    console.print(text, soft_wrap=True)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Show a step while it runs, and how long it took."""
    started = time.perf_counter()
    with terminal.status(Text(f"{name} …")):
        yield
    done(name, started)


def done(name: str, started: float) -> None:
    """Say that a step is done; ``started`` is of ``time.perf_counter``."""
    console.print(Text(f"✓ {name}  ({time.perf_counter() - started:.1f} s)"), soft_wrap=True)
