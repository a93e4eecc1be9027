"""How the samples train a classifier, whatever library its model is of: needs torch alone."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from vader import Example

LENGTH = 48
_HEADS = {"classifier", "heads"}


def encode(tokenizer: Any, texts: Sequence[str]) -> Any:
    """Token ids, padded to the longest text."""
    return tokenizer(list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")


def batches(examples: Sequence[Example], size: int, epochs: int) -> list[list[Example]]:
    """The batches of all epochs: texts of like length in each, in a random order."""
    chosen = []
    for _ in range(epochs):
        by_length = sorted(random.sample(examples, len(examples)), key=lambda e: len(e.text))
        epoch = [by_length[i : i + size] for i in range(0, len(by_length), size)]
        chosen += random.sample(epoch, len(epoch))
    return chosen


def train(
    model: nn.Module,
    tokenizer: Any,
    chosen: Iterable[list[Example]],
    rate: float,
    head_rate: float | None = None,
    clip: float = math.inf,
) -> None:
    """Train what of a model is not frozen, with AdamW on cross-entropy; leaves it in eval mode.

    ``rate`` is the learning rate, ``head_rate`` that of its head (None: the same), ``clip`` the largest
    norm of the gradients.
    """
    rates = (rate, rate if head_rate is None else head_rate)
    groups: list[dict[str, Any]] = [{"params": [], "lr": one} for one in rates]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[not _HEADS.isdisjoint(name.split("."))]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups)
    trained = [parameter for group in groups for parameter in group["params"]]
    model.train()
    for batch in chosen:
        logits = model(**encode(tokenizer, [e.text for e in batch])).logits
        loss = nn.functional.cross_entropy(logits, torch.tensor([e.label for e in batch]))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@torch.inference_mode()
def predict(model: nn.Module, tokenizer: Any, texts: Sequence[str], size: int = 32) -> torch.Tensor:
    """Logits ``[texts, labels]``."""
    by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    logits: dict[int, torch.Tensor] = {}
    for start in range(0, len(texts), size):
        chosen = by_length[start : start + size]
        found = model(**encode(tokenizer, [texts[index] for index in chosen])).logits
        logits |= dict(zip(chosen, found, strict=True))
    return torch.stack([logits[index] for index in range(len(texts))])
