"""Whether the factors of an adapter fit a slot: shapes, sizes and values."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

import numpy as np

from . import dtypes
from .errors import Code, Problem
from .manifest import HEAD_TASKS, Manifest
from .slots import Bottlenecks, BottleneckStyle, Head, HeadStyle, SlotInput
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
    problems = _linear_problems(left, called, manifest)
    problems += _bottleneck_problems(left, called, bottleneck, manifest)
    problems += _head_problems(left, called, head, manifest)
    return problems + [
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


def no_kind(kind: str, subject: str, manifest: Manifest, task: str = "text-classification") -> Problem:
    """What an adapter brings where the bundle has no slots of that kind; ``task`` is a head's."""
    slots = ",".join(dict.fromkeys((*manifest.slots, kind)))
    headless = kind == "head" and manifest.base.task not in HEAD_TASKS
    again = f"MODEL --task {task}" if headless else "BUNDLE"
    return Problem(
        Code.NO_SLOT,
        subject,
        got=f"a {kind} of the adapter's own",
        expected=f"what the bundle has slots for: {', '.join(manifest.slots) or 'nothing'}",
        cause=f"the bundle was built without {kind} slots",
        mend=f"adexport build {again} --slots {slots}",
    )


def _linear_problems(
    left: dict[str, Array], called: Mapping[str, str], manifest: Manifest
) -> list[Problem]:
    """Of the linear sites; what has a slot there is taken out of ``left``."""
    problems = []
    rank = _Limit("rank", manifest.limits.max_rank, "--max-rank")
    for site in manifest.sites:
        slots = site.linear.factors
        found = _take(left, slots)
        halves = [name for name in ("lora_A", "lora_B") if name in found]
        if len(halves) == 1:
            problems.append(_half(site.path, slots[halves[0]].name, ("lora_A", "lora_B"), slots))
        else:
            problems += _slot_problems(site.path, slots, found, _names(slots, called), manifest, rank)
    return problems


def _bottleneck_problems(
    left: dict[str, Array], called: Mapping[str, str], style: BottleneckStyle | None, manifest: Manifest
) -> list[Problem]:
    """Of the bottleneck sites; what has a slot there is taken out of ``left``."""
    if manifest.bottlenecks is None:
        return [] if style is None else [no_kind("bottleneck", "bottleneck", manifest)]
    problems = []
    width = _Limit("width", manifest.limits.max_width, "--max-width")
    served = style is not None and manifest.bottlenecks.code(style) is not None
    there = False
    for site in manifest.bottlenecks.sites:
        slots = site.slot.factors
        found = _take(left, slots)
        if style is not None and not served:
            # its norms may have no slot: they are no strays, the form is refused as a whole
            for norm in set(style.form.norms) - slots.keys():
                left.pop(site.slot.down.name.removesuffix("down") + norm, None)
        if found:
            there = True
            problems += _slot_problems(site.path, slots, found, _names(slots, called), manifest, width)
            if style is not None and served:
                problems += _whole(site.path, style.form.factors, found)
    if style is not None and not served:
        problems.append(_strange_bottleneck(style, manifest.bottlenecks))
    elif there == (style is None):
        problems.append(_unmatched("bottleneck", said=style is not None))
    return problems


def _head_problems(
    left: dict[str, Array], called: Mapping[str, str], style: HeadStyle | None, manifest: Manifest
) -> list[Problem]:
    """Of the head; what has a slot there is taken out of ``left``."""
    head = manifest.head
    if head is None:
        return [] if style is None else [no_kind("head", "head", manifest, _task(style))]
    slots = head.slot.factors
    found = _take(left, slots)
    problems = _slot_problems("the head", slots, found, _names(slots, called), manifest)
    if bool(found) == (style is None):
        problems.append(_unmatched("head", said=style is not None))
    elif style is not None:
        problems += _whole("the head", style.factors, found) + _label_problems(style, found)
        if head.code(style) is None:
            problems.append(_strange_head(style, head, manifest))
    return problems


def _unmatched(kind: str, *, said: bool) -> Problem:
    """Tensors without the metadata that say what they are, or such metadata without tensors."""
    return Problem(
        Code.BAD_CONFIG,
        kind,
        got=f"a {kind} in the metadata, and no tensors of it"
        if said
        else "tensors, and nothing that says what they are",
        expected=f"both, the tensors and {kind} in the metadata",
        cause="an edited file",
        mend="bind the original adapter again",
    )


