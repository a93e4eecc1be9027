"""The bundle's contract, declared once: ``manifest.json`` as frozen, fully validated models.

``runtime/FORMAT.md`` says the same in prose. A key that is not declared here is refused: a
reader that skipped it could serve something other than what was built.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import BundleError, Code, Problem
from .files import DuplicateKeyError, load_json

FORMAT_VERSION = 1

Dtype = Literal["fp32", "fp16", "bf16", "int64", "int32"]
FloatDtype = Literal["fp32", "fp16", "bf16"]
Task = Literal["feature-extraction", "text-classification", "token-classification"]
Positive = Annotated[int, Field(gt=0)]
Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
RelativePath = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Base(_Model):
    """The frozen model behind the bundle."""

    name: str
    source: str
    architecture: str
    model_type: str
    prefix: str
    task: Task
    dtype: FloatDtype
    quantization: None = None
    fingerprint: Sha256
    max_positions: Positive | None
    labels: tuple[str, ...] = ()


class Input(_Model):
    """One input of the model. ``fill`` is the value used when a call leaves the input out."""

    name: str
    dtype: Dtype
    shape: tuple[str | Positive, ...]
    low: int | None = None
    high: int | None = None
    fill: int | None = None


class Output(_Model):
    """One output of the model."""

    name: str
    dtype: Dtype
    shape: tuple[str | Positive, ...]


class SlotInput(_Model):
    """A graph input that carries one factor of a slot; ``shape`` starts with the bank's rows."""

    name: str
    shape: tuple[str | Positive, ...]


class LinearSlot(_Model):
    """y' = y + B(Ax); ``lora_A`` is ``[rows, in, rank]``, ``lora_B`` is ``[rows, rank, out]``."""

    lora_A: SlotInput
    lora_B: SlotInput


class Site(_Model):
    """A place where an adapter acts. ``weight`` names the frozen weight it wraps."""

    path: str
    weight: str
    in_features: Positive
    out_features: Positive
    linear: LinearSlot


class Limits(_Model):
    """What the bundle was built to take."""

    max_rank: Positive


class Tokenizer(_Model):
    """How to make inputs from text with the bundle's ``tokenizer.json``."""

    file: RelativePath
    pad_id: Annotated[int, Field(ge=0)]
    pad_token: str
    max_length: Positive | None


class File(_Model):
    """A file of the bundle, with what it must hold."""

    path: RelativePath
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(_Model):
    """Everything a runtime needs to know about a bundle."""

    format_version: Literal[1] = 1
    base: Base
    opset: Positive
    slots: tuple[Literal["lora"], ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    adapter_ids: str | None
    sites: tuple[Site, ...]
    limits: Limits
    modules: tuple[str, ...]
    tokenizer: Tokenizer | None
    files: tuple[File, ...]
    tools: dict[str, str]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        wrong = []
        if bool(self.sites) != (self.adapter_ids is not None) or bool(self.sites) != bool(self.slots):
            wrong.append("sites, slots and adapter_ids must be there together or not at all")
        paths = [site.path for site in self.sites]
        if len(set(paths)) != len(paths):
            wrong.append("a site is listed twice")
        names = [i.name for i in self.inputs] + [i.name for i in self.slot_inputs]
        names += [self.adapter_ids] if self.adapter_ids is not None else []
        if len(set(names)) != len(names):
            wrong.append("an input is listed twice")
        for site in self.sites:
            a, b = site.linear.lora_A, site.linear.lora_B
            if len(a.shape) != 3 or a.shape[1] != site.in_features:
                wrong.append(f"{a.name} must be [rows, {site.in_features}, rank]")
            if len(b.shape) != 3 or b.shape[2] != site.out_features:
                wrong.append(f"{b.name} must be [rows, rank, {site.out_features}]")
            if len(a.shape) == len(b.shape) == 3 and a.shape[2] != b.shape[1]:
                wrong.append(f"{a.name} and {b.name} must share one rank")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @cached_property
    def slot_inputs(self) -> tuple[SlotInput, ...]:
        """All slot inputs, in the order of the sites."""
        return tuple(factor for site in self.sites for factor in (site.linear.lora_A, site.linear.lora_B))

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
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise BundleError(
            headline,
            Problem(
                Code.VERSION,
                "format_version",
                got=repr(version),
                expected=str(FORMAT_VERSION),
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
                ".".join(str(part) for part in item["loc"]) or "manifest",
                got=repr(item["input"])[:80] if item["loc"] else "",
                expected=item["msg"],
                mend="build the bundle again",
            )
            for item in error.errors()
        ]
        raise BundleError(headline, problems) from None
