"""Running a graph with caches over whole texts, at once or in steps, to compare its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adexport_runtime.caches import Generation
from adexport_runtime.tensors import Array

Call = Callable[[dict[str, Array]], Mapping[str, Array]]


def run_cached(
    call: Call,
    generation: Generation,
    dtype: np.dtype[Any],
    ids: Array,
    lengths: Array,
    prompts: Array,
    room: int | None = None,
) -> Array:
    """The logits at every position of a batch, ``[batch, seq, vocab]``.

    Args:
        call: runs the graph once.
        generation: the names of its caches.
        dtype: the type of its caches.
        ids: int64 ``[batch, seq]``, padded on the right.
        lengths: int64 ``[batch]``: the tokens of each row.
        prompts: int64 ``[batch]``: how many of them go in at once; the rest follows one by one.
        room: tokens of the caches; None: just enough.
    """
    batch, seq = ids.shape
    caches = {
        name: np.zeros((batch, cache.kv_heads, room or seq, cache.size), dtype)
        for cache in generation.caches
        for name in (cache.past_key, cache.past_value)
    }
    first = int(prompts.max())
    logits = np.zeros((batch, seq, 0), np.float32)
    past = np.zeros(batch, np.int64)
    new = prompts
    width = first
    while True:
        at = past[:, None] + np.arange(width)[None]
        feeds = {
            "input_ids": np.take_along_axis(ids, np.minimum(at, seq - 1), axis=1),
            generation.lengths: new,
            generation.past_lengths: past,
            generation.logits_at: np.broadcast_to(np.arange(width), (batch, width)),
        }
        outputs = call({name: np.ascontiguousarray(value) for name, value in feeds.items()} | caches)
        caches = {name: outputs[given] for name, given in zip(caches, generation.outputs, strict=True)}
        if logits.shape[2] == 0:
            logits = np.zeros((batch, seq, outputs["logits"].shape[2]), np.float32)
        for row in range(batch):
            start = int(past[row])
            kept = min(width, int(new[row]))
            logits[row, start : start + kept] = outputs["logits"][row, :kept]
        if (past + new == lengths).all():
            return logits
        # a row that has ended writes its last token once more, where it stands already
        past = np.minimum(past + new, lengths - 1)
        new = np.ones(batch, np.int64)
        width = 1
