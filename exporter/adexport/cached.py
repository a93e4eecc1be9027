"""Attention with a KV cache as opaque ops, for models that generate.

The model runs once in plain torch (:meth:`CachedAttention.survey`): that shows each layer's window, its
rotary table, and whether it asks for anything that ``adexport::CachedAttention`` does not carry. While it
is traced, each attention call takes the cache of its layer and gives it back with the new keys in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from .attention import unsupported_arguments
from .ops import CACHED_ATTENTION, DOMAIN
from .rotary import RotarySurvey, RotaryTable, without_rotary
from .windows import UNLIMITED, MaskFunction, Window, window_of

IMPLEMENTATION = "adexport-cached"


@dataclass(frozen=True)
class CacheLayer:
    """One attention call: the shape of its cache, and what its queries see.

    ``window`` is how many keys a query sees, its own included; None: all before it. ``rotary`` is the
    index of its table; None: positions are none of its business.
    """

    heads: int
    kv_heads: int
    size: int
    window: int | None
    rotary: int | None


@dataclass
class _Pass:
    """What the calls of one forward pass take and give."""

    past: Sequence[torch.Tensor]
    lengths: torch.Tensor
    past_lengths: torch.Tensor
    tables: Sequence[tuple[torch.Tensor, torch.Tensor]]
    present: list[torch.Tensor] = field(default_factory=list)


class CachedAttention:
    """The attention implementation that transformers knows as ``adexport-cached``."""

    def __init__(self, positions: int) -> None:
        """Register with transformers; the last instance made is the one it calls."""
        self._positions = positions
        self.layers: list[CacheLayer] = []
        self.tables: list[RotaryTable] = []
        self._survey: RotarySurvey | None = None
        self._masks: dict[int, tuple[torch.Tensor, Window | None]] = {}
        self._unsupported: list[str] = []
        self._pass: _Pass | None = None
        AttentionInterface.register(IMPLEMENTATION, self._attend)
        AttentionMaskInterface.register(IMPLEMENTATION, self._mask)

    def survey(
        self, model: PreTrainedModel, run: Callable[[], Any], check: Callable[[], list[str]] = list
    ) -> list[str]:
        """Run the model once; returns why it cannot have a cache (empty: it can).

        ``check`` may give more reasons: while it runs, all attention gives zeros.
        """
        before = model.config._attn_implementation
        survey = self._survey = RotarySurvey(model, self._positions)
        try:
            model.set_attn_implementation(IMPLEMENTATION)
            if model.config._attn_implementation != IMPLEMENTATION:
                self._unsupported.append("the model does not use transformers' attention interface")
            else:
                with survey.watching(), torch.no_grad():
                    run()
                self._survey = None
                self._unsupported += check()
        except Exception as error:  # whatever a foreign model raises
            self._unsupported.append(f"{type(error).__name__}: {error}")
        finally:
            self._survey = None
            self._masks = {}
            model.set_attn_implementation(before)
        if not self.layers:
            self._unsupported.append("no attention was seen")
        idle = set(range(len(survey.tables))) - {layer.rotary for layer in self.layers}
        if not survey.faults and not idle:
            self.tables = survey.tables
        else:  # then the graph rotates by itself, from the positions
            self.layers = [replace(layer, rotary=None) for layer in self.layers]
        return sorted(set(self._unsupported))

    @contextmanager
    def tracing(self, model: PreTrainedModel) -> Iterator[None]:
        """Within the block the model's attention is opaque, with a cache."""
        before = model.config._attn_implementation
        model.set_attn_implementation(IMPLEMENTATION)
        try:
            if self.tables:
                with without_rotary(model):
                    yield
            else:
                yield
        finally:
            model.set_attn_implementation(before)

    def run(
        self,
        forward: Callable[[], Any],
        past: Sequence[torch.Tensor],
        lengths: torch.Tensor,
        past_lengths: torch.Tensor,
        tables: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[Any, list[torch.Tensor]]:
        """One forward pass; returns its result and the caches (key, value by layer) behind it."""
        self._pass = _Pass(past, lengths, past_lengths, tables)
        try:
            result = forward()
            return result, self._pass.present
        finally:
            self._pass = None

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """``adexport::CachedAttention``; query ``[batch, heads, seq, size]``, key and value by KV head."""
        batch, heads, seq, size = query.shape
        shape = (batch, seq, heads, value.shape[-1])
        if self._survey is not None:
            self._look(module, query, key, value, attention_mask, kwargs)
        now = self._pass
        if now is None:
            return query.new_zeros(shape), None
        layer = self.layers[len(now.present) // 2]
        past = now.past[len(now.present) : len(now.present) + 2]
        cos, sin = (None, None) if layer.rotary is None else now.tables[layer.rotary]
        context, *present = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{CACHED_ATTENTION}",
            (query, key, value, *past, now.lengths, now.past_lengths, cos, sin),
            {
                "num_heads": heads,
                "kv_num_heads": layer.kv_heads,
                "scale": float(size**-0.5 if scaling is None else scaling),
                "softcap": float(softcap or 0.0),
                "window": layer.window or 0,
            },
            dtypes=(query.dtype, key.dtype, value.dtype),
            shapes=(shape, tuple(past[0].shape), tuple(past[1].shape)),
            version=1,
        )
        now.present += present
        return context, None

    def _look(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> None:
        """Keep what a call is like."""
        assert self._survey is not None
        name = type(module).__name__
        self._unsupported += unsupported_arguments(name, kwargs)
        if key.shape != value.shape or key.shape[-1] != query.shape[-1]:
            self._unsupported.append(f"{name} has keys and values of different sizes")
        _, window = self._masks.get(id(mask), (None, None))
        if window is None or window.after != 0:
            self._unsupported.append(f"{name} has a mask that is no window into the past")
        before = UNLIMITED if window is None else window.before
        self.layers.append(
            CacheLayer(
                heads=query.shape[1],
                kv_heads=key.shape[1],
                size=key.shape[3],
                window=None if before == UNLIMITED else before + 1,
                rotary=self._survey.taken(query, key),
            )
        )

    def _mask(
        self,
        batch_size: int,
        q_length: int,
        kv_length: int,
        mask_function: MaskFunction,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """A stand-in by which the survey knows the window; a trace does not use it."""
        del attention_mask
        stand_in = torch.ones(batch_size, 1, q_length, kv_length)
        if self._survey is not None:
            self._masks[id(stand_in)] = (stand_in, window_of(mask_function))
        return stand_in
