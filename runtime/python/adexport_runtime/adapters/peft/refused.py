"""PEFT methods that no slot can stand for, and why."""

from __future__ import annotations

from typing import Any

from ...errors import Code, Problem

_FULL_RANK = "it adds a change of full rank to the weight"
_MULTIPLIES = "it multiplies the weight by more than a vector"
_TOKENS = "it adds virtual tokens to the input, and a bundle's slots are at its layers"
_ROUTES = "it mixes or routes by the input"
_MERGE = "train a LoRA, or merge this adapter into its base and build a bundle of that"
_LORA = "train a LoRA"

#: peft_type -> (why it is refused, what to do)
_REASONS: dict[str, tuple[str, str]] = {
    "C3A": (_FULL_RANK, _MERGE),
    "RANDLORA": (_FULL_RANK, _MERGE),
    "FOURIERFT": (_FULL_RANK, _MERGE),
    "WAVEFT": (_FULL_RANK, _MERGE),
    "SHIRA": ("it adds a sparse change of full rank to the weight", _MERGE),
    "OFT": (_MULTIPLIES, _MERGE),
    "BOFT": (_MULTIPLIES, _MERGE),
    "HIRA": (_MULTIPLIES, _MERGE),
    "PSOFT": (_MULTIPLIES, _MERGE),
    "ROAD": ("it rotates the output in pairs of features", _MERGE),
    "LN_TUNING": ("it trains LayerNorm, which has no slot", _MERGE),
    "TRAINABLE_TOKENS": ("it trains rows of the embedding, which has no slot", _MERGE),
    "PROMPT_TUNING": (_TOKENS, _LORA),
    "MULTITASK_PROMPT_TUNING": (_TOKENS, _LORA),
    "P_TUNING": (_TOKENS, _LORA),
    "CPT": (_TOKENS, _LORA),
    "PREFIX_TUNING": ("it adds virtual keys and values to the attention, which has no slot", _LORA),
    "CARTRIDGE": ("it adds virtual keys and values to the attention, which has no slot", _LORA),
    "ADAPTION_PROMPT": ("it adds gated prompts to the attention, which has no slot", _LORA),
    "XLORA": (_ROUTES, "serve its adapters one by one"),
    "POLY": (_ROUTES, _LORA),
}


def refused_method(kind: str, config: dict[str, Any], served: tuple[str, ...]) -> Problem:
    """The culprit of an adapter whose method is not read."""
    why, mend = _REASONS.get(kind, ("a method that is not read", _MERGE))
    return Problem(
        Code.UNSUPPORTED,
        "peft_type",
        got=kind if isinstance(config["peft_type"], str) else repr(config["peft_type"]),
        expected=", ".join(served),
        cause=why,
        mend=mend,
    )
