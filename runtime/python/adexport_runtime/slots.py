"""The slots of a bundle: which weights an adapter may bring, and the graph inputs that carry them.

Linear slot, at a linear layer (every factor is optional, chosen when the bundle is built)::

    y' = scale_out * (W (scale_in * x) + b + (x lora_A) lora_B) + bias

Bottleneck slot, where a block adds a sub-block's output ``h`` to its input ``x`` (Houlsby et al.,
arXiv:1902.00751; Pfeiffer et al., arXiv:2005.00247; the forms are those of the ``adapters``
library)::

    A(z) = act(z down + down_bias) up + up_bias

Head slot, behind the last hidden state ``x`` of a row (or of each of its tokens)::

    logits = act(x dense + dense_bias) deep + x out + out_bias

Matrices lie ``[in, out]``, as a row-major ``x`` multiplies them; scalings are folded into the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal, get_args

from .schema import Integer, Positive, Schema, Text

SlotKind = Literal["lora", "bias", "scale", "bottleneck", "head"]
Activation = Literal["relu", "gelu", "gelu_new", "silu", "tanh", "linear"]
Location = Literal["mh", "output"]
#: element types of slot inputs that differ from the bundle's own
BankDtype = Literal["fp16", "bf16"]
Feature = Literal["first", "pooler", "last", "tokens"]


class SlotInput(Schema):
    """A graph input that carries one factor of a slot; ``shape`` starts with the bank's rows.

    ``identity`` is what a row without an adapter holds. ``dtype`` ``float`` means the bundle's own;
    ``fp16`` and ``bf16`` stand under a float32 base.
    """

    name: Text
    shape: tuple[Text | Positive, ...]
    identity: Literal["zeros", "ones"] = "zeros"
    dtype: Literal["float", "int64", "fp16", "bf16"] = "float"


class _Slot(Schema):
    """A slot whose fields of type :class:`SlotInput` are its factors."""

    def _faults(self, expected: Mapping[str, tuple[str | int, ...]]) -> list[str]:
        """Factors whose shape is not ``[rows, *expected]``; one name stands for one size.

        Lone numbers (codes, guards) are integers, and the identity of scales is one: no other factors
        are so.
        """
        wrong = []
        sizes: dict[str, str | int] = {}
        for name, factor in self.factors.items():
            wanted = expected[name]
            dtypes = ("float", *get_args(BankDtype)) if wanted else ("int64",)
            identity = "ones" if name.startswith("scale") else "zeros"
            if factor.dtype not in dtypes or factor.identity != identity:
                wrong.append(f"{factor.name} must be {dtypes[0]} with {identity} for the identity")
            got = factor.shape[1:]
            same = len(got) == len(wanted) and all(
                size == (want if isinstance(want, int) else sizes.setdefault(want, size))
                for size, want in zip(got, wanted, strict=True)
            )
            if not same or not factor.shape:
                shape = ", ".join(str(size) for size in ("rows", *wanted))
                wrong.append(f"{factor.name} must be [{shape}]")
        return wrong

    @cached_property
    def factors(self) -> Mapping[str, SlotInput]:
        """The factors that the slot has, by name, in the order of the graph's inputs."""
        values = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: value for name, value in values if isinstance(value, SlotInput)}


class LinearSlot(_Slot):
    """The factors of a linear layer's slot.

    ``lora_A`` ``[rows, in, rank]`` and ``lora_B`` ``[rows, rank, out]``; ``bias`` and ``scale_out``
    ``[rows, out]``, ``scale_in`` ``[rows, in]``.
    """

    lora_A: SlotInput | None = None
    lora_B: SlotInput | None = None
    bias: SlotInput | None = None
    scale_in: SlotInput | None = None
    scale_out: SlotInput | None = None

    def shape_faults(self, into: int, out: int) -> list[str]:
        """Factors that do not fit a layer of ``into`` and ``out`` features."""
        return self._faults(
            {
                "lora_A": (into, "rank"),
                "lora_B": ("rank", out),
                "bias": (out,),
                "scale_in": (into,),
                "scale_out": (out,),
            }
        )


class Guards(_Slot):
    """``[rows]`` int64: 1 where the row's adapter has anything for slots of a kind, else 0.

    A graph skips the slots of a kind of which no row of the batch has anything.
    """

    linear: SlotInput | None = None
    bottleneck: SlotInput | None = None

    def faults(self) -> list[str]:
        """Guards of another shape."""
        return self._faults({"linear": (), "bottleneck": ()})


