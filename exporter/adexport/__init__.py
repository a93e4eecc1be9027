"""adexport: export a frozen transformer once, bind many tenants' adapters to it.

``import adexport`` is cheap and needs no torch; :func:`build_model` and :func:`verify_bundle`
import it when they are called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import BuildResult, build_model, lower_again
    from .options import BuildOptions, EngineOptions
    from .tensorrt.builder import add_engine
    from .verify import Report, verify_bundle

__all__ = [
    "BuildOptions",
    "BuildResult",
    "EngineOptions",
    "Report",
    "add_engine",
    "build_model",
    "lower_again",
    "verify_bundle",
]

_HOMES = {
    "BuildOptions": ".options",
    "BuildResult": ".build",
    "EngineOptions": ".options",
    "Report": ".verify",
    "add_engine": ".tensorrt.builder",
    "build_model": ".build",
    "lower_again": ".build",
    "verify_bundle": ".verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
