"""Families of models, tiny and random: a build checks itself against torch, so it only succeeds
when base rows, mixed rows, ragged rows, one row and one token are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from adexport.build import build_model

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
DISTIL = {"vocab_size": 97, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
DEBERTA = {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}

#: family -> (settings, sites, whether attention is opaque)
FAMILIES: dict[str, tuple[dict[str, Any], int, bool]] = {
    "Bert": (SIZES, 12, True),
    "Roberta": (SIZES, 12, True),
    "XLMRoberta": (SIZES, 12, True),
    "DistilBert": (DISTIL, 12, True),
    "Albert": ({**SIZES, "embedding_size": 16}, 6, True),
    "Electra": ({**SIZES, "embedding_size": 16}, 12, True),
    "MPNet": (SIZES, 12, False),
    "DebertaV2": (DEBERTA, 12, False),
    "ModernBert": ({**SIZES, "pad_token_id": 0, "local_attention": 6}, 8, False),
    "Llama": (GROUPED, 14, True),
    "Mistral": ({**GROUPED, "sliding_window": 4}, 14, True),
    "Qwen3": ({**GROUPED, "head_dim": 8}, 14, True),
    "GPT2": (GPT2, 8, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, tmp_path: Path) -> None:
    settings, sites, opaque = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    getattr(transformers, f"{family}Model")(config).save_pretrained(tmp_path / "model")
    result = build_model(str(tmp_path / "model"), tmp_path / "bundle")
    assert len(result.bundle.manifest.sites) == sites
    assert max(result.differences.values()) <= 1e-6
    assert any("traced in full" in note for note in result.notes) != opaque


def test_roberta_positions(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(**SIZES)
    from adexport.architectures import architecture_of

    assert architecture_of(config).max_positions == 38
    assert architecture_of(transformers.BertConfig(**SIZES)).max_positions == 40


def test_deberta_says_where_no_slot_can_be(tmp_path: Path) -> None:
    """With shared position projections, query and key run on position rows too: no row is a tenant's."""
    config = transformers.DebertaV2Config(**DEBERTA, share_att_key=True)
    transformers.DebertaV2Model(config).save_pretrained(tmp_path / "model")
    result = build_model(str(tmp_path / "model"), tmp_path / "bundle")
    paths = [site.path for site in result.bundle.manifest.sites]
    assert "encoder.layer.0.attention.self.value_proj" in paths
    assert "encoder.layer.0.attention.self.key_proj" not in paths
    assert any("key_proj" in note for note in result.notes)
