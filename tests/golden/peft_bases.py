"""The tiny random bases of ``tests/golden/peft``: every weight, norm and bias is non-trivial."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

AUTO = {
    "FEATURE_EXTRACTION": AutoModel,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
}
ENCODER = {
    "vocab_size": 41,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
LLAMA = {**ENCODER, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
DISTILBERT = {
    "vocab_size": 41,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 24,
    "max_position_embeddings": 32,
}
GPT2 = {
    "vocab_size": 41,
    "bos_token_id": None,
    "eos_token_id": None,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
}
LABELS = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
TAGS = {"id2label": {0: "O", 1: "B", 2: "I"}, "label2id": {"O": 0, "B": 1, "I": 2}}

# name: what it is trained for, and its config
BASES: dict[str, tuple[str, PretrainedConfig]] = {
    "bert": ("FEATURE_EXTRACTION", BertConfig(**ENCODER)),
    "llama": ("FEATURE_EXTRACTION", LlamaConfig(**LLAMA, pad_token_id=0)),
    "gpt2": ("FEATURE_EXTRACTION", GPT2Config(**GPT2, pad_token_id=0)),
    "bert-classifier": ("SEQ_CLS", BertConfig(**ENCODER, **LABELS)),
    "roberta-classifier": ("SEQ_CLS", RobertaConfig(**ENCODER, **LABELS)),
    "distilbert-classifier": ("SEQ_CLS", DistilBertConfig(**DISTILBERT, **LABELS)),
    "llama-classifier": ("SEQ_CLS", LlamaConfig(**LLAMA, **LABELS, pad_token_id=0)),
    "bert-tagger": ("TOKEN_CLS", BertConfig(**ENCODER, **TAGS)),
}


def save_base(name: str, folder: Path) -> None:
    """Save a random base; what transformers initializes to ones and zeros is moved off them."""
    task, config = BASES[name]
    torch.manual_seed(zlib.crc32(name.encode()))
    model = AUTO[task].from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.2 if parameter.ndim > 1 else 0.1))
    model.save_pretrained(folder)


def load_base(folder: Path, task: str, labels: int | None = None) -> PreTrainedModel:
    """The saved base, in float32; ``labels`` other than the saved head's make a new random head."""
    if labels is None:
        return AUTO[task].from_pretrained(folder)
    return AUTO[task].from_pretrained(folder, num_labels=labels, ignore_mismatched_sizes=True)
