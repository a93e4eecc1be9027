"""What a build can choose, and the defaults. Imports nothing heavy: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adexport_runtime.matching import Targets

DEFAULT_OPSET = 23
MIN_OPSET = 20

#: the largest difference allowed, as a part of the largest value (at least 1)
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}


@dataclass(frozen=True)
class BuildOptions:
    """Sites, slots and precision; None keeps the default (or, lowering again, what the bundle has).

    ``targets`` are names or a regex as PEFT takes them, ``like`` adapters whose modules become
    the sites; ``slots`` False builds the plain base. ``tolerance`` is the largest difference from
    torch, as a part of the largest value (at least 1).
    """

    targets: Targets | None = None
    like: tuple[Path, ...] = ()
    max_rank: int | None = None
    slots: bool | None = None
    dtype: str | None = None
    tolerance: float = TOLERANCE["fp32"]
