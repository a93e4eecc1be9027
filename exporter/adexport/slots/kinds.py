"""What ``--slots``, ``--bottlenecks`` and ``--activations`` name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, get_args

from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.slots import Activation, BottleneckForm, Location, SlotKind

LORA = frozenset({"lora_A", "lora_B"})
#: every factor of a linear slot
FACTORS = LORA | {"bias", "scale_in", "scale_out"}

KINDS: tuple[SlotKind, ...] = get_args(SlotKind)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

#: kind of slot -> the factors of a linear slot that it brings
LINEAR_KINDS: Mapping[str, frozenset[str]] = {
    "lora": LORA,
    "bias": frozenset({"bias"}),
    "scale": frozenset({"scale_in", "scale_out"}),
}


class Preset(NamedTuple):
    """A kind of bottleneck by its name: its form, and where in a block it stands."""

    form: BottleneckForm
    locations: tuple[Location, ...] = ("output",)


#: the names that the adapters library gives to common kinds
FORMS: Mapping[str, Preset] = {
    "double_seq_bn": Preset(BottleneckForm(), ("mh", "output")),
    "seq_bn": Preset(BottleneckForm(input="normed")),
    "par_bn": Preset(BottleneckForm(input="residual")),
    "adapter_plus": Preset(BottleneckForm(input="normed", skip="input", close=False)),
}

DEFAULT_SLOTS: tuple[SlotKind, ...] = ("lora",)
DEFAULT_FORMS = ("double_seq_bn", "seq_bn")
#: of those forms, and of the classification heads of the adapters library
DEFAULT_ACTIVATIONS: tuple[Activation, ...] = ("relu", "silu")
HEAD_ACTIVATIONS: tuple[Activation, ...] = ("tanh", "relu", "gelu")
DEFAULT_MAX_WIDTH = 64


def check_kinds(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that nothing is called.

    Raises:
        BuildError: naming them all.
    """
    known = tuple(known)
    problems = [
        Problem(Code.BAD_INPUT, option, got=repr(name), expected=", ".join(known))
        for name in given
        if name not in known
    ]
    if problems:
        raise BuildError("no slots can be made", problems)


def linear_factors(slots: Iterable[str]) -> frozenset[str]:
    """The factors that kinds of slots give to a linear layer."""
    return frozenset().union(*(LINEAR_KINDS.get(kind, frozenset()) for kind in slots))


def kinds_of(factors: Iterable[str]) -> tuple[SlotKind, ...]:
    """The kinds of slots that some factors of linear slots amount to."""
    there = frozenset(factors)
    assert there <= FACTORS
    return tuple(kind for kind in KINDS if LINEAR_KINDS.get(kind, frozenset()) & there)


def with_neutral(forms: Iterable[BottleneckForm]) -> tuple[BottleneckForm, ...]:
    """Forms with a neutral one first: a row without an adapter takes that."""
    once = tuple(dict.fromkeys(forms))
    neutral = next((form for form in once if form.neutral), BottleneckForm())
    return (neutral, *(form for form in once if form != neutral))
