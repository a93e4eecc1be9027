"""What each family costs: its time as a multiple of the plain base's, on the same batch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from compared import DOMAINS, FAMILIES, Family

from adexport import BuildOptions, build_model, lower_again
from adexport.bench.measure import Quartiles, interleave, ratios
from adexport_runtime import Engine
from adexport_runtime.outputs import Outputs
from adexport_runtime.tensors import Array

ROWS, TOKENS, ROUNDS = 8, 128, 20
#: rows of all families, in the bundle that has slots for all
MIXED = "mixed"
_PLAIN = "plain"


def build_plain(base: str, folder: Path) -> None:
    """The base without a slot and without a head."""
    build_model(base, _path(folder, _PLAIN), task="feature-extraction", options=BuildOptions(slots=()))


def build_alone(family: Family, bundle: Path, folder: Path, adapters: Iterable[Path]) -> None:
    """A bundle with the slots of one family only: the trace of ``bundle`` is lowered again."""
    lower_again(bundle, _path(folder, family.name), options=BuildOptions(like=tuple(adapters)))


def measure(bundle: Path, folder: Path, allowed: float) -> dict[str, Quartiles]:
    """CPU time, as a multiple of the plain base's: by family, each in its own bundle, and of a mixed batch.

    The mixed batch has rows of all families, in ``bundle``. One thread, random ids, and a different
    adapter on every row as far as they go. Before anything is timed, a family alone must give the logits
    that it gives in ``bundle``, to ``allowed``.
    """
    with ExitStack() as stack:
        plain, together = (stack.enter_context(_open(path)) for path in (_path(folder, _PLAIN), bundle))
        ids = next(spec for spec in together.bundle.manifest.inputs if spec.name == "input_ids")
        values = np.random.default_rng(0).integers(ids.low or 0, (ids.high or 0) + 1, (ROWS, TOKENS))
        feeds = {ids.name: values}
        runs = {
            _PLAIN: partial(plain.run, feeds),
            MIXED: partial(together.run, feeds, _rows(FAMILIES)),
        }
        for family in FAMILIES:
            rows = _rows([family])
            alone = stack.enter_context(_open(_path(folder, family.name)))
            for name in set(rows):
                alone.bind(name, together.bundle.adapter_path(name))
            expected, found = (_logits(engine.run(feeds, rows)) for engine in (together, alone))
            assert np.abs(found - expected).max() <= allowed, f"{family.name} alone computes something else"
            runs[family.name] = partial(alone.run, feeds, rows)
        samples = interleave(runs, ROUNDS)
    return {name: ratios(samples[name], samples[_PLAIN])[0] for name in runs if name != _PLAIN}


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.bundle"


def _open(path: Path) -> Engine:
    return Engine.open(path, threads=1, spin=False)


def _logits(outputs: Outputs) -> Array:
    """The logits ``[rows, labels]``; all heads have the same labels."""
    return np.stack([outputs.row(index)["logits"] for index in range(ROWS)])


def _rows(families: Iterable[Family]) -> list[str]:
    """An adapter for each row, of every family and every domain in turn."""
    chosen = list(families)
    return [chosen[row % len(chosen)].adapter(DOMAINS[row % len(DOMAINS)]) for row in range(ROWS)]
