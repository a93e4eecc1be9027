"""Which linear layers become sites: the targets of a build, as PEFT takes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from adexport_runtime.adapters import LinearUpdate
from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.matching import Targets, matches

ALL_LINEAR = "all-linear"
_REGEX = re.compile(r"[\\*+?()\[\]{}|^$]")
_HEADLINE = "no slots can be made"


def parse_targets(text: str | None) -> Targets | None:
    """``--targets`` as PEFT's ``target_modules``: names with commas, or one regex."""
    if text is None or text == ALL_LINEAR:
        return None
    if _REGEX.search(text):
        return text
    return [name.strip() for name in text.split(",") if name.strip()]


def chosen_layers(modules: list[str], targets: Targets | None) -> list[str]:
    """The layers that targets name; None means every layer of the blocks.

    Raises:
        BuildError: naming every target that no layer matches.
    """
    if targets is None:
        chosen = [module for module in modules if in_block(module)]
    else:
        chosen = [module for module in modules if matches(targets, module)]
        _check_targets(targets, modules)
    if not chosen:
        raise BuildError(
            _HEADLINE,
            Problem(
                Code.UNKNOWN_SITE,
                "the model",
                got=f"{len(modules)} linear layers, none of them in a numbered block",
                mend="name them with --targets",
            ),
        )
    return chosen


def layers_like(
    modules: list[str], adapters: Iterable[Mapping[str, LinearUpdate]], prefix: str
) -> dict[str, frozenset[str]]:
    """The layers that adapters touch, with the factors that they need there, in the model's order.

    Raises:
        BuildError: naming every module that the model does not have.
    """
    dotted = f"{prefix}." if prefix else ""
    needed: dict[str, frozenset[str]] = {}
    unknown = []
    for adapter in adapters:
        for module, update in adapter.items():
            names = (module, dotted + module, module.removeprefix(dotted))
            found = next((name for name in names if name in modules), None)
            if found is None:
                unknown.append(module)
            else:
                needed[found] = needed.get(found, frozenset()) | update.kinds
    if unknown:
        raise BuildError(
            _HEADLINE,
            [
                Problem(
                    Code.UNKNOWN_SITE,
                    module,
                    got="a module that the model does not have",
                    cause="--like names an adapter of another base",
                )
                for module in dict.fromkeys(unknown)
            ],
        )
    return {module: needed[module] for module in modules if module in needed}


def in_block(module: str) -> bool:
    """Whether a layer lies in one of the model's repeated blocks (a numbered segment above it)."""
    return re.search(r"\.\d+\.", f".{module}.") is not None


def _check_targets(targets: Targets, modules: list[str]) -> None:
    """Every target must mean something: a misspelt one would be a slot that is not there."""
    each = [targets] if isinstance(targets, str) else [[target] for target in targets]
    problems = [
        Problem(
            Code.UNKNOWN_SITE,
            target if isinstance(target, str) else target[0],
            got="a target that no linear layer matches",
            expected="one of " + ", ".join(sorted({module.rpartition(".")[2] for module in modules})),
        )
        for target in each
        if not any(matches(target, module) for module in modules)
    ]
    if problems:
        raise BuildError(_HEADLINE, problems)
