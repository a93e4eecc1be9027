"""What the ``adapter_config.json`` of every PEFT method has in common (keys of peft 0.21).

Every key is either used, known to have no effect on inference, or refused: none is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import Code, Problem
from ...matching import Targets, layer_of, matches, pattern_value

Count = Annotated[int, Field(gt=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

#: a key that changes what the adapter computes -> (why it is refused, what to do)
Refusals = Mapping[str, tuple[str, str]]

#: keys of every PEFT config without effect on what the saved adapter computes
IGNORED = frozenset(
    [
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ]
)

#: names that PEFT adds to modules_to_save for a task, whether the model has them or not
_BY_TASK = frozenset(["classifier", "score", "qa_outputs"])


class TunerConfig(BaseModel):
    """The keys that say which modules an adapter changes.

    A method's own class adds the keys that decide what its tensors mean; ``ignored`` are keys of the
    method without effect on inference, ``refused`` those that are refused if they are set at all.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    ignored: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Refusals] = {}

    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    bias: str = "none"

    def covers(self, module: str) -> bool:
        """Whether PEFT wraps ``module`` under this config (``check_target_module_exists``)."""
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

    def saves(self, module: str) -> list[str]:
        """The names in ``modules_to_save`` for which PEFT keeps ``module`` or one that holds it whole."""
        segments = module.split(".")
        holders = [".".join(segments[: end + 1]) for end in range(len(segments))]
        return [name for name in self.modules_to_save or () if any(h.endswith(name) for h in holders)]

    def lost(self, found: set[str]) -> list[str]:
        """Names in ``modules_to_save`` that should have tensors, given those that have."""
        missing = [name for name in self.modules_to_save or () if name not in found]
        return [name for name in missing if name not in _BY_TASK or not found]

    @property
    def trains_bias(self) -> bool:
        """Whether the biases of the wrapped layers are saved with the adapter."""
        return self.bias.endswith("_only")

    @classmethod
    def refusals(cls, data: Mapping[str, Any]) -> list[Problem]:
        """What the values of a config make impossible to serve; methods add their own."""
        problems = [
            Problem(Code.UNSUPPORTED, key, got=repr(data[key])[:80], cause=reason, mend=mend)
            for key, (reason, mend) in cls.refused.items()
            if data.get(key)
        ]
        bias = data.get("bias", "none")
        if isinstance(bias, str) and bias != "none" and not bias.endswith("_only"):
            problems.append(
                Problem(
                    Code.UNSUPPORTED,
                    "bias",
                    got=repr(bias),
                    expected="'none', or the biases of the adapter's own layers ('…_only')",
                    cause="biases of layers without a slot were trained, those of LayerNorm among them",
                    mend="train with bias='none' or '…_only'",
                )
            )
        return problems


class RankedConfig(TunerConfig):
    """A config with a rank for every module."""

    r: Count
    rank_pattern: dict[str, Count] | None = None

    def rank(self, module: str) -> int:
        """The rank that the config gives a module."""
        return int(pattern_value(dict(self.rank_pattern or {}), module, self.r))


_Config = TypeVar("_Config", bound=TunerConfig)


def parse_config(cls: type[_Config], data: Mapping[str, Any]) -> tuple[_Config | None, list[Problem]]:
    """Validate a config; returns it (None if it cannot be used) with every problem found."""
    bad = _bad_patterns(data)
    problems = bad + cls.refusals(data)
    known = IGNORED | cls.ignored | cls.refused.keys() | cls.model_fields.keys()
    problems += [
        Problem(
            Code.UNSUPPORTED,
            key,
            got=repr(data[key])[:80],
            expected="a key of peft 0.21",
            cause="saved by a newer PEFT, or not by PEFT",
            mend="if the key changes nothing at inference, remove it from adapter_config.json",
        )
        for key in sorted(data.keys() - known)
        if data[key]
    ]
    try:
        config = cls.model_validate(data)
    except ValidationError as error:
        problems += [
            Problem(
                Code.BAD_CONFIG,
                ".".join(str(part) for part in item["loc"]),
                got=repr(item["input"])[:80],
                expected=item["msg"],
            )
            for item in error.errors()
        ]
        return None, problems
    return (None if bad else config), problems


def _listed(patterns: Targets | None) -> Sequence[str]:
    if not patterns:
        return ()
    return (patterns,) if isinstance(patterns, str) else patterns


def _bad_patterns(data: Mapping[str, Any]) -> list[Problem]:
    """Regexes that do not compile, wherever the config holds one."""
    problems = []
    for key, pattern in _patterns(data):
        try:
            re.compile(pattern)
        except (re.error, TypeError, RecursionError) as error:
            problems.append(Problem(Code.BAD_CONFIG, f"{key} {pattern!r}", got=f"no regex ({error})"))
    return problems


def _patterns(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in ("rank_pattern", "alpha_pattern"):
        if isinstance(found := data.get(key), dict):
            yield from ((key, pattern) for pattern in found)
    for key in ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern"):
        if isinstance(found := data.get(key), str):
            yield key, found
    for key in ("layers_pattern", "modules_to_save"):
        if isinstance(found := data.get(key), list):
            yield from ((key, pattern) for pattern in found)
