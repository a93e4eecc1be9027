"""Attention as opaque ops: what transformers calls while a model is traced.

A model is first run once in plain torch (:meth:`OpaqueAttention.survey`): that shows which masks
it builds and whether its attention asks for anything the op does not carry. A model that does is
traced with transformers' own eager attention instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from .ops import ATTENTION, ATTENTION_MASK, DOMAIN
from .windows import UNLIMITED, MaskFunction, Window, window_of

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


def unsupported_arguments(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """What a module of this name asks of its attention that an opaque op does not carry."""
    return [
        f"{name} passes {argument} to its attention"
        for argument, given in arguments.items()
        if argument not in _WITHOUT_EFFECT and given is not None
    ]


class OpaqueAttention:
    """The attention implementation that transformers knows as ``adexport``."""

    def __init__(self) -> None:
        """Register with transformers; the last instance made is the one it calls."""
        self._surveying = False
        self._unsupported: list[str] = []
        self._windows: list[Window] = []
        self._replay: Iterator[Window] = iter(())
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
        except Exception as error:  # whatever a foreign model raises
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
            self._unsupported += unsupported_arguments(name, kwargs)
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
        mask_function: MaskFunction,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor | None:
        """``adexport::AttentionMask`` for the mask that ``mask_function`` describes.

        Without padding, as images have none, only a mask that hides nothing is supported: no mask.
        """
        shape = (batch_size, 1, q_length, kv_length)
        if attention_mask is None:
            if self._surveying and self._probe(mask_function) != Window(UNLIMITED, UNLIMITED):
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

    def _probe(self, mask_function: MaskFunction) -> Window:
        """The window of a mask; one that is no window is unsupported."""
        window = window_of(mask_function)
        if window is None:
            self._unsupported.append("the model's mask is no window")
            return Window(UNLIMITED, UNLIMITED)
        return window
