"""The KV caches of a graph that generates, as the manifest declares them."""

from __future__ import annotations

from collections import Counter

from .schema import Natural, Positive, Schema, Text


class Cache(Schema):
    """The cache of one attention layer: keys and values, each ``[batch, kv_heads, room, size]``.

    ``window`` is how many keys a query sees, its own included; None: all before it.
    """

    past_key: Text
    past_value: Text
    present_key: Text
    present_value: Text
    kv_heads: Positive
    size: Positive
    window: Positive | None


class Generation(Schema):
    """The inputs by which a graph with caches runs prompts, pieces of prompts, and single steps.

    ``lengths`` and ``past_lengths`` are int64 ``[batch]``: the new tokens of a row, and those in its
    cache. ``logits_at`` is int64 ``[batch, wanted]``: the places among the new tokens to give logits of.
    ``eos_ids`` end a text.
    """

    lengths: Text
    past_lengths: Text
    logits_at: Text
    caches: tuple[Cache, ...]
    eos_ids: tuple[Natural, ...]

    @property
    def past(self) -> tuple[str, ...]:
        """The names of the caches that the graph takes: key, value, layer by layer."""
        return tuple(name for cache in self.caches for name in (cache.past_key, cache.past_value))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all graph inputs that are not the caller's."""
        return (self.lengths, self.past_lengths, self.logits_at, *self.past)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the caches that the graph gives back, in the order of those it takes."""
        return tuple(name for cache in self.caches for name in (cache.present_key, cache.present_value))

    @property
    def values_per_token(self) -> int:
        """How many numbers the caches hold for each token of a row."""
        return sum(2 * cache.kv_heads * cache.size for cache in self.caches)

    def faults(self) -> list[str]:
        """What is inconsistent; empty if nothing is."""
        wrong = [] if self.caches else ["generation needs caches"]
        counted = Counter((*self.inputs, *self.outputs))
        wrong += [f"{name} is listed twice in generation" for name, times in counted.items() if times > 1]
        return wrong
