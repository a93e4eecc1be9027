"""The bases of ``tests/golden/adapterhub`` and the texts that all their cases are computed on."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BertConfig,
    DistilBertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PretrainedConfig,
    Qwen2Config,
    RobertaConfig,
)

VOCABULARY, TOKENS, LENGTHS = 41, 7, (7, 4, 1, 6)
# the bases whose padding is not 0
PAD = {"roberta": 1}

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "initializer_range": 0.25,
}
ENCODER: dict[str, Any] = {**COMMON, "num_attention_heads": 2, "max_position_embeddings": 32}
DECODER: dict[str, Any] = {
    **COMMON,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BASES: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**ENCODER),
    "llama": LlamaConfig(**DECODER),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_inner=24,
        n_positions=32,
        initializer_range=0.25,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "roberta": RobertaConfig(**{**ENCODER, "max_position_embeddings": 34}),
    "distilbert": DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=24,
        max_position_embeddings=32,
        initializer_range=0.25,
    ),
    "qwen2": Qwen2Config(**DECODER),
    "gemma2": Gemma2Config(**DECODER, head_dim=4, query_pre_attn_scalar=4, sliding_window=4),
    "modernbert": ModernBertConfig(
        **ENCODER,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        global_attn_every_n_layers=2,
        local_attention=4,
        reference_compile=False,
    ),
}


def texts(pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask``, int64 [4, 7]: ragged on the right, no padding inside a text."""
    mask = (torch.arange(TOKENS)[None] < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.arange(len(LENGTHS) * TOKENS).reshape(len(LENGTHS), TOKENS) * 7 % (VOCABULARY - 3) + 3
    return torch.where(mask.bool(), ids, pad), mask
