"""Whether the factors of an adapter fit a slot: shapes, sizes and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from . import dtypes
from .errors import Code, Problem
from .manifest import Manifest
from .slots import BottleneckForm, BottleneckStyle, HeadStyle, SlotInput
from .tensors import Array


class _Limit(NamedTuple):
    """The largest size that a bundle takes, under the name that the size has in a slot's shapes."""

    what: str
    largest: int | None
    option: str


def fit_problems(
    tensors: Mapping[str, Array],
    bottleneck: BottleneckStyle | None,
    head: HeadStyle | None,
    manifest: Manifest,
    names: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Everything that keeps an adapter off the slots of a bundle.

    Args:
        tensors: by slot input, without the dimension of rows.
        bottleneck: what its bottlenecks are, if it has any.
        head: what its head is, if it has one.
        manifest: of the bundle.
        names: what the tensors are called in the file they came from, where it is not so.
    """
    left = dict(tensors)
    called = names or {}
    problems: list[Problem] = []
    styled: set[str] = set()
    limits = manifest.limits
    rank = _Limit("rank", limits.max_rank, "--max-rank")
    for site in manifest.sites:
        slots = site.linear.factors
        found = _take(left, slots)
        halves = [name for name in ("lora_A", "lora_B") if name in found]
        if len(halves) == 1:
            problems.append(_half(site.path, slots[halves[0]].name, ("lora_A", "lora_B"), slots))
        else:
            problems += _slot_problems(site.path, slots, found, _names(slots, called), manifest, rank)
    width = _Limit("width", limits.max_width, "--max-width")
    for place in manifest.bottlenecks.sites if manifest.bottlenecks else ():
        slots = place.slot.factors
        found = _take(left, slots)
        if found:
            styled |= {"bottleneck"}
            problems += _absent(place.path, _bottleneck_factors(bottleneck), found, slots)
            problems += _slot_problems(place.path, slots, found, _names(slots, called), manifest, width)
    if manifest.head is not None:
        slots = manifest.head.slot.factors
        if found := _take(left, slots):
            styled |= {"head"}
            problems += _slot_problems("the head", slots, found, _names(slots, called), manifest)
            if "out_bias" not in found:
                problems += _absent("the head", ("out_bias",), found, slots)
    problems += [
        Problem(
            Code.BAD_CONFIG,
            key,
            got="tensors, and nothing that says what they are",
            expected=f"{key} in the metadata",
            cause="an edited file",
            mend="bind the original adapter again",
        )
        for key, style in (("bottleneck", bottleneck), ("head", head))
        if key in styled and style is None
    ]
    problems += _style_problems(bottleneck, head, manifest)
    problems += [
        Problem(
            Code.UNKNOWN_SITE,
            name,
            got="a tensor without a slot here",
            expected="slot inputs of the bundle",
            cause="the bundle was built for other targets or slots than the one it was bound for",
            mend="adexport build BUNDLE with --targets and --slots that cover it",
        )
        for name in left
    ]
    return problems


def _style_problems(
    bottleneck: BottleneckStyle | None, head: HeadStyle | None, manifest: Manifest
) -> list[Problem]:
    """Forms and activations that the bundle's graph does not have."""
    problems = []
    slots = manifest.bottlenecks
    if bottleneck is not None and slots is not None and slots.code(bottleneck) is None:
        problems.append(
            Problem(
                Code.NO_SLOT,
                "bottleneck",
                got=f"{_brief(bottleneck.form)} with {bottleneck.activation}",
                expected=f"{' or '.join(_brief(form) for form in slots.forms)} with "
                + ", ".join(slots.activations),
                cause="the bundle was built for other bottlenecks",
                mend="adexport build BUNDLE --like ADAPTER (repeat it for every kind), or --bottlenecks "
                "and --activations",
            )
        )
    if head is not None and manifest.head is not None and manifest.head.code(head) is None:
        problems.append(
            Problem(
                Code.NO_SLOT,
                "head",
                got=f"a head on {head.feature} with {head.activation}",
                expected=f"on {', '.join(manifest.head.inputs)} "
                f"with {', '.join(manifest.head.activations)}",
                cause="the base has no such output, or the bundle was built for other heads",
                mend="adexport build BUNDLE with --activations that cover it",
            )
        )
    return problems


def _brief(form: BottleneckForm) -> str:
    """A form by what differs from the plainest one."""
    plain = BottleneckForm()
    differs = [
        f"{name}={value}" for name, value in form.model_dump().items() if value != getattr(plain, name)
    ]
    return "(" + (", ".join(differs) or "plain") + ")"


def _bottleneck_factors(style: BottleneckStyle | None) -> tuple[str, ...]:
    names = ["down", "down_bias", "up", "up_bias"]
    if style is not None and style.form.norm_before:
        names += ["norm_before_weight", "norm_before_bias"]
    if style is not None and style.form.norm_after != "none":
        names += ["norm_after_weight", "norm_after_bias"]
    return tuple(names)


def _take(left: dict[str, Array], slots: Mapping[str, SlotInput]) -> dict[str, Array]:
    """The factors of one slot, taken out of what is left; codes are no adapter's to bring."""
    return {
        factor: left.pop(slot.name)
        for factor, slot in slots.items()
        if slot.name in left and slot.dtype == "float"
    }


def _names(slots: Mapping[str, SlotInput], called: Mapping[str, str]) -> dict[str, str]:
    return {factor: called.get(slot.name, slot.name) for factor, slot in slots.items()}


def _half(where: str, got: str, expected: tuple[str, ...], slots: Mapping[str, SlotInput]) -> Problem:
    return Problem(
        Code.HALF_MISSING,
        where,
        got=f"{got} only",
        expected=" and ".join(slots[name].name if name in slots else name for name in expected),
        cause="an edited file",
        mend="bind the original adapter again",
    )


def _absent(
    where: str, needed: tuple[str, ...], found: Mapping[str, Array], slots: Mapping[str, SlotInput]
) -> list[Problem]:
    if all(name in found for name in needed):
        return []
    return [_half(where, ", ".join(slots[name].name for name in found), needed, slots)]


def _slot_problems(
    where: str,
    slots: Mapping[str, SlotInput],
    factors: Mapping[str, Array],
    names: Mapping[str, str],
    manifest: Manifest,
    limit: _Limit | None = None,
) -> list[Problem]:
    """Everything that keeps factors off a slot.

    Args:
        where: the site, for messages.
        slots: the slot's inputs by factor; it has all that ``factors`` has.
        factors: arrays without the dimension of rows.
        names: what each factor is called in the file it came from.
        manifest: of the bundle.
        limit: on the one ragged size of the slot, if there is any.
    """
    problems = []
    ragged: dict[str, int] = {}
    for factor, tensor in factors.items():
        declared = slots[factor].shape[1:]
        name = names.get(factor, f"{where}.{factor}")
        if tensor.ndim != len(declared):
            problems.append(_wrong_shape(name, f"shape {list(tensor.shape)}", _text(declared), manifest))
            continue
        for size, expected in zip(tensor.shape, declared, strict=True):
            if isinstance(expected, int):
                if size != expected:
                    problems.append(_wrong_shape(name, f"{size} features", str(expected), manifest))
            elif ragged.setdefault(expected, size) != size:
                problems.append(
                    Problem(
                        Code.WRONG_SHAPE,
                        where,
                        got=f"{size} in {name}, {ragged[expected]} elsewhere",
                        expected="one size",
                        cause="an edited file",
                        mend="save or bind the original adapter again",
                    )
                )
        problems += _value_problems(name, tensor, manifest)
    widest = max(ragged.values(), default=0)
    if limit is not None and limit.largest is not None and widest > limit.largest:
        problems.append(
            Problem(
                Code.RANK_ABOVE_MAX,
                where,
                got=f"{limit.what} {widest}",
                expected=f"at most {limit.largest}",
                cause="the bundle was built for smaller adapters",
                mend=f"adexport build BUNDLE with a larger {limit.option}",
            )
        )
    return problems


def _text(declared: tuple[str | int, ...]) -> str:
    return f"[{', '.join(str(size).rpartition('.')[2] for size in declared)}]"


def _wrong_shape(name: str, got: str, expected: str, manifest: Manifest) -> Problem:
    return Problem(
        Code.WRONG_SHAPE,
        name,
        got=got,
        expected=expected,
        cause=f"trained on another base than {manifest.base.name}",
        mend="bind it to a bundle of its own base",
    )


def _value_problems(name: str, tensor: Array, manifest: Manifest) -> list[Problem]:
    """NaN, Inf, and what would become Inf in the bundle's element type."""
    largest = float(np.abs(tensor).max())
    if not np.isfinite(largest):
        count = int(tensor.size - np.isfinite(tensor).sum())
        return [
            Problem(
                Code.NOT_FINITE,
                name,
                got=f"{count} NaN or Inf of {tensor.size} values (scaling included)",
                expected="finite values",
                cause="training diverged, or a damaged file",
                mend="train it again, or copy it again",
            )
        ]
    if largest > dtypes.largest(manifest.base.dtype):
        return [
            Problem(
                Code.OVERFLOW,
                name,
                got=f"{largest:.6g} after scaling",
                expected=f"at most {dtypes.largest(manifest.base.dtype):.6g} ({manifest.base.dtype})",
                cause="the element type of the bundle is too small for these values",
                mend="adexport build BUNDLE --dtype bf16 (or fp32)",
            )
        ]
    return []
