"""DeLoRA (arXiv:2503.18225): LoRA whose columns are brought to one length (``peft.tuners.delora``).

``y = W x + b + B d A (n x)`` with ``d = lambda / (r |A's row| |B's column|)`` and ``n`` the lengths of
the columns of W, which the file keeps.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ...errors import Code, Problem
from ..neutral import LinearUpdate
from .config import RankedConfig
from .layer import Layer
from .method import Method, parts

#: lengths below this count as this
_SHORTEST = 1e-4


class DeLoraConfig(RankedConfig):
    """The keys of a DeLoRA config that decide what its tensors mean."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["delora_lambda", "lambda_pattern", "module_dropout", "init_weights"]
    )


def update(layer: Layer, config: DeLoraConfig) -> LinearUpdate:
    """One layer of a DeLoRA: A ``[rank, in]``, B ``[out, rank]``, lambda ``[1]``, the norms ``[in]``."""
    shapes: dict[str, tuple[str, ...]] = {"delora_A": ("rank", "in"), "delora_B": ("out", "rank")}
    shapes |= {"delora_lambda": ("one",), "delora_w_norm": ("in",)}
    layer.need(*shapes)
    sizes = layer.sizes(shapes)
    if sizes["one"] != 1:
        name, got = layer.names["delora_lambda"], f"shape [{sizes['one']}]"
        raise layer.refusal(Problem(Code.WRONG_SHAPE, name, got=got, expected="[1]"))
    layer.expect("rank", sizes["rank"], config.rank(layer.module))
    a, b = layer.values("delora_A"), layer.values("delora_B")
    lengths = np.maximum(np.linalg.norm(a, axis=1), _SHORTEST) * np.maximum(
        np.linalg.norm(b, axis=0), _SHORTEST
    )
    scaling = layer.values("delora_lambda") / sizes["rank"] / lengths
    return layer.product(
        b * scaling,
        a * layer.values("delora_w_norm"),
        layer.name("delora_B", "delora_lambda"),
        layer.name("delora_A", "delora_w_norm"),
    )


DELORA = Method(DeLoraConfig, parts("delora_A", "delora_B", "delora_lambda", "delora_w_norm"), update)
