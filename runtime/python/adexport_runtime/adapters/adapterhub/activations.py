"""AdapterHub's non-linearities (``transformers.activations``) by the activation that computes the same."""

from __future__ import annotations

from ...errors import Problem
from ...slots import Activation
from .settings import refused

#: only what is the same function; ``gelu_fast`` differs from ``gelu_new`` below float32's precision
_SAME: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "linear": "linear",
}


def activation_of(key: str, name: str) -> tuple[Activation | None, list[Problem]]:
    """The activation of a config's ``key``; the library does not mind upper case."""
    found = _SAME.get(name.lower())
    if found is not None:
        return found, []
    return None, [
        refused(
            key,
            name,
            f"no slot computes it; slots have {', '.join(_SAME)}",
            "train with one of these",
        )
    ]
