"""What no rule of a family can make up for: models that are refused before anything is traced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adexport_runtime.errors import BuildError, Code, Problem

from .architectures import TEXT_CLASSIFICATION, architecture_of, is_bare


def check_supported(model: Any, task: str, source: str) -> None:
    """Refuse what a bundle cannot hold.

    Raises:
        BuildError: naming every reason.
    """
    if problems := list(_problems(model, task)):
        raise BuildError(f"{source} cannot be built", problems)


def _problems(model: Any, task: str) -> Iterator[Problem]:
    config, name = model.config, type(model).__name__
    architecture = architecture_of(config)
    if getattr(config, "is_encoder_decoder", False):
        encoder = architecture.bare_loader
        yield Problem(
            Code.UNSUPPORTED,
            name,
            got="an encoder with a decoder",
            expected="one of the two",
            cause="a decoder behind an encoder needs inputs of its own and a cache",
            mend=f"--task feature-extraction builds its encoder ({encoder})" if encoder else "",
        )
    if config.sub_configs:
        yield Problem(
            Code.UNSUPPORTED,
            name,
            got="a model of several models: " + ", ".join(config.sub_configs),
            expected="one of them",
            mend="save the one that the adapters were trained on by itself",
        )
    if model.main_input_name != architecture.main_input:
        yield Problem(
            Code.UNSUPPORTED,
            name,
            got=f"a model that takes {model.main_input_name}",
            expected=architecture.main_input,
            cause=f"no rule for models of type {config.model_type}",
            mend="add a file with its inputs to adexport/architectures",
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if "dynamic" in {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}:
        yield Problem(
            Code.UNSUPPORTED,
            "rope_parameters",
            got="dynamic: tables that depend on the longest text seen so far",
            expected="tables that depend on positions",
        )
    reads_last = task == TEXT_CLASSIFICATION and architecture.feature == "last" and not is_bare(model)
    if reads_last and config.pad_token_id is None:
        yield Problem(
            Code.BAD_CONFIG,
            "pad_token_id",
            got="none in the model's config",
            expected="the id at padding: by it the model finds the last token of a text",
            mend="set it in config.json, as the tokenizer has it",
        )
