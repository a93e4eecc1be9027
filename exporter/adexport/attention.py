"""Attention as opaque ops: what transformers calls while a model is traced.

A model is first run once in plain torch (:meth:`OpaqueAttention.survey`): that shows which masks
it builds and whether its attention asks for anything the op does not carry. A model that does is
traced with transformers' own eager attention instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from .ops import ATTENTION, ATTENTION_MASK, DOMAIN

IMPLEMENTATION = "adexport"
FALLBACK = "eager"

#: arguments of an attention call that change nothing once dropout is off and the mask is built
_WITHOUT_EFFECT = frozenset(
    {
        "deterministic",
        "dropout",
        "is_causal",
        "output_attentions",
        "position_ids",
        "sliding_window",
        "use_cache",
    }
)
#: how far from a position a mask function is looked at; a window wider than that is no window
_REACH = 1 << 20
#: positions between which the shape of the mask is checked
_PROBED = sorted({*range(24), *(2**k + d for k in range(5, 21) for d in (-1, 0, 1))})

UNLIMITED = -1


class _Window(NamedTuple):
    """A query at ``q`` sees keys from ``q - before`` to ``q + after``."""

    before: int
    after: int


class OpaqueAttention:
    """The attention implementation that transformers knows as ``adexport``."""

    def __init__(self) -> None:
        """Register with transformers; the last instance made is the one it calls."""
        self._surveying = False
        self._unsupported: list[str] = []
        self._windows: list[_Window] = []
        self._replay: Iterator[_Window] = iter(())
        AttentionInterface.register(IMPLEMENTATION, self._attend)
        AttentionMaskInterface.register(IMPLEMENTATION, self._mask)

    def survey(self, model: PreTrainedModel, run: Callable[[], Any]) -> list[str]:
        """Run the model once; returns why its attention cannot be opaque (empty: it can).

        Afterwards the model uses ``adexport`` if it can, else ``eager``.
        """
        self._surveying, self._unsupported, self._windows = True, [], []
        try:
            model.set_attn_implementation(IMPLEMENTATION)
            if model.config._attn_implementation != IMPLEMENTATION:
                self._unsupported.append("the model does not use transformers' attention interface")
            else:
                run()
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            self._unsupported.append(f"{type(error).__name__}: {error}")
        finally:
            self._surveying = False
        reasons = sorted(set(self._unsupported))
        if reasons:
            model.set_attn_implementation(FALLBACK)
        self._replay = iter(self._windows)
        return reasons

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """``adexport::Attention``; query ``[batch, heads, seq, size]``, key and value by KV head."""
        batch, heads, seq, size = query.shape
        shape = (batch, seq, heads, value.shape[-1])
        if self._surveying:
            name = type(module).__name__
            self._unsupported += [
                f"{name} passes {argument} to its attention"
                for argument, given in kwargs.items()
                if argument not in _WITHOUT_EFFECT and given is not None
            ]
            if attention_mask is None and getattr(module, "is_causal", False):
                self._unsupported.append(f"{name} is causal without a mask")
            return query.new_zeros(shape), None
        attributes: dict[str, Any] = {
            "num_heads": heads,
            "kv_num_heads": key.shape[1],
            "scale": float(size**-0.5 if scaling is None else scaling),
        }
        context = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{ATTENTION}",
            (query, key, value, attention_mask),
            attributes,
            dtype=query.dtype,
            shape=shape,
            version=1,
        )
        return context, None

    def _mask(
        self,
        batch_size: int,
        q_length: int,
        kv_length: int,
        mask_function: Callable[..., torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor | None:
        """``adexport::AttentionMask`` for the mask that ``mask_function`` describes.

        Without padding, as images have none, only a mask that hides nothing is supported: no mask.
        """
        shape = (batch_size, 1, q_length, kv_length)
        if attention_mask is None:
            if self._surveying and self._probe(mask_function) != _Window(UNLIMITED, UNLIMITED):
                self._unsupported.append("the model builds a mask without a padding mask")
            return None
        if self._surveying:
            self._windows.append(self._probe(mask_function))
            return attention_mask.new_ones(shape)
        window = next(self._replay)
        mask: torch.Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{ATTENTION_MASK}",
            (attention_mask,),
            {"before": window.before, "after": window.after},
            dtype=torch.bool,
            shape=shape,
            version=1,
        )
        return mask

    def _probe(self, mask_function: Callable[..., torch.Tensor]) -> _Window:
        """The window of a mask; one that is no window is unsupported."""
        zero, middle = torch.tensor(0), torch.tensor([[_REACH]])
        distances = torch.arange(1, _REACH + 1)[None, :]

        def reach(keys: torch.Tensor) -> int:
            hidden = ~mask_function(zero, zero, middle, keys).expand(keys.shape)
            return int(hidden.to(torch.int8).argmax()) if hidden.any() else UNLIMITED

        window = _Window(reach(middle - distances), reach(middle + distances))
        query, key = torch.tensor(_PROBED)[:, None], torch.tensor(_PROBED)[None, :]
        expected = torch.ones(len(_PROBED), len(_PROBED), dtype=torch.bool)
        for limit, distance in ((window.before, query - key), (window.after, key - query)):
            if limit != UNLIMITED:
                expected &= distance <= limit
        if not torch.equal(mask_function(zero, zero, query, key).expand(expected.shape), expected):
            self._unsupported.append("the model's mask is no window")
        return window
