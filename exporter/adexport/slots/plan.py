"""Which linear layers become sites: the targets of a build, as PEFT takes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adexport_runtime.adapters import read_adapter
from adexport_runtime.errors import AdapterError, BuildError, Code, Problem
from adexport_runtime.matching import Targets, matches

DEFAULT_MAX_RANK = 64
ALL_LINEAR = "all-linear"
_REGEX = re.compile(r"[\\*+?()\[\]{}|^$]")


@dataclass(frozen=True)
class Plan:
    """The sites of a bundle, in the order of the graph, and the largest rank they take.

    ``left_out`` are layers of the blocks that cannot be sites.
    """

    sites: tuple[str, ...]
    max_rank: int
    left_out: tuple[str, ...] = ()


def parse_targets(text: str | None) -> Targets | None:
    """``--targets`` as PEFT's ``target_modules``: names with commas, or one regex."""
    if text is None or text == ALL_LINEAR:
        return None
    if _REGEX.search(text):
        return text
    return [name.strip() for name in text.split(",") if name.strip()]


def make_plan(
    layers: Mapping[str, bool],
    targets: Targets | None,
    max_rank: int | None,
    like: Iterable[Path] = (),
    prefix: str = "",
) -> Plan:
    """Choose the sites among a model's linear layers.

    Args:
        layers: all linear layers by path, and whether each can be a site.
        targets: names or a regex as PEFT takes them; None means every linear layer of the blocks.
        max_rank: the largest rank; None takes that of ``like``, or 64.
        like: adapters whose modules become the sites.
        prefix: the base's prefix, which an adapter's paths may have or lack.

    Raises:
        BuildError: a target is no module of the model, or cannot be a site.
        AdapterError: an adapter cannot be read.
    """
    modules = list(layers)
    if max_rank is not None and max_rank < 1:
        raise BuildError(
            "no slots can be made",
            Problem(Code.BAD_INPUT, "--max-rank", got=str(max_rank), expected="at least 1"),
        )
    ranks = _ranks_of(like)
    if ranks and targets is None:
        chosen = _sites_like(modules, ranks, prefix)
    elif targets is None:
        chosen = [module for module in modules if in_block(module)]
    else:
        chosen = [module for module in modules if matches(targets, module)]
        _check_targets(targets, modules)
    if not chosen:
        raise BuildError(
            "no slots can be made",
            Problem(
                Code.UNKNOWN_SITE,
                "the model",
                got=f"{len(modules)} linear layers, none of them in a numbered block",
                mend="name them with --targets",
            ),
        )
    left_out = tuple(module for module in chosen if not layers[module])
    if left_out and (ranks or targets is not None):
        raise BuildError(
            "no slots can be made",
            [
                Problem(
                    Code.UNSUPPORTED,
                    module,
                    got="an input without the batch first",
                    expected="rows that belong to one tenant each",
                    cause="the model mixes the rows of a batch before this layer",
                    mend="leave it out of --targets",
                )
                for module in left_out
            ],
        )
    widest = max(ranks.values(), default=DEFAULT_MAX_RANK)
    if max_rank is not None and ranks and max_rank < widest:
        raise BuildError(
            "no slots can be made",
            Problem(
                Code.RANK_ABOVE_MAX,
                "--like",
                got=f"rank {widest}",
                expected=f"at most --max-rank {max_rank}",
                mend=f"give --max-rank {widest}",
            ),
        )
    sites = tuple(module for module in chosen if layers[module])
    return Plan(sites, max_rank or widest, left_out)


def in_block(module: str) -> bool:
    """Whether a layer lies in one of the model's repeated blocks (a numbered segment above it)."""
    return re.search(r"\.\d+\.", f".{module}.") is not None


def _ranks_of(like: Iterable[Path]) -> dict[str, int]:
    """The rank of every module that the adapters touch, the largest where they differ."""
    ranks: dict[str, int] = {}
    for path in like:
        adapter = read_adapter(path)
        if adapter.problems:
            raise AdapterError(f"{path} cannot serve for --like", adapter.problems)
        for module, weights in adapter.linears.items():
            ranks[module] = max(weights.rank, ranks.get(module, 0))
    return ranks


def _sites_like(modules: list[str], ranks: Mapping[str, int], prefix: str) -> list[str]:
    dotted = f"{prefix}." if prefix else ""
    wanted = {module: {module, dotted + module, module.removeprefix(dotted)} for module in ranks}
    unknown = [module for module, names in wanted.items() if names.isdisjoint(modules)]
    if unknown:
        raise BuildError(
            "no slots can be made",
            [
                Problem(
                    Code.UNKNOWN_SITE,
                    module,
                    got="a module that the model does not have",
                    cause="--like names an adapter of another base",
                )
                for module in unknown
            ],
        )
    named = set().union(*wanted.values())
    return [module for module in modules if module in named]


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
        raise BuildError("no slots can be made", problems)
