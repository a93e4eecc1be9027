"""Golden adapters of other libraries: which there are, and bundles that serve them all at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file

from adexport.build import build_model
from adexport.options import BuildOptions
from adexport_runtime.outputs import Outputs

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
_TASKS = {
    "question-answering": "token-classification",
    "FEATURE_EXTRACTION": "feature-extraction",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
}
#: the outputs of a question answering head, in the order of its labels
_SPANS = ("start_logits", "end_logits")
#: rows of the batches in which every adapter stands beside others
_BATCH = 16


@dataclass(frozen=True)
class Golden:
    """One golden adapter."""

    library: str
    base: str
    case: str
    kind: str
    family: str
    task: str
    why: str

    @property
    def path(self) -> Path:
        """Its folder."""
        return GOLDEN / self.library / self.base / self.case

    @property
    def name(self) -> str:
        """The name to bind it under."""
        return self.case.replace("+", "p")

    @property
    def group(self) -> tuple[str, str, str]:
        """What one bundle can serve together."""
        return self.library, self.base, self.task

    def __str__(self) -> str:
        return f"{self.base}-{self.case}"


def cases(library: str, kind: str) -> list[Golden]:
    """The golden adapters of a library that are to be served, refused or converted."""
    listed = json.loads((GOLDEN / library / "index.json").read_text())
    return [
        Golden(
            library,
            entry["base"],
            entry["case"],
            entry["kind"],
            entry["family"],
            _TASKS.get(entry["task"], entry["task"]),
            entry.get("why", ""),
        )
        for entry in listed
        if entry["kind"] == kind
    ]


def groups(library: str, kind: str = "serve") -> list[tuple[str, str, str]]:
    """The bundles that a library's golden adapters need."""
    return list(dict.fromkeys(case.group for case in cases(library, kind)))


def build(group: tuple[str, str, str], target: Path, more: tuple[Path, ...] = ()) -> Path:
    """A bundle with exactly the slots that the served adapters of a group, and some more, need."""
    library, base, task = group
    like = (*(case.path for case in cases(library, "serve") if case.group == group), *more)
    slots = None if task == "feature-extraction" else ("head",)
    # full rank is what some methods come to; no adapter is left out for its size
    options = BuildOptions(like=like, slots=slots, max_rank=1000, max_width=64)
    build_model(str(GOLDEN / library / "bases" / base), target, task=task, options=options)
    return target


def expected(case: Golden) -> dict[str, Any]:
    """What the library computed: inputs and outputs."""
    return load_file(case.path / "expected.safetensors")


def feeds(tensors: dict[str, Any]) -> dict[str, Any]:
    """The inputs among them."""
    return {name: tensors[name] for name in ("input_ids", "attention_mask")}


def difference(got: Any, wanted: Any, mask: Any) -> float:
    """The largest, relative to the largest value (at least 1); at padding nothing counts."""
    got = got[..., : wanted.shape[-1]]
    if not wanted.size:  # logits of a row without a head
        return 0.0
    if wanted.shape[:2] == mask.shape:
        got, wanted = got[mask.astype(bool)], wanted[mask.astype(bool)]
    return float(np.abs(got - wanted).max() / max(1.0, float(np.abs(wanted).max())))


def outputs(tensors: dict[str, Any]) -> list[str]:
    """The outputs among them."""
    return [name for name in tensors if name not in ("input_ids", "attention_mask")]


class Runs(Protocol):
    """An engine of either runtime."""

    def run(self, inputs: Any, adapters: Any = None) -> Outputs:
        """One batch."""
        ...


def check_alone(engine: Runs, case: Golden, limit: float) -> None:
    """All rows with one adapter, against the library."""
    tensors = expected(case)
    got = engine.run(feeds(tensors), case.name)
    for name in outputs(tensors):
        given = got["logits"][..., _SPANS.index(name)] if name in _SPANS else got[name]
        found = difference(given, tensors[name], tensors["attention_mask"])
        assert found <= limit, f"{name}: {found:.2e}"


def check_mixed(engine: Runs, served: list[Golden], limit: float) -> None:
    """Every adapter on a row beside others and beside the base, against the same row alone."""
    tensors = expected(served[0])
    for start in range(0, len(served), _BATCH):
        names = [None, *(case.name for case in served[start : start + _BATCH])]
        picked = [row % len(tensors["input_ids"]) for row in range(len(names))]
        batch = {name: array[picked] for name, array in feeds(tensors).items()}
        mixed = engine.run(batch, names)
        for row, name in enumerate(names):
            alone = engine.run({key: array[row : row + 1] for key, array in batch.items()}, name)
            assert mixed.labels[row] == alone.labels[0]
            for output in alone:
                one, many = (result.row(at)[output] for result, at in ((alone, 0), (mixed, row)))
                assert many.shape == one.shape
                found = difference(many[None], one[None], batch["attention_mask"][row : row + 1])
                assert found <= limit, f"{name}, {output}: {found:.2e}"
