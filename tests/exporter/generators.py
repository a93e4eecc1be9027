"""Tiny random models that generate, and what transformers and PEFT generate with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from .families import CAUSAL, FAMILIES, Family

#: of the reference's two best logits: where they are closer, either token may come
MARGIN = 1e-4

#: heads of 16 rotate within the attention, those of 8 before it
_WIDE = {"hidden_size": 64, "num_hidden_layers": 2}


def _wide(name: str, **settings: Any) -> Family:
    family = FAMILIES[name]
    own = {"head_dim": 16} if "head_dim" in family.settings else {}
    return Family(family.config, {**family.settings, **_WIDE, **own, **settings})


def _other(config: str, **settings: Any) -> Family:
    return Family(config, {**FAMILIES["Llama"].settings, **_WIDE, **settings})


#: every family, and what is particular in some of them
GENERATORS = {
    **{name: family for name, family in FAMILIES.items() if family.decoder},
    "Llama, wide": _wide("Llama"),
    "Llama 3": _wide(
        "Llama",
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "Mistral, wide": _wide("Mistral"),
    "Qwen2, window above": _wide("Qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "Qwen3, wide": _wide("Qwen3"),
    "Gemma2, wide": _wide("Gemma2", attn_logit_softcapping=2.0),
    "Gemma3, wide": _wide("Gemma3"),
    "Phi3, partial": _wide("Phi3", partial_rotary_factor=0.5),
    # what other families do: half of a head rotated, by a function of its own; none in some layers;
    # pairs rotated; two attentions for one rotation
    "GPT-J": Family("GPTJConfig", {**FAMILIES["GPT2"].settings, "rotary_dim": 4}),
    "SmolLM3": _other("SmolLM3Config", no_rope_layers=[1, 0]),
    "Cohere": _other("CohereConfig", logit_scale=0.25, use_qk_norm=True),
    "DiffLlama": _other("DiffLlamaConfig"),
    "GPT2, wide": Family("GPT2Config", {**FAMILIES["GPT2"].settings, "n_embd": 64, "n_layer": 2}),
}


@dataclass(frozen=True)
class Tenants:
    """A model's folder, and PEFT adapters for it by name."""

    model: Path
    adapters: dict[str, Path]


def make_tenants(family: Family, folder: Path, adapters: int = 2) -> Tenants:
    """A random model and random LoRA adapters of several ranks, which change what it says."""
    model = family.save(CAUSAL, folder / "model")
    made: dict[str, Path] = {}
    for index in range(adapters):
        torch.manual_seed(index)
        base = transformers.AutoModelForCausalLM.from_pretrained(model)
        config = LoraConfig(r=3 + 4 * index, lora_alpha=8, target_modules="all-linear")
        peft = get_peft_model(base, config)
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        made[f"tenant{index}"] = folder / f"tenant{index}"
        peft.save_pretrained(str(made[f"tenant{index}"]))
    return Tenants(model, made)


def make_prompts(vocabulary: int, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Random prompts without special tokens."""
    random = np.random.default_rng(seed)
    return [[int(token) for token in random.integers(3, vocabulary, length)] for length in lengths]


class Reference:
    """transformers' ``generate``, with PEFT for the rows that have an adapter."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._models: dict[str | None, Any] = {}
        #: tokens at which the two best were closer than the margin
        self.close = 0

    def model(self, adapter: str | None) -> Any:
        if adapter not in self._models:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                self._tenants.model, dtype=torch.float32
            )
            if adapter is not None:
                model = PeftModel.from_pretrained(model, str(self._tenants.adapters[adapter]))
            self._models[adapter] = model.eval()
        return self._models[adapter]

    def check(
        self, prompt: Sequence[int], adapter: str | None, ids: Sequence[int], eos: int | None = None
    ) -> None:
        """The same tokens, up to the first place where the reference itself is undecided."""
        result = self.model(adapter).generate(
            torch.tensor([list(prompt)]),
            max_new_tokens=len(ids),
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        expected = result.sequences[0, len(prompt) :].tolist()
        for place, (token, logits) in enumerate(zip(expected, result.logits, strict=True)):
            best = logits[0].topk(2).values
            if best[0] - best[1] < MARGIN:
                self.close += 1
                return
            assert ids[place] == token, f"{adapter} at {place}: {list(ids)} but {expected}"
        assert list(ids) == expected
