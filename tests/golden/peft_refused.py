"""The table of ``tests/golden/peft``, second part: adapters that a slot cannot stand for."""

from __future__ import annotations

from typing import Any

import peft
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import KasaConfig, MontecloraConfig
from peft_cases import ATTENTION, LORA, Case

SOME = {"target_modules": ATTENTION["bert"]}
PROMPT = {"num_virtual_tokens": 3}

# LoRA that is more than two factors: name, keys, why
LORA_ON_BERT: list[tuple[str, dict[str, Any], str]] = [
    ("bias-all", {"bias": "all"}, "biases of layers without a slot, LayerNorm among them, were trained"),
    ("embedding", {"target_modules": ["query", "word_embeddings"]}, "factors on an embedding"),
    ("trainable-tokens", {"trainable_token_indices": {"word_embeddings": [3, 5]}}, "rows of an embedding"),
    (
        "target-parameters",
        {"target_parameters": ["self.key.weight"]},
        "factors on a parameter, not a module",
    ),
    ("alora", {"alora_invocation_tokens": [5, 6]}, "acts from an invocation sequence on only"),
    ("pissa-niter", {"init_lora_weights": "pissa_niter_4"}, "PEFT repeats a randomized SVD on load"),
    ("kasa", {"kasa_config": KasaConfig()}, "truncates the base's weight"),
    ("monteclora", {"monteclora_config": MontecloraConfig()}, "samples its factors"),
    ("layer-replication", {"layer_replication": [[0, 2], [0, 2]]}, "changes the depth of the base"),
    ("saved-layer-norm", {"modules_to_save": ["LayerNorm"]}, "a module that is no head was trained"),
    ("saved-embedding", {"modules_to_save": ["word_embeddings"]}, "a module that is no head was trained"),
]
# what needs data, a quantizer or other adapters to be made: plain LoRA whose JSON says otherwise
EDITED: list[tuple[str, dict[str, Any], str]] = [
    (
        "loftq",
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
        "the base was quantized",
    ),
    ("corda", {"init_lora_weights": "corda"}, "the base was changed by data that is not in the file"),
    (
        "lora-ga",
        {"init_lora_weights": "lora_ga"},
        "the base was changed by gradients that are not in the file",
    ),
    ("qalora", {"use_qalora": True, "qalora_group_size": 4}, "pools the input of a quantized layer"),
    ("arrow", {"arrow_config": {"top_k": 2, "router_temperature": 1.0}}, "routes each token to experts"),
    ("unknown-key", {"use_tomorrow": True}, "a key that this version of PEFT does not know, switched on"),
]
FULL_RANK = "adds a change of full rank"
MULTIPLIES = "multiplies the weight, or the output, by more than a vector"
FAMILIES: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "vera-no-projection",
        "VeraConfig",
        {"r": 5, "save_projection": False},
        "torch's generator makes the factors",
    ),
    ("miss-bat", "MissConfig", {"r": 4, "init_weights": "bat"}, MULTIPLIES),
    ("c3a", "C3AConfig", {"block_size": 8}, FULL_RANK),
    ("randlora", "RandLoraConfig", {"r": 4}, FULL_RANK),
    ("fourierft", "FourierFTConfig", {"n_frequency": 20}, FULL_RANK),
    ("waveft", "WaveFTConfig", {"n_frequency": 20}, FULL_RANK),
    ("oft", "OFTConfig", {"oft_block_size": 4}, MULTIPLIES),
    ("boft", "BOFTConfig", {}, MULTIPLIES),
    ("road", "RoadConfig", {"group_size": 8}, MULTIPLIES),
    ("hira", "HiraConfig", {"r": 3}, MULTIPLIES),
    ("psoft", "PsoftConfig", {"r": 3}, MULTIPLIES),
    ("shira", "ShiraConfig", {"r": 1, "random_seed": 0}, "a sparse change of full rank"),
    ("ln-tuning", "LNTuningConfig", {"target_modules": ["LayerNorm"]}, "replaces LayerNorm"),
    ("trainable-tokens-only", "TrainableTokensConfig", {"token_indices": [3, 5]}, "rows of an embedding"),
    ("prompt-tuning", "PromptTuningConfig", PROMPT, "virtual tokens, not weights"),
    ("prefix-tuning", "PrefixTuningConfig", PROMPT, "virtual keys and values, not weights"),
    (
        "p-tuning",
        "PromptEncoderConfig",
        {**PROMPT, "encoder_hidden_size": 8},
        "virtual tokens, not weights",
    ),
]
NEW = "a family that is not read"
# AdaMSS needs scikit-learn to be made
UNREAD: list[tuple[str, str, dict[str, Any]]] = [
    ("beft", "BeftConfig", {}),
    ("deft", "DeftConfig", {"r": 3}),
    ("frod", "FrodConfig", {"progressbar": False}),
    ("glora", "GloraConfig", {"r": 3}),
    ("gralora", "GraloraConfig", {"r": 4}),
    ("lily", "LilyConfig", {"r": 3}),
    ("osf", "OSFConfig", {}),
    ("peanut", "PeanutConfig", {"r": 3}),
    ("pvera", "PveraConfig", {"r": 5}),
    ("tinylora", "TinyLoraConfig", {}),
    ("unilora", "UniLoraConfig", {}),
]


def lora(base: str, name: str, keys: dict[str, Any], why: str, edits: dict[str, Any] | None = None) -> Case:
    """An adapter of type LORA."""
    keys = {**LORA, "target_modules": ATTENTION[base], **keys}
    return Case(base, name, LoraConfig, keys, kind="refuse", why=why, edits=edits or {})


def other(name: str, make: str, keys: dict[str, Any], why: str) -> Case:
    """An adapter of another type, on BERT."""
    config: type[PeftConfig] = getattr(peft, make)
    has_targets = "target_modules" in config.__dataclass_fields__ and "token_indices" not in keys
    targets = SOME if has_targets else {}
    return Case("bert", name, config, {**targets, **keys}, kind="refuse", why=why)


REFUSED: list[Case] = [
    *(lora("bert", name, keys, why) for name, keys, why in LORA_ON_BERT),
    *(lora("bert", name, {}, why, edits) for name, edits, why in EDITED),
    *(other(name, make, keys, why) for name, make, keys, why in FAMILIES),
    *(other(name, make, keys, NEW) for name, make, keys in UNREAD),
    lora("llama", "embedding", {"target_modules": ["q_proj", "embed_tokens"]}, "factors on an embedding"),
    lora("llama", "saved-norm", {"modules_to_save": ["norm"]}, "a module that is no head was trained"),
    lora("gpt2", "embedding", {"target_modules": ["c_attn", "wte"]}, "factors on an embedding"),
    lora("gpt2", "bias-all", {"bias": "all"}, "biases of layers without a slot were trained"),
]
