"""How the samples train, whatever library a model is of: needs torch alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from vader import Example

LENGTH = 48
_HEADS = {"classifier", "heads"}

Item = TypeVar("Item")


def encode(tokenizer: Any, texts: Sequence[str]) -> Any:
    """Token ids, padded to the longest text."""
    return tokenizer(list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")


def text_length(example: Example) -> int:
    """How long an example is, for :func:`batches`."""
    return len(example.text)


def batches(
    examples: Sequence[Item], size: int, epochs: int, length: Callable[[Item], int]
) -> list[list[Item]]:
    """The batches of all epochs: examples of like length in each, in a random order."""
    chosen = []
    for _ in range(epochs):
        by_length = sorted(random.sample(examples, len(examples)), key=length)
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
    """Train a classifier, with cross-entropy: see :func:`fit`."""

    def loss(batch: list[Example]) -> torch.Tensor:
        logits = model(**encode(tokenizer, [e.text for e in batch])).logits
        return nn.functional.cross_entropy(logits, torch.tensor([e.label for e in batch]))

    fit(model, chosen, loss, rate, head_rate, clip)


def fit(
    model: nn.Module,
    chosen: Iterable[list[Item]],
    loss: Callable[[list[Item]], torch.Tensor],
    rate: float,
    head_rate: float | None = None,
    clip: float = math.inf,
) -> None:
    """Train what of a model is not frozen, with AdamW; leaves it in eval mode.

    ``loss`` is of one batch, ``rate`` the learning rate, ``head_rate`` that of the model's head (None: the
    same), ``clip`` the largest norm of the gradients.
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
        loss(batch).backward()
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
