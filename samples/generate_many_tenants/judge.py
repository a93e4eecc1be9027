"""How well the answers that an adapter never saw are foretold, through the bundle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from chat import Chat

from adexport_runtime import Engine

ROWS = 8


def perplexities(
    engine: Engine, chats: Sequence[Chat], adapters: Sequence[str | None], pad: int
) -> list[float]:
    """Of the answers' tokens, a number for each adapter: among how many tokens one would be guessing.

    Rows of all adapters share the batches.
    """
    rows = [(chat, number) for chat in chats for number in range(len(adapters))]
    rows.sort(key=lambda row: row[0].length)
    nats = np.zeros(len(adapters))
    for start in range(0, len(rows), ROWS):
        batch = rows[start : start + ROWS]
        ids = np.full((len(batch), max(chat.length for chat, _ in batch)), pad, np.int64)
        mask = np.zeros_like(ids)
        for row, (chat, _) in enumerate(batch):
            ids[row, : chat.length] = [*chat.prompt, *chat.answer]
            mask[row, : chat.length] = 1
        feeds = {"input_ids": ids, "attention_mask": mask}
        logits = engine.run(feeds, [adapters[number] for _, number in batch])["logits"]
        for row, (chat, number) in enumerate(batch):
            ahead = logits[row, len(chat.prompt) - 1 : chat.length - 1]
            best = ahead.max(axis=1)
            total = best + np.log(np.exp(ahead - best[:, None]).sum(axis=1))
            nats[number] += (total - ahead[np.arange(len(chat.answer)), chat.answer]).sum()
    tokens = sum(len(chat.answer) for chat in chats)
    return [math.exp(value / tokens) for value in nats]
