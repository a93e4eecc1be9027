"""The bundle's contract, declared once: ``manifest.json`` as frozen, fully validated models.

``runtime/FORMAT.md`` says the same in prose. A key that is not declared here is refused: a
reader that skipped it could serve something other than what was built.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Final, Literal, cast, get_args

from pydantic import Field, ValidationError, model_validator

from .caches import Generation
from .errors import BundleError, Code, Problem
from .files import DuplicateKeyError, load_json
from .quantization import Quantization
from .schema import Integer, Natural, Positive, Schema, Text, violations
from .slots import (
    BankDtype,
    Bottlenecks,
    BottleneckSlot,
    Guards,
    Head,
    HeadSlot,
    LinearSlot,
    Site,
    SlotInput,
    SlotKind,
)

__all__ = [
    "FORMAT_VERSION",
    "HEAD_TASKS",
    "Base",
    "File",
    "FrozenWeight",
    "Input",
    "Limits",
    "LinearSlot",
    "Manifest",
    "Output",
    "Site",
    "SlotInput",
    "Tokenizer",
    "parse_manifest",
]

FORMAT_VERSION: Final = 4
#: earlier versions had nothing that version 4 does not have
READABLE_VERSIONS = (1, 2, 3, 4)

Dtype = Literal["fp32", "fp16", "bf16", "int64", "int32"]
FloatDtype = Literal["fp32", "fp16", "bf16"]
Task = Literal[
    "feature-extraction",
    "text-classification",
    "token-classification",
    "image-classification",
    "text-generation",
]
#: tasks whose bundles can have head slots
HEAD_TASKS: Final = ("text-classification", "token-classification", "image-classification")
#: what the rows of slot inputs are: adapters, which ``adapter_ids`` picks; or the batch's own rows
SlotRows = Literal["bank", "batch"]
Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
RelativePath = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")]


class Base(Schema):
    """The frozen model behind the bundle."""

    name: Text
    source: Text
    architecture: Text
    model_type: Text
    prefix: Text
    task: Task
    dtype: FloatDtype
    quantization: Quantization | None = None
    fingerprint: Sha256
    max_positions: Positive | None
    labels: tuple[Text, ...] = ()


class Input(Schema):
    """One input of the model. ``fill`` is the value used when a call leaves the input out."""

    name: Text
    dtype: Dtype
    shape: tuple[Text | Positive, ...]
    low: Integer | None = None
    high: Integer | None = None
    fill: Integer | None = None


class Output(Schema):
    """One output of the model."""

    name: Text
    dtype: Dtype
    shape: tuple[Text | Positive, ...]


class Limits(Schema):
    """What the bundle was built to take."""

    max_rank: Positive
    max_width: Positive | None = None


class FrozenWeight(Schema):
    """Where a frozen float32 weight of the base lies: ``bytes`` from ``offset`` of the file ``path``.

    ``shape`` is as stored; ``transposed`` says that a linear layer's weight is stored ``[in, out]``, and
    ``checkpoint_transposed`` that the base's own checkpoint has it so (GPT-2's Conv1D).
    """

    name: Text
    path: RelativePath
    offset: Natural
    shape: tuple[Natural, ...]
    transposed: bool
    checkpoint_transposed: bool


class Tokenizer(Schema):
    """How to make inputs from text with the bundle's ``tokenizer.json``."""

    file: RelativePath
    pad_id: Natural
    pad_token: str
    max_length: Positive | None


