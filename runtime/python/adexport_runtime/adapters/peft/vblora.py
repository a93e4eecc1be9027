"""VB-LoRA (arXiv:2405.15179): the pieces of A and B are mixtures of vectors of one bank.

``y = W x + b + B A x``; a piece is the softmax over its ``topk`` largest logits, times those vectors
(``peft.tuners.vblora``). ``save_only_topk_weights`` keeps these weights but the last, and which they are.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ...errors import Code, Problem
from ...tensors import Array
from ..neutral import LinearUpdate
from .config import Count, TunerConfig
from .layer import Layer
from .method import Method, parts
from .numeric import mixture, weighted

#: how far rounding takes a sum of weights above 1
_ROUNDING = 1e-2

_BANK = "vblora_vector_bank"


class VBLoraConfig(TunerConfig):
    """The keys of a VB-LoRA config that decide what its tensors mean."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["fan_in_fan_out", "vblora_dropout", "init_vector_bank_bound", "init_logits_std"]
    )

    r: Count
    num_vectors: Count
    vector_length: Count
    topk: Count
    save_only_topk_weights: bool = False


def update(layer: Layer, config: VBLoraConfig) -> LinearUpdate:
    """One layer: pieces of A ``[rank, in / length]`` and of B ``[out / length, rank]``, each of logits."""
    sizes, pieces = (_from_weights if config.save_only_topk_weights else _from_logits)(layer, config)
    layer.expect("rank", sizes["rank"], config.r)
    layer.expect("num_vectors", sizes["vectors"], config.num_vectors, Code.WRONG_SHAPE)
    layer.expect("vector_length", sizes["length"], config.vector_length, Code.WRONG_SHAPE)
    a, b = pieces
    right = a.reshape(sizes["rank"], -1)
    left = b.swapaxes(1, 2).reshape(-1, sizes["rank"])
    endings = ("", "_topk_weights", "_topk_indices")
    named = {half: layer.name(*(f"vblora_logits_{half}{end}" for end in endings), _BANK) for half in "AB"}
    return layer.product(left, right, named["B"], named["A"])


def _from_logits(layer: Layer, config: VBLoraConfig) -> tuple[dict[str, int], list[Array]]:
    names = ("vblora_logits_A", "vblora_logits_B")
    _only(layer, *names)
    sizes = layer.sizes(
        {
            names[0]: ("rank", "in pieces", "vectors"),
            names[1]: ("out pieces", "rank", "vectors"),
            _BANK: ("vectors", "length"),
        }
    )
    if config.topk > sizes["vectors"]:
        layer.expect("num_vectors", sizes["vectors"], config.topk, Code.WRONG_SHAPE)
    pieces = []
    for name in names:
        found = mixture(layer.values(name), layer.values(_BANK), config.topk)
        if found is None:
            raise layer.refusal(
                Problem(
                    Code.UNSUPPORTED,
                    layer.names[name],
                    got=f"equal logits at the end of the {config.topk} largest",
                    cause="which vectors count is left to chance: logits of low precision, or untrained",
                    mend="save it in float32, or train it further",
                )
            )
        pieces.append(found)
    return sizes, pieces


def _from_weights(layer: Layer, config: VBLoraConfig) -> tuple[dict[str, int], list[Array]]:
    shapes: dict[str, tuple[str, ...]] = {_BANK: ("vectors", "length")}
    for half, outer in (("A", ("rank", "in pieces")), ("B", ("out pieces", "rank"))):
        shapes[f"vblora_logits_{half}_topk_weights"] = (*outer, "topk less 1")
        shapes[f"vblora_logits_{half}_topk_indices"] = (*outer, "topk")
    indices = tuple(part for part in shapes if part.endswith("indices"))
    _only(layer, *(part for part in shapes if part != _BANK))
    sizes = layer.sizes(shapes, indices, zero=("topk less 1",))
    layer.expect("topk", sizes["topk"], config.topk, Code.WRONG_SHAPE)
    layer.expect("topk less 1", sizes["topk less 1"], config.topk - 1, Code.WRONG_SHAPE)
    pieces = []
    for half in "AB":
        picked = layer.tensors[f"vblora_logits_{half}_topk_indices"].astype(np.int64)
        first = layer.values(f"vblora_logits_{half}_topk_weights")
        last = 1 - first.sum(axis=-1, keepdims=True)
        ordered = np.sort(picked, axis=-1)
        twice = bool(np.any(ordered[..., 1:] == ordered[..., :-1]))
        if twice or ordered.min() < 0 or ordered.max() >= sizes["vectors"] or last.min() < -_ROUNDING:
            raise layer.refusal(
                Problem(
                    Code.BAD_INPUT,
                    layer.name(f"vblora_logits_{half}_topk_indices", f"vblora_logits_{half}_topk_weights"),
                    got="a vector twice, a vector that is not in the bank, or weights above 1",
                    expected=f"{config.topk} different vectors of {sizes['vectors']}",
                    cause="a damaged file",
                    mend="save the adapter again",
                )
            )
        weights = np.concatenate([first, np.maximum(last, 0)], axis=-1)
        weights /= weights.sum(axis=-1, keepdims=True)
        pieces.append(weighted(weights, picked, layer.values(_BANK)))
    return sizes, pieces


def _only(layer: Layer, *names: str) -> None:
    surplus = [
        layer.unexpected(part, "the config's save_only_topk_weights says otherwise")
        for part in layer.tensors.keys() - {*names, _BANK}
    ]
    if surplus:
        raise layer.refusal(*surplus)
    layer.need(*names, _BANK)


_HALVES = ("vblora_logits_A", "vblora_logits_B")
VBLORA = Method(
    VBLoraConfig,
    parts(*_HALVES, *(f"{half}_topk_{what}" for half in _HALVES for what in ("weights", "indices"))),
    update,
    shared=(_BANK,),
    empty=True,  # of one vector, no weights are saved
)
