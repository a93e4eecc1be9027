"""The rules of PEFT's ``adapter_config.json`` for LoRA (keys of peft 0.21).

Every key is either used, known to have no effect on inference, or refused: none is skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import Code, Problem
from ..matching import Targets, layer_of, matches, pattern_value

_NEEDS_SLOT = "the linear slot of this bundle carries A and B only"

#: keys that change what the adapter computes -> (why they are refused, what to do)
_REFUSED: dict[str, tuple[str, str]] = {
    "use_dora": (
        f"DoRA scales each output by the norm of the merged weight; {_NEEDS_SLOT}",
        "train with use_dora=False, or merge this adapter into its own base",
    ),
    "lora_bias": (
        f"lora_bias adds a bias behind B; {_NEEDS_SLOT}",
        "train with lora_bias=False",
    ),
    "trainable_token_indices": ("trained embedding rows have no slot", "train without them"),
    "target_parameters": ("adapters on bare parameters (MoE experts) have no slot", "target modules"),
    "alora_invocation_tokens": ("aLoRA acts on some positions only", "train an ordinary LoRA"),
    "layer_replication": ("it changes the depth of the base", "build a bundle of the deepened model"),
    "use_qalora": ("QALoRA pools the input of A", "train an ordinary LoRA"),
    "use_bdlora": ("BD-LoRA's factors are block-diagonal", "train an ordinary LoRA"),
    "arrow_config": ("Arrow routes each token", "train an ordinary LoRA"),
    "monteclora_config": ("MonteCLoRA samples its weights", "train an ordinary LoRA"),
    "kasa_config": ("KaSA truncates the base weights", "train an ordinary LoRA"),
    "velora_config": ("VeLoRA is not verified against PEFT here", "train an ordinary LoRA"),
    "ensure_weight_tying": ("tied adapters on embedding and head have no slot", "train without it"),
}

#: initialisations that change the base weights, which a plain A and B then do not fit
_MUTATING = ("pissa", "olora", "corda", "lora_ga", "loftq")
_CONVERT = "save again with save_pretrained(path_initial_model_for_weight_conversion=…)"

#: keys without effect on what the saved adapter computes
_IGNORED = frozenset(
    [
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "fan_in_fan_out",
        "megatron_config",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
        "runtime_config",
    ]
)


class LoraConfig(BaseModel):
    """The keys of a LoRA config that decide what its tensors mean."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    r: Annotated[int, Field(gt=0)]
    lora_alpha: Annotated[float, Field(allow_inf_nan=False)]
    use_rslora: bool = False
    rank_pattern: dict[str, Annotated[int, Field(gt=0)]] | None = None
    alpha_pattern: dict[str, Annotated[float, Field(allow_inf_nan=False)]] | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True

    def rank(self, module: str) -> int:
        """The rank that the config gives a module."""
        return int(pattern_value(dict(self.rank_pattern or {}), module, self.r))

    def scaling(self, module: str) -> float:
        """Alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732)."""
        rank = self.rank(module)
        alpha = pattern_value(dict(self.alpha_pattern or {}), module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def covers(self, module: str) -> bool:
        """Whether PEFT wraps ``module`` under this config."""
        if self.target_modules is None:
            return False
        if self.exclude_modules and matches(self.exclude_modules, module):
            return False
        if any(re.match(rf"(^|.*\.){kept}($|\..*)", module) for kept in self.modules_to_save or ()):
            return False
        if not matches(self.target_modules, module):
            return False
        layers = self.layers_to_transform
        if isinstance(self.target_modules, str) or layers is None or layers == []:
            return True
        wanted = [layers] if isinstance(layers, int) else layers
        return layer_of(module, _listed(self.layers_pattern)) in wanted


def _listed(patterns: Targets | None) -> Sequence[str]:
    if not patterns:
        return ()
    return (patterns,) if isinstance(patterns, str) else patterns


def _patterns(data: dict[str, Any]) -> list[Problem]:
    """Regexes that do not compile, wherever the config holds one."""
    found: list[tuple[str, str]] = []
    for key in ("rank_pattern", "alpha_pattern"):
        found += [(key, pattern) for pattern in data.get(key) or ()]
    found += [
        (key, data[key])
        for key in ("target_modules", "exclude_modules", "layers_pattern")
        if isinstance(data.get(key), str)
    ]
    problems = []
    for key, pattern in found:
        try:
            re.compile(pattern)
        except (re.error, TypeError, RecursionError) as error:
            problems.append(Problem(Code.BAD_CONFIG, f"{key} {pattern!r}", got=f"no regex ({error})"))
    return problems


def parse_lora_config(data: dict[str, Any]) -> tuple[LoraConfig | None, list[Problem]]:
    """Validate a LoRA config; returns it (None if unusable) with every problem found."""
    problems = _patterns(data)
    usable = not problems
    for key, (reason, mend) in _REFUSED.items():
        if data.get(key):
            problems.append(
                Problem(Code.UNSUPPORTED, key, got=repr(data[key])[:80], cause=reason, mend=mend)
            )
    if (bias := data.get("bias", "none")) != "none":
        problems.append(
            Problem(
                Code.UNSUPPORTED,
                "bias",
                got=repr(bias),
                expected="'none'",
                cause=f"trained biases replace the base's; {_NEEDS_SLOT}",
                mend="train with bias='none'",
            )
        )
    init = data.get("init_lora_weights", True)
    if isinstance(init, str) and init.startswith(_MUTATING):
        problems.append(
            Problem(
                Code.UNSUPPORTED,
                "init_lora_weights",
                got=repr(init),
                cause="this initialisation changes the base weights, so the saved A and B do not "
                "fit the base of the bundle",
                mend=_CONVERT,
            )
        )
    known = _IGNORED | _REFUSED.keys() | LoraConfig.model_fields.keys()
    for key in sorted(data.keys() - known):
        if data[key]:
            problems.append(
                Problem(
                    Code.UNSUPPORTED,
                    key,
                    got=repr(data[key])[:80],
                    expected="a key of peft 0.21",
                    cause="saved by a newer PEFT, or not by PEFT",
                    mend="if the key changes nothing at inference, remove it from adapter_config.json",
                )
            )
    try:
        config = LoraConfig.model_validate(data)
        return (config if usable else None), problems
    except ValidationError as error:
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"])
            problems.append(
                Problem(Code.BAD_CONFIG, where, got=repr(item["input"])[:80], expected=item["msg"])
            )
        return None, problems
