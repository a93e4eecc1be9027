"""LoHa (arXiv:2108.06098) and LoKr (arXiv:2309.14859): products of products, as in ``peft.tuners``.

With ``s = alpha / r``::

    LoHa    y = W x + b + s ((w1_a w1_b) * (w2_a w2_b)) x        elementwise: rank r r
    LoKr    y = W x + b + s kron(w1, w2) x                       w1 and w2 whole, or as products
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ...errors import Code, Problem
from ...matching import pattern_value
from ...tensors import Array
from ..neutral import LinearUpdate
from .config import Finite, RankedConfig
from .layer import Layer
from .method import Method, parts
from .numeric import face_split, thin

#: more values in a layer's factors than any bundle has room for (1 GiB)
_MOST_VALUES = 2**28


class LoHaConfig(RankedConfig):
    """The keys of a LoHa config that decide what its tensors mean."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["rank_dropout", "module_dropout", "use_effective_conv2d", "init_weights"]
    )

    alpha: Finite
    alpha_pattern: dict[str, Finite] | None = None

    def scaling(self, module: str) -> float:
        """Alpha / r."""
        return pattern_value(dict(self.alpha_pattern or {}), module, self.alpha) / self.rank(module)


class LoKrConfig(LoHaConfig):
    """The keys of a LoKr config; how the factors are decomposed shows in the file itself."""

    ignored: ClassVar[frozenset[str]] = LoHaConfig.ignored | frozenset(
        ["decompose_both", "decompose_factor", "rank_dropout_scale"]
    )


def update_loha(layer: Layer, config: LoHaConfig) -> LinearUpdate:
    """One layer of a LoHa: ``a`` ``[out, rank]``, ``b`` ``[rank, in]``."""
    _no_convolution(layer, "hada_t1", "hada_t2")
    a = ("hada_w1_a", "hada_w2_a")
    b = ("hada_w1_b", "hada_w2_b")
    layer.need(*a, *b)
    sizes = layer.sizes({**dict.fromkeys(a, ("out", "rank")), **dict.fromkeys(b, ("rank", "in"))})
    rank, out, into = sizes["rank"], sizes["out"], sizes["in"]
    layer.expect("rank", rank, config.rank(layer.module))
    _demand_room(layer, min(rank * rank, out, into), rank * rank * (out + into))
    left, right = thin(
        face_split(*(layer.values(part) for part in a)),
        face_split(*(layer.values(part).T for part in b)).T,
    )
    return layer.product(left * config.scaling(layer.module), right, layer.name(*a), layer.name(*b))


def update_lokr(layer: Layer, config: LoKrConfig) -> LinearUpdate:
    """One layer of a LoKr: ``w1`` ``[out 1, in 1]``, ``w2`` ``[out 2, in 2]``, each whole or a product."""
    _no_convolution(layer, "lokr_t2")
    (left1, right1), (left2, right2) = (_kronecker_factor(layer, config, n) for n in (1, 2))
    rank = left1.shape[1] * left2.shape[1]
    out, into = left1.shape[0] * left2.shape[0], right1.shape[1] * right2.shape[1]
    _demand_room(layer, rank, rank * (out + into))
    return layer.product(
        np.kron(left1, left2) * config.scaling(layer.module),
        np.kron(right1, right2),
        layer.name("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"),
        layer.name("lokr_w1", "lokr_w1_b", "lokr_w2", "lokr_w2_b"),
    )


def _kronecker_factor(layer: Layer, config: LoKrConfig, number: int) -> tuple[Array, Array]:
    """A factor of the Kronecker product, as the thinnest product that it is for sure."""
    whole, a, b = (f"lokr_w{number}{half}" for half in ("", "_a", "_b"))
    halves = [part for part in (a, b) if part in layer.tensors]
    if whole in layer.tensors and halves:
        raise layer.refusal(*(layer.unexpected(part, f"{whole} is there whole") for part in halves))
    if not halves:
        layer.need(whole)
        sizes = layer.sizes({whole: (f"out {number}", f"in {number}")})
        matrix = layer.values(whole)
        return thin(matrix, np.eye(sizes[f"in {number}"]))
    layer.need(a, b)
    sizes = layer.sizes({a: (f"out {number}", "rank"), b: ("rank", f"in {number}")})
    layer.expect("rank", sizes["rank"], config.rank(layer.module))
    return thin(layer.values(a), layer.values(b))


def _no_convolution(layer: Layer, *tensors: str) -> None:
    problems = [
        Problem(
            Code.UNSUPPORTED,
            layer.names[part],
            got=f"shape {list(layer.tensors[part].shape)}",
            expected="factors of a linear layer",
            cause="a factor of a convolution's kernel; the slots are at linear layers",
            mend="train with target_modules that are linear layers",
        )
        for part in tensors
        if part in layer.tensors
    ]
    if problems:
        raise layer.refusal(*problems)


def _demand_room(layer: Layer, rank: int, values: int) -> None:
    """A few numbers can stand for factors that fill a machine's memory."""
    if values > _MOST_VALUES:
        raise layer.refusal(
            Problem(
                Code.RANK_ABOVE_MAX,
                layer.module,
                got=f"rank {rank}: {values} values as low-rank factors",
                expected=f"at most {_MOST_VALUES}",
                mend="train with a smaller r, or an ordinary LoRA",
            )
        )


LOHA = Method(
    LoHaConfig,
    parts("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    update_loha,
)
LOKR = Method(
    LoKrConfig,
    parts("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    update_lokr,
)
