"""Train the LoRAs with PEFT, each with a classifier of its own."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from compared import BATCH, CLIP, EPOCHS, HEAD_RATE, LABELS, LORA, RATE, Texts
from peft import LoraConfig, TaskType, get_peft_model
from training import batches, predict, text_length, train
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def train_one(domain: str, base: str, root: Path, texts: Texts) -> None:
    """One adapter on query and value: saved with its classifier, and the logits of the held-out texts."""
    torch.manual_seed(0)
    random.seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,  # trains and saves the classifier too
        r=LORA.size,
        lora_alpha=2 * LORA.size,
        lora_dropout=0.05,
        target_modules=["query", "value"],
    )
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS)), config
    )
    chosen = batches(texts.train, BATCH, EPOCHS, text_length)
    train(model, tokenizer, chosen, RATE, HEAD_RATE, CLIP)
    model.save_pretrained(str(LORA.folder(root, domain)))
    logits = predict(model, tokenizer, [example.text for example in texts.held_out])
    np.save(LORA.logits(root, domain), logits.numpy())
