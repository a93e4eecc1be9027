"""The sentiment classifier of samples, MiniLM with a head, and its tenants: a LoRA for each domain."""

from __future__ import annotations

import time
from pathlib import Path

import minilm
import torch
from console import done, step, terminal
from peft import LoraConfig, TaskType, get_peft_model
from rich.progress import track
from training import batches, encode, text_length, train
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from vader import Example

HEAD_TRAIN = 400
RATE, HEAD_RATE = 2e-3, 6e-3


def train_base(folder: Path, examples: list[Example]) -> None:
    """A sentiment head on the frozen encoder, trained on a domain that is no tenant's."""
    tokenizer = AutoTokenizer.from_pretrained(minilm.folder())
    model = AutoModelForSequenceClassification.from_pretrained(
        minilm.folder(),
        num_labels=2,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    ).eval()
    with step("train the shared head (amazon reviews; the encoder stays frozen)"):
        chosen = examples[:HEAD_TRAIN]
        with torch.no_grad():
            features = torch.cat(
                [
                    model.bert(**encode(tokenizer, [e.text for e in chosen[i : i + 50]])).pooler_output
                    for i in range(0, len(chosen), 50)
                ]
            )
        labels = torch.tensor([example.label for example in chosen])
        optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=3e-2, weight_decay=1e-2)
        for _ in range(200):
            loss = torch.nn.functional.cross_entropy(model.classifier(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tenant(
    base: Path,
    folder: Path,
    examples: list[Example],
    epochs: int,
    *,
    size: int = 32,
    own_head: bool = False,
) -> None:
    """A tenant's LoRA on query and value, and a head if it is to have its own; the base stays frozen.

    ``epochs`` times all examples, ``size`` at a time; the tenant is named as its folder.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if own_head else None,  # trains and saves the classifier too
        r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=["query", "value"],
    )
    peft = get_peft_model(model, config)
    started = time.perf_counter()
    chosen = batches(examples, size, epochs, text_length)
    shown = track(chosen, f"train {folder.name}", console=terminal, transient=True)
    train(peft, tokenizer, shown, RATE, HEAD_RATE)
    peft.save_pretrained(str(folder))
    done(f"train the LoRA of {folder.name} with PEFT", started)
