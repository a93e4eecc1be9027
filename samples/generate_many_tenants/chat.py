"""Questions and answers as a chat model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from topics import Pair
from torch import nn

#: what cross-entropy leaves out
IGNORED = -100


class Chat(NamedTuple):
    """Token ids of a question, up to where the assistant speaks, and of its answer with the end."""

    prompt: list[int]
    answer: list[int]

    @property
    def length(self) -> int:
        """All its tokens."""
        return len(self.prompt) + len(self.answer)


def encode(tokenizer: Any, pair: Pair) -> Chat:
    """A pair in the tokenizer's chat template."""
    asked = [{"role": "user", "content": pair.question}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return Chat(tokenizer(prompt)["input_ids"], tokenizer(pair.answer + tokenizer.eos_token)["input_ids"])


def collate(chats: Sequence[Chat], pad: int) -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels`` ``[chats, tokens]``, int64, padded on the right.

    Only answers have labels.
    """
    shape = len(chats), max(chat.length for chat in chats)
    ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED)
    for row, (prompt, answer) in enumerate(chats):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def answer_loss(model: Any, chats: Sequence[Chat], pad: int) -> torch.Tensor:
    """Cross-entropy of the answers' tokens, on average; ``model`` is a causal LM wrapped by PEFT.

    Logits are computed where an answer's token is next, and nowhere else: the vocabulary is large.
    """
    batch = collate(chats, pad)
    labels = batch.pop("labels")[:, 1:]
    wanted = labels != IGNORED
    causal = model.get_base_model()
    hidden = causal.model(**batch).last_hidden_state[:, :-1][wanted]
    return nn.functional.cross_entropy(causal.lm_head(hidden), labels[wanted])
