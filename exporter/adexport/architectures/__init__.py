"""What differs from one model family to the next; one file for each family that differs.

:class:`Architecture` holds what most models do. A family that does something else has a file
here with a subclass, and a line in ``_FAMILIES``.
"""

from __future__ import annotations

from typing import Any

from .base import Architecture
from .roberta import Roberta

__all__ = ["Architecture", "architecture_of"]

_FAMILIES: dict[str, type[Architecture]] = {
    "roberta": Roberta,
    "xlm-roberta": Roberta,
    "camembert": Roberta,
}


def architecture_of(config: Any) -> Architecture:
    """The rules of a model's family; unknown families follow the common ones."""
    return _FAMILIES.get(config.model_type, Architecture)(config)