class Site(Schema):
    """A linear layer where an adapter acts; ``weight`` and ``bias`` name the frozen ones it wraps."""

    path: Text
    weight: Text
    bias: Text | None = None
    in_features: Positive
    out_features: Positive
    linear: LinearSlot

    def faults(self) -> list[str]:
        """What in the slot contradicts the layer."""
        slot = self.linear
        wrong = slot.shape_faults(self.in_features, self.out_features)
        if (slot.lora_A is None) != (slot.lora_B is None):
            wrong.append(f"{self.path} must have lora_A and lora_B, or neither")
        if not slot.factors:
            wrong.append(f"{self.path} must have a factor")
        return wrong


_NORM_BEFORE = ("norm_before_weight", "norm_before_bias")
_NORM_AFTER = ("norm_after_weight", "norm_after_bias")


class BottleneckForm(Schema):
    """Where a bottleneck takes its input and how its output joins the block.

    With ``h`` the sub-block's output, ``x`` the block's input and ``norm`` the block's own LayerNorm
    behind the addition (identity where a block has none)::

        z = h | norm(h + x) | x                     input: hidden | normed | residual
        u = A(norm_before(z) if norm_before else z)
        r = h | z | h + x                           skip: hidden | input | sum
        o = u + r | norm_after(u + r) | norm_after(u) + r       norm_after: none | sum | update
        y = norm(o + x) if close else o
    """

    input: Literal["hidden", "normed", "residual"] = "hidden"
    skip: Literal["hidden", "input", "sum"] = "hidden"
    close: bool = True
    norm_before: bool = False
    norm_after: Literal["none", "sum", "update"] = "none"

    @property
    def norms(self) -> tuple[str, ...]:
        """The factors of a bottleneck's own norms."""
        before, after = self.norm_before, self.norm_after != "none"
        return (_NORM_BEFORE if before else ()) + (_NORM_AFTER if after else ())

    @property
    def factors(self) -> frozenset[str]:
        """All the factors of a bottleneck of this form."""
        return frozenset({"down", "down_bias", "up", "up_bias", *self.norms})

    @property
    def brief(self) -> str:
        """What differs from the plainest form, for people."""
        plain = BottleneckForm().model_dump()
        differs = [f"{key}={value}" for key, value in self.model_dump().items() if value != plain[key]]
        return f"({', '.join(differs) or 'plain'})"

    @property
    def neutral(self) -> bool:
        """Whether zero weights leave the base as it is."""
        if self.norm_after != "none":
            return False
        if self.close:
            return self.skip == "hidden" or (self.skip, self.input) == ("input", "hidden")
        return (self.skip, self.input) == ("input", "normed")


class BottleneckStyle(Schema):
    """What an adapter's bottlenecks are, all of them alike: their form and their activation."""

    form: BottleneckForm
    activation: Activation


class BottleneckSlot(_Slot):
    """``down`` ``[rows, features, width]``, ``up`` ``[rows, width, features]``, and their biases.

    The norms are there if a form of the bundle has them; ``code`` ``[rows]`` int64 picks a form and an
    activation, ``form * len(activations) + activation``, and is there if there is anything to pick.
    """

    down: SlotInput
    down_bias: SlotInput
    up: SlotInput
    up_bias: SlotInput
    norm_before_weight: SlotInput | None = None
    norm_before_bias: SlotInput | None = None
    norm_after_weight: SlotInput | None = None
    norm_after_bias: SlotInput | None = None
    code: SlotInput | None = None

    def shape_faults(self, features: int) -> list[str]:
        """Factors that do not fit a site of ``features``."""
        norms = (*_NORM_BEFORE, *_NORM_AFTER)
        return self._faults(
            {
                "down": (features, "width"),
                "down_bias": ("width",),
                "up": ("width", features),
                "up_bias": (features,),
                "code": (),
                **dict.fromkeys(norms, (features,)),
            }
        )


class BottleneckSite(Schema):
    """A place for a bottleneck: behind the layer ``path``, whose output is added to the block's input.

    ``layer`` counts the blocks from 0; ``location`` is ``mh`` behind the attention, ``output`` behind
    the feed-forward part. ``normed``: a LayerNorm of the block follows the addition.
    """

    path: Text
    layer: Integer
    location: Location
    features: Positive
    normed: bool
    slot: BottleneckSlot


