"""Which slots a bundle gets, and where: from what was asked for, or from real adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from adexport_runtime.adapters import NeutralAdapter, read_adapter
from adexport_runtime.errors import AdapterError, BuildError, Code, Problem
from adexport_runtime.slots import BankDtype, BottleneckForm, Location

from ..lower import BottleneckOptions, HeadOptions, LowerOptions, bottleneck_places, has_head, linear_layers
from ..options import BuildOptions
from .kinds import (
    ACTIVATIONS,
    DEFAULT_ACTIVATIONS,
    DEFAULT_FORMS,
    DEFAULT_MAX_WIDTH,
    DEFAULT_SLOTS,
    FORMS,
    HEAD_ACTIVATIONS,
    KINDS,
    LINEAR_KINDS,
    check_kinds,
    kinds_of,
    linear_factors,
    with_neutral,
)
from .targets import chosen_layers, layers_like

DEFAULT_MAX_RANK = 64
_HEADLINE = "no slots can be made"


@dataclass(frozen=True)
class Places:
    """Where slots can be in a traced model.

    ``layers`` are all linear layers by path, and whether each can be a site; ``ends`` the layers
    behind which a bottleneck can go, with their block and location; ``prefix`` is the base's, which an
    adapter's paths may have or lack. ``marked``: bottlenecks and heads were thought of when it was traced.
    """

    layers: Mapping[str, bool]
    ends: Mapping[str, tuple[int, Location]] = field(default_factory=dict)
    head: bool = False
    model_type: str = ""
    prefix: str = ""
    marked: bool = True

    @classmethod
    def of(cls, trace: ir.Model, model_type: str, prefix: str, *, marked: bool = True) -> Places:
        """The places of a trace."""
        ends = bottleneck_places(trace)
        return cls(linear_layers(trace), ends, has_head(trace), model_type, prefix, marked)


@dataclass(frozen=True)
class Plan:
    """The slots of a bundle, and the largest rank and width that they take.

    ``sites`` are in the order of the graph, each with its factors. ``left_out`` are layers of the blocks
    that cannot be sites.
    """

    sites: Mapping[str, frozenset[str]]
    max_rank: int = DEFAULT_MAX_RANK
    bottlenecks: BottleneckOptions | None = None
    max_width: int = DEFAULT_MAX_WIDTH
    head: HeadOptions | None = None
    left_out: tuple[str, ...] = ()

    def lowering(self, dtype: str, bank_dtype: BankDtype | None = None) -> LowerOptions:
        """What a lowering is told."""
        return LowerOptions(self.sites, self.bottlenecks, self.head, dtype, bank_dtype=bank_dtype)

    @property
    def slots(self) -> tuple[str, ...]:
        """The kinds of slots."""
        kinds = kinds_of(frozenset().union(*self.sites.values()))
        more = (("bottleneck", self.bottlenecks), ("head", self.head))
        return (*kinds, *(kind for kind, there in more if there is not None))


def make_plan(places: Places, options: BuildOptions) -> Plan:
    """Choose the slots of a bundle.

    Raises:
        BuildError: a target is no layer of the model, or a slot cannot be where it is asked for.
        AdapterError: an adapter in ``like`` cannot be read.
    """
    for name, size in (("--max-rank", options.max_rank), ("--max-width", options.max_width)):
        if size is not None and size < 1:
            raise BuildError(_HEADLINE, Problem(Code.BAD_INPUT, name, got=str(size), expected="at least 1"))
    check_kinds("--slots", options.slots or (), KINDS)
    check_kinds("--bottlenecks", options.bottlenecks or (), FORMS)
    check_kinds("--activations", options.activations or (), ACTIVATIONS)
    like = _read(options)
    asked = options.slots if options.slots is not None else (() if like else DEFAULT_SLOTS)
    sites, left_out = _linears(places, options, asked, like)
    widths = [weights.width for adapter in like for weights in adapter.bottlenecks.values()]
    ranks = [update.rank for adapter in like for update in adapter.linears.values()]
    return Plan(
        sites=sites,
        max_rank=_limit("--max-rank", "rank", options.max_rank, ranks, DEFAULT_MAX_RANK),
        bottlenecks=_bottlenecks(places, options, asked, like),
        max_width=_limit("--max-width", "width", options.max_width, widths, DEFAULT_MAX_WIDTH),
        head=_head(places, options, asked, like),
        left_out=left_out,
    )


def brings_heads(options: BuildOptions) -> bool:
    """Whether adapters are to bring heads of their own.

    Raises:
        AdapterError: an adapter in ``like`` cannot be read.
    """
    return "head" in (options.slots or ()) or any(_has_head(adapter) for adapter in _read(options))


def _has_head(adapter: NeutralAdapter) -> bool:
    return adapter.head is not None or bool(adapter.replaced)


def _read(options: BuildOptions) -> list[NeutralAdapter]:
    adapters = []
    for path in options.like:
        adapter = read_adapter(path)
        if adapter.problems:
            raise AdapterError(f"{path} cannot serve for --like", adapter.problems)
        adapters.append(adapter)
    return adapters


def _linears(
    places: Places, options: BuildOptions, asked: Iterable[str], like: list[NeutralAdapter]
) -> tuple[dict[str, frozenset[str]], tuple[str, ...]]:
    factors = linear_factors(asked)
    touched = [adapter.linears for adapter in like if adapter.linears]
    named = options.targets is not None or bool(touched)
    if touched and options.targets is None:
        needed = layers_like(list(places.layers), touched, places.prefix)
        wanted = {path: kinds | factors for path, kinds in needed.items()}
    elif factors:
        wanted = dict.fromkeys(chosen_layers(list(places.layers), options.targets), factors)
    elif options.targets is not None:
        raise BuildError(
            _HEADLINE,
            Problem(
                Code.BAD_INPUT,
                "--targets",
                got=f"{options.targets!r}, and --slots {','.join(asked) or 'none'}",
                expected=f"one of {', '.join(LINEAR_KINDS)} among the --slots",
                cause="targets are linear layers, and none is to get a slot",
            ),
        )
    else:
        return {}, ()
    left_out = tuple(path for path in wanted if not places.layers[path])
    if left_out and named:
        raise BuildError(
            _HEADLINE,
            [
                Problem(
                    Code.UNSUPPORTED,
                    path,
                    got="an input without the batch first",
                    expected="rows that belong to one tenant each",
                    cause="the model mixes the rows of a batch before this layer",
                    mend="leave it out of --targets",
                )
                for path in left_out
            ],
        )
    return {path: kinds for path, kinds in wanted.items() if places.layers[path]}, left_out


def _limit(option: str, what: str, asked: int | None, found: list[int], default: int) -> int:
    widest = max(found, default=0)
    if asked is not None and asked < widest:
        raise BuildError(
            _HEADLINE,
            Problem(
                Code.RANK_ABOVE_MAX,
                "--like",
                got=f"{what} {widest}",
                expected=f"at most {option} {asked}",
                mend=f"give {option} {widest}",
            ),
        )
    return asked or widest or default


def _bottlenecks(
    places: Places, options: BuildOptions, asked: Iterable[str], like: list[NeutralAdapter]
) -> BottleneckOptions | None:
    styles = [adapter.style for adapter in like if adapter.style is not None]
    if "bottleneck" not in asked and not styles:
        return None
    if not places.ends:
        raise BuildError(
            _HEADLINE,
            _early("bottleneck")
            if not places.marked
            else Problem(
                Code.UNSUPPORTED,
                "--slots bottleneck",
                got=f"a model of type {places.model_type}",
                expected="a family whose blocks are known to add a sub-block's output to its input",
                cause="no rule for this family, or a block of another shape",
                mend="add a BottleneckRule to the family's file in adexport/architectures",
            ),
        )
    forms: list[BottleneckForm] = [style.form for style in styles]
    activations = [style.activation for style in styles]
    presets = (
        [FORMS[name] for name in options.bottlenecks or DEFAULT_FORMS]
        if options.bottlenecks or not styles
        else []
    )
    forms += [preset.form for preset in presets]
    if options.activations or not styles:
        activations += options.activations or DEFAULT_ACTIVATIONS
    locations = {location for preset in presets for location in preset.locations}
    there = {key for adapter in like for key in adapter.bottlenecks}
    there |= {place for place in places.ends.values() if place[1] in locations}
    if there:
        strange = there - set(places.ends.values())
        if strange:
            raise BuildError(
                _HEADLINE,
                [
                    Problem(
                        Code.UNKNOWN_SITE,
                        f"layer {layer}, {location}",
                        got="a bottleneck where the model has no place for one",
                        cause="--like names an adapter of another base",
                    )
                    for layer, location in sorted(strange)
                ],
            )
    sites = tuple(path for path, place in places.ends.items() if place in there)
    return BottleneckOptions(with_neutral(forms), tuple(dict.fromkeys(activations)), sites)


def _early(kind: str) -> Problem:
    return Problem(
        Code.VERSION,
        f"--slots {kind}",
        got=f"a trace without places for a {kind}",
        expected="a trace of a bundle that was built as format version 2",
        cause="the bundle was traced by an earlier adexport",
        mend="build the bundle again from its model",
    )


def _head(
    places: Places, options: BuildOptions, asked: Iterable[str], like: list[NeutralAdapter]
) -> HeadOptions | None:
    heads = [adapter for adapter in like if _has_head(adapter)]
    if "head" not in asked and not heads:
        return None
    if not places.head:
        raise BuildError(
            _HEADLINE,
            _early("head")
            if not places.marked
            else Problem(
                Code.UNSUPPORTED,
                "--slots head",
                got="a model that was traced without a place for heads",
                expected="a classification task",
                mend="adexport build MODEL --task text-classification (or token-classification, …)",
            ),
        )
    found = [a.head.style.activation for a in heads if a.head and a.head.style.activation is not None]
    activations = dict.fromkeys((*(options.activations or HEAD_ACTIVATIONS), *found))
    return HeadOptions(tuple(activations))
