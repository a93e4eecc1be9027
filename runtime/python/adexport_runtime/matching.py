"""Which modules a PEFT target specification means (``peft.tuners.tuners_utils``, 0.21)."""

from __future__ import annotations

import re
from collections.abc import Sequence

Targets = str | Sequence[str]


def matches(targets: Targets, module: str) -> bool:
    """Whether ``module`` is a target: a string is a regex for the whole path, a list holds names.

    A name means the module of that path or every module whose path ends with ``.name``.
    """
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def layer_of(module: str, patterns: Sequence[str]) -> int | None:
    """The layer number in a module path: the first numbered segment (behind a pattern, if any)."""
    if not patterns:
        found = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", module)
        return int(found["index"]) if found else None
    for pattern in patterns:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module):
            return int(found["index"])
    return None


def pattern_value(patterns: dict[str, float], module: str, default: float) -> float:
    """The value for ``module`` in a ``rank_pattern`` or ``alpha_pattern``: the first match wins."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