class File(Schema):
    """A file of the bundle, with what it must hold."""

    path: RelativePath
    bytes: Natural
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Schema):
    """Everything a runtime needs to know about a bundle."""

    format_version: Literal[1, 2, 3, 4] = FORMAT_VERSION
    base: Base
    opset: Positive
    slots: tuple[SlotKind, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    adapter_ids: Text | None
    sites: tuple[Site, ...]
    bottlenecks: Bottlenecks | None = None
    head: Head | None = None
    guards: Guards | None = None
    slot_rows: SlotRows = "bank"
    generation: Generation | None = None
    limits: Limits
    modules: tuple[Text, ...]
    weights: tuple[FrozenWeight, ...] = ()
    tokenizer: Tokenizer | None
    files: tuple[File, ...]
    tools: dict[Text, Text]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        wrong = []
        slotted = bool(self.sites) or self.bottlenecks is not None or self.head is not None
        picked = slotted and self.slot_rows == "bank"
        if picked != (self.adapter_ids is not None) or slotted != bool(self.slots):
            wrong.append("sites, slots and adapter_ids must be there together or not at all")
        if (self.slot_rows == "batch") != (slotted and self.generation is not None):
            wrong.append("slot_rows must be batch if and only if there are slots and generation")
        wrong += self._generation_faults() + self._bank_faults()
        for kind, there in self._kinds().items():
            if there != (kind in self.slots):
                wrong.append(f"slots must name {kind} if and only if there are such slots")
        bottlenecks = self.bottlenecks.sites if self.bottlenecks else ()
        for paths in ([site.path for site in self.sites], [site.path for site in bottlenecks]):
            if len(set(paths)) != len(paths):
                wrong.append("a site is listed twice")
        names = [i.name for i in self.inputs] + [i.name for i in self.slot_inputs]
        names += [self.adapter_ids] if self.adapter_ids is not None else []
        names += self.generation.inputs if self.generation is not None else ()
        if len(set(names)) != len(names):
            wrong.append("an input is listed twice")
        for part in (*self.sites, self.bottlenecks, self.head, self.guards, self.generation):
            wrong += part.faults() if part is not None else []
        wrong += self.base.quantization.faults() if self.base.quantization is not None else []
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _generation_faults(self) -> list[str]:
        """What generation needs elsewhere in the manifest and does not find."""
        if self.generation is None:
            return []
        offered = {spec.name: spec for spec in self.inputs}
        faults = {
            "generation belongs to text-generation alone": self.base.task != "text-generation",
            f"generation is not known to version {self.format_version}": self.format_version < 3,
            "generation needs max_positions": self.base.max_positions is None,
            "generation needs the inputs input_ids and attention_mask alone": set(offered)
            != {"input_ids", "attention_mask"},
            "generation needs the high of input_ids": "input_ids" in offered
            and offered["input_ids"].high is None,
            "generation needs the output logits alone": [spec.name for spec in self.outputs] != ["logits"],
        }
        return [fault for fault, there in faults.items() if there]

    def _bank_faults(self) -> list[str]:
        """Slot inputs of a type of their own where there can be none."""
        narrow = [slot.name for slot in self.slot_inputs if slot.dtype in get_args(BankDtype)]
        if not narrow:
            return []
        heads = {slot.name for slot in self.head.slot.factors.values()} if self.head else set()
        faults = {
            f"a dtype of slot inputs is not known to version {self.format_version}": self.format_version
            < 4,
            "slot inputs have a dtype of their own under float32 only": self.base.dtype != "fp32",
            "the head's slot inputs have the dtype of the base": bool(heads & set(narrow)),
        }
        return [fault for fault, there in faults.items() if there]

    def _kinds(self) -> dict[SlotKind, bool]:
        """Which kinds of slots there are."""
        linear = {factor for site in self.sites for factor in site.linear.factors}
        return {
            "lora": "lora_A" in linear,
            "bias": "bias" in linear,
            "scale": bool({"scale_in", "scale_out"} & linear),
            "bottleneck": self.bottlenecks is not None,
            "head": self.head is not None,
        }

    @cached_property
    def slot_inputs(self) -> tuple[SlotInput, ...]:
        """All slot inputs: those of the sites, of the bottleneck sites, of the head, guards."""
        slots: list[LinearSlot | BottleneckSlot | HeadSlot | Guards]
        slots = [site.linear for site in self.sites]
        slots += [site.slot for site in self.bottlenecks.sites] if self.bottlenecks else []
        slots += [self.head.slot] if self.head else []
        slots += [self.guards] if self.guards else []
        return tuple(factor for slot in slots for factor in slot.factors.values())

    @property
    def bank_dtype(self) -> BankDtype | None:
        """The type of slot inputs, where it is not the base's."""
        for dtype in get_args(BankDtype):
            if any(slot.dtype == dtype for slot in self.slot_inputs):
                return cast(BankDtype, dtype)
        return None

    @cached_property
    def site_by_path(self) -> dict[str, Site]:
        """The sites by their module path."""
        return {site.path: site for site in self.sites}

    def to_json(self) -> str:
        """The manifest as it is written to ``manifest.json``."""
        return self.model_dump_json(indent=1) + "\n"


def parse_manifest(text: str | bytes, where: str = "manifest.json") -> Manifest:
    """Validate a whole manifest.

    Raises:
        BundleError: naming every violation, not the first.
    """
    headline = f"{where} is refused"
    try:
        data: Any = load_json(text)
    except DuplicateKeyError as error:
        raise BundleError(
            headline, Problem(Code.DUPLICATE_KEY, f"key {error}", cause="a tampered or badly merged file")
        ) from None
    except (ValueError, RecursionError) as error:
        raise BundleError(
            headline,
            Problem(Code.BAD_MANIFEST, where, got=f"no JSON ({error})", mend="build the bundle again"),
        ) from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise BundleError(
            headline,
            Problem(
                Code.VERSION,
                "format_version",
                got=repr(version),
                expected=" or ".join(str(known) for known in READABLE_VERSIONS),
                cause="the bundle was written by another version of adexport",
                mend="install the adexport that wrote it, or build the bundle again",
            ),
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        problems = [
            Problem(
                Code.BAD_MANIFEST,
                where or "manifest",
                got=got if where else "",
                expected=expected,
                mend="build the bundle again",
            )
            for where, got, expected in violations(error)
        ]
        raise BundleError(headline, problems) from None