class Bottlenecks(Schema):
    """All bottleneck sites, and the forms and activations that they take; code 0 is neutral."""

    forms: tuple[BottleneckForm, ...]
    activations: tuple[Activation, ...]
    sites: tuple[BottleneckSite, ...]

    def code(self, style: BottleneckStyle) -> int | None:
        """The code of a style; None if the bundle does not take it."""
        if style.form not in self.forms or style.activation not in self.activations:
            return None
        return self.forms.index(style.form) * len(self.activations) + self.activations.index(
            style.activation
        )

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return len(self.forms) * len(self.activations)

    def faults(self) -> list[str]:
        """What in the sites contradicts the forms."""
        if not self.forms or not self.activations or not self.sites:
            return ["bottlenecks must have forms, activations and sites"]
        wrong = [] if self.forms[0].neutral else ["the first form of the bottlenecks must be neutral"]
        for listed in (self.forms, self.activations, [(s.layer, s.location) for s in self.sites]):
            if len(set(listed)) != len(listed):
                wrong.append("a form, an activation or a place of the bottlenecks is listed twice")
        norms = {name for form in self.forms for name in form.norms}
        for site in self.sites:
            wrong += site.slot.shape_faults(site.features)
            if norms != {name for name in site.slot.factors if name.startswith("norm_")}:
                wrong.append(f"{site.path} must have the norms of the forms and no others")
            if self.codes > 1 and site.slot.code is None:
                wrong.append(f"{site.path} must have a code: there are {self.codes} to pick from")
        return wrong


class HeadStyle(Schema):
    """What an adapter's head is: what it reads, the activation between two layers, its labels.

    ``activation`` is None for a head of one layer.
    """

    feature: Feature
    activation: Activation | None
    labels: tuple[Text, ...]

    @property
    def factors(self) -> frozenset[str]:
        """All the factors of such a head."""
        layers = ("out",) if self.activation is None else ("dense", "dense_bias", "deep")
        return frozenset({*layers, "out_bias"})


class HeadSlot(_Slot):
    """The factors of a head: one layer is ``out``, two are ``dense`` and ``deep``.

    ``dense`` ``[rows, features, mid]``, ``dense_bias`` ``[rows, mid]``, ``deep`` ``[rows, mid, labels]``,
    ``out`` ``[rows, features, labels]``, ``out_bias`` ``[rows, labels]``. ``code`` ``[rows]`` int64 picks:
    0, no head of the adapter's own (the base's, if there is one), else
    ``1 + feature * len(activations) + activation``.
    """

    dense: SlotInput
    dense_bias: SlotInput
    deep: SlotInput
    out: SlotInput
    out_bias: SlotInput
    code: SlotInput

    def shape_faults(self, features: int) -> list[str]:
        """Factors that do not fit a head behind ``features``."""
        return self._faults(
            {
                "dense": (features, "mid"),
                "dense_bias": ("mid",),
                "deep": ("mid", "labels"),
                "out": (features, "labels"),
                "out_bias": ("labels",),
                "code": (),
            }
        )


class OwnHead(Schema):
    """How a head of the base's own family reads, so that a replaced layer finds its place.

    ``out`` is the path of the last linear layer, ``dense`` of the one before it, if there is one;
    ``biased`` says whether the last one has a bias.
    """

    feature: Feature
    out: Text
    dense: Text | None = None
    activation: Activation | None = None
    biased: bool = True


class Head(Schema):
    """The head slot of a bundle; ``own`` is None where the family's own head has another shape."""

    features: Positive
    inputs: tuple[Feature, ...]
    activations: tuple[Activation, ...]
    own: OwnHead | None
    slot: HeadSlot

    def code(self, style: HeadStyle) -> int | None:
        """The code of a style; None if the bundle does not take it."""
        if style.feature not in self.inputs or style.activation not in (None, *self.activations):
            return None
        feature = self.inputs.index(style.feature)
        activation = 0 if style.activation is None else self.activations.index(style.activation)
        return 1 + feature * len(self.activations) + activation

    def faults(self) -> list[str]:
        """What in the slot contradicts the head."""
        if not self.inputs or not self.activations:
            return ["a head must have inputs and activations"]
        return self.slot.shape_faults(self.features)