def _strange_bottleneck(style: BottleneckStyle, slots: Bottlenecks) -> Problem:
    """A form or an activation that the bundle's graph does not have."""
    forms = " or ".join(form.brief for form in slots.forms)
    return Problem(
        Code.NO_SLOT,
        "bottleneck",
        got=f"{style.form.brief} with {style.activation}",
        expected=f"{forms} with {', '.join(slots.activations)}",
        cause="the bundle was built for other bottlenecks",
        mend="adexport build BUNDLE --like ADAPTER (repeat it for every kind), or --bottlenecks "
        "and --activations",
    )


def _strange_head(style: HeadStyle, head: Head, manifest: Manifest) -> Problem:
    """A head on what the bundle's graph does not offer, or with an activation that it does not have."""
    activation = f" with {style.activation}" if style.activation is not None else ""
    cause = "the bundle was built for other heads"
    mend = "adexport build BUNDLE --like ADAPTER (repeat it for every kind), or --activations"
    if style.feature not in head.inputs and _task(style) == manifest.base.task:
        cause = "the base has no such output"
        mend = f"train the head on {' or '.join(head.inputs)}"
    elif style.feature not in head.inputs:
        cause = "the head is of another task"
        mend = f"adexport build MODEL --task {_task(style)} --slots {','.join(manifest.slots)}"
    return Problem(
        Code.NO_SLOT,
        "head",
        got=f"a head on {style.feature}{activation}",
        expected=f"on {' or '.join(head.inputs)} with {', '.join(head.activations)}",
        cause=cause,
        mend=mend,
    )


def _task(style: HeadStyle) -> str:
    """The task of the bundles that take such a head."""
    return "token-classification" if style.feature == "tokens" else "text-classification"


def _label_problems(style: HeadStyle, found: Mapping[str, Array]) -> list[Problem]:
    """Names for another number of labels than the tensors have."""
    bias = found.get("out_bias")
    if bias is None or bias.ndim != 1 or bias.size == len(style.labels):
        return []
    return [
        Problem(
            Code.BAD_CONFIG,
            "labels",
            got=f"{len(style.labels)} names",
            expected=f"{bias.size}, as the head's tensors have",
            cause="the config of another head",
            mend="put the config beside the head that it was saved with",
        )
    ]


def _take(left: dict[str, Array], slots: Mapping[str, SlotInput]) -> dict[str, Array]:
    """The factors of one slot, taken out of what is left; codes are no adapter's to bring."""
    return {
        factor: left.pop(slot.name)
        for factor, slot in slots.items()
        if slot.name in left and slot.dtype != "int64"
    }


def _names(slots: Mapping[str, SlotInput], called: Mapping[str, str]) -> dict[str, str]:
    return {factor: called.get(slot.name, slot.name) for factor, slot in slots.items()}


def _half(where: str, got: str, expected: tuple[str, ...], slots: Mapping[str, SlotInput]) -> Problem:
    return Problem(
        Code.HALF_MISSING,
        where,
        got=f"{got} only",
        expected=" and ".join(slots[name].name for name in expected),
        cause="an edited file",
        mend="bind the original adapter again",
    )


def _whole(where: str, needed: Set[str], found: Mapping[str, Array]) -> list[Problem]:
    """A bottleneck or a head has the factors of its style, no more and no fewer."""
    if needed == found.keys():
        return []
    return [
        Problem(
            Code.HALF_MISSING if needed - found.keys() else Code.BAD_CONFIG,
            where,
            got=", ".join(found),
            expected=", ".join(sorted(needed)),
            cause="an edited file: its tensors are not what its metadata say",
            mend="bind the original adapter again",
        )
    ]


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
        problems += _value_problems(name, tensor, slots[factor], manifest)
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


def _value_problems(name: str, tensor: Array, slot: SlotInput, manifest: Manifest) -> list[Problem]:
    """NaN, Inf, and what would become Inf in the slot's element type."""
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
    dtype, option = (
        (manifest.base.dtype, "--dtype") if slot.dtype == "float" else (slot.dtype, "--bank-dtype")
    )
    if largest > dtypes.largest(dtype):
        return [
            Problem(
                Code.OVERFLOW,
                name,
                got=f"{largest:.6g} after scaling",
                expected=f"at most {dtypes.largest(dtype):.6g} ({dtype})",
                cause="the element type of the bundle is too small for these values",
                mend=f"adexport build BUNDLE {option} bf16 (or fp32)",
            )
        ]
    return []
