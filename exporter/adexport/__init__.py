"""adexport: export a frozen transformer once, bind many tenants' adapters to it.

``import adexport`` is cheap and needs no torch; :func:`build_model` and :func:`verify_bundle`
import it when they are called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import BuildOptions, BuildResult, build_model, lower_again

__all__ = ["BuildOptions", "BuildResult", "build_model", "lower_again"]

_HOMES = dict.fromkeys(("BuildOptions", "BuildResult", "build_model", "lower_again"), ".build")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
