"""What came out, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compared import DOMAINS, Texts
from matplotlib.figure import Figure
from rich.table import Table

from adexport.bench.measure import Quartiles
from adexport_runtime.tensors import Array


@dataclass(frozen=True)
class Result:
    """A family: accuracies from 0 to 1 by domain, what an adapter with its head weighs, what it takes.

    ``parameters`` are a part of the base's, ``latency`` a multiple of that of the base without slots.
    """

    name: str
    torch: Mapping[str, float]
    runtime: Mapping[str, float]
    parameters: float
    file_bytes: int
    latency: Quartiles

    @property
    def mean(self) -> float:
        """The accuracy over all domains, in the runtime."""
        return float(np.mean(list(self.runtime.values())))


def accuracy(logits: Array, texts: Texts) -> float:
    """How many of the held-out texts are judged as people did, from 0 to 1."""
    return float((logits.argmax(axis=1) == [example.label for example in texts.held_out]).mean())


def ratio(found: Quartiles) -> str:
    """A ratio with its quartiles."""
    return f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"


def costs(results: Sequence[Result]) -> Table:
    """What each family weighs, and what it takes."""
    shown = _table("Size of an adapter with its head, and latency", "parameters", "file", "latency")
    for one in results:
        size = f"{one.file_bytes / 1000:.0f} kB"
        shown.add_row(one.name, f"{one.parameters:.2%}", size, ratio(one.latency))
    return shown


def gains(results: Sequence[Result], data: Mapping[str, Texts]) -> Table:
    """Accuracies of each family, and of always saying what is right most often."""
    shown = _table("Accuracy on held-out texts", "torch", "runtime", *DOMAINS)
    rows = {one.name: (list(one.torch.values()), list(one.runtime.values())) for one in results}
    largest = [_largest_class(data[domain]) for domain in DOMAINS]
    rows["the larger class"] = (largest, largest)
    for name, (torch, runtime) in rows.items():
        shown.add_row(name, *(f"{share:.1%}" for share in (np.mean(torch), np.mean(runtime), *runtime)))
    return shown


def _table(title: str, *columns: str) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("family", no_wrap=True)
    for name in columns:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def draw(results: Sequence[Result], batch: str, path: Path) -> None:
    """Accuracy against latency, as a PNG; ``batch`` says what was timed."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")  # no pyplot: nothing asks for a display
    axes = figure.subplots()
    for one in results:
        low, median, high = one.latency.low, one.latency.median, one.latency.high
        error = [[median - low], [high - median]]
        label = f"{one.name} ({one.parameters:.1%})"
        axes.errorbar(median, 100 * one.mean, xerr=error, fmt="o", markersize=8, capsize=3, label=label)
    axes.legend()
    axes.margins(x=0.15, y=0.2)
    axes.grid(alpha=0.3)
    axes.set_title("Adapters on MiniLM (in brackets: their parameters, of the base's)")
    axes.set_xlabel(f"CPU time, as a multiple of the plain base's ({batch}; bars: quartiles)")
    axes.set_ylabel("accuracy on held-out texts, mean of four domains, %")
    figure.savefig(path)


def _largest_class(texts: Texts) -> float:
    positive = float(np.mean([example.label for example in texts.held_out]))
    return max(positive, 1 - positive)
