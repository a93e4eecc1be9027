"""What a lowering can choose."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LowerOptions:
    """The sites that get slots (none: the plain base) and the precision."""

    sites: tuple[str, ...] = ()
    dtype: str = "fp32"
