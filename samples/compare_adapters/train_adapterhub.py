"""Train the bottlenecks with the adapters library, which needs transformers 4: ``BASE FOLDER``.

Runs in an environment of its own (``environment.py`` makes it) and imports nothing of adexport. Saves
each adapter with its head, and the logits of the held-out texts; prints each adapter's name as it is done.
"""

from __future__ import annotations

import logging
import random
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from adapters import AutoAdapterModel, DoubleSeqBnConfig, SeqBnConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from compared import (
    BATCH,
    BOTTLENECKS,
    CLIP,
    DOMAINS,
    EPOCHS,
    HEAD_RATE,
    HIDDEN,
    LABELS,
    RATE,
    Family,
    Texts,
    load,
)
from training import batches, predict, text_length, train

CONFIGS = {"seq_bn": SeqBnConfig, "double_seq_bn": DoubleSeqBnConfig}


def main(base: str, root: Path) -> None:
    """Train every bottleneck for every domain."""
    transformers.utils.logging.set_verbosity_error()
    # it warns of an adapter that is not active while train_adapter is about to activate it
    logging.getLogger("adapters").setLevel(logging.ERROR)
    data = {domain: load(domain) for domain in DOMAINS}
    for family in BOTTLENECKS:
        for domain, texts in data.items():
            train_one(family, domain, base, root, texts)
            print(family.adapter(domain), flush=True)


def train_one(family: Family, domain: str, base: str, root: Path, texts: Texts) -> None:
    """One adapter, with a head of one layer on the pooled output: what PEFT's classifier is, too."""
    torch.manual_seed(0)
    random.seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = AutoAdapterModel.from_pretrained(base)
    name = family.adapter(domain)
    model.add_adapter(name, CONFIGS[family.method](reduction_factor=HIDDEN / family.size))
    model.add_classification_head(
        name, num_labels=len(LABELS), layers=1, use_pooler=True, id2label=dict(enumerate(LABELS))
    )
    model.train_adapter(name)
    chosen = batches(texts.train, BATCH, EPOCHS, text_length)
    train(model, tokenizer, chosen, RATE, HEAD_RATE, CLIP)
    folder = family.folder(root, domain)
    folder.parent.mkdir(parents=True, exist_ok=True)
    model.save_adapter(str(folder), name, with_head=True, use_safetensors=True)
    logits = predict(model, tokenizer, [example.text for example in texts.held_out])
    np.save(family.logits(root, domain), logits.numpy())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
