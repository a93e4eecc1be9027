"""A bound adapter: one tenant's slot tensors, what they are, and the base they were made for.

It fits every bundle of the same base whose sites cover it, whatever the bundle's precision:
the tensors are float32, with every scaling folded in. ``runtime/FORMAT.md`` has the details.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from .errors import AdapterError, Code, Problem
from .files import DuplicateKeyError, load_json
from .fit import fit_problems
from .manifest import Manifest
from .names import check_name
from .schema import Schema, violations
from .slots import BottleneckStyle, HeadStyle, SlotInput
from .tensors import Array, TensorFile, read_tensors, write_tensors

FORMAT = "adexport-adapter"
FORMAT_VERSION = "2"
#: version 1 had lora_A and lora_B only
READABLE_VERSIONS = ("1", "2")
#: how the slot input of a linear layer's factor ends -> the factor
_LINEAR_FACTORS = {
    "lora_A": "lora_A",
    "lora_B": "lora_B",
    "adapter_bias": "bias",
    "scale_in": "scale_in",
    "scale_out": "scale_out",
}
_DOWN = ".bottleneck.down"
_REQUIRED = ("format_version", "name", "source_type", "source_sha256", "base_fingerprint", "rank")
#: what the tensors of a version are, where it has them
_STYLES = {"1": (), "2": ("bottleneck", "head")}


_Style = TypeVar("_Style", bound=Schema)


@dataclass(frozen=True)
class BoundAdapter:
    """Float32 slot tensors by slot input, without the dimension of rows.

    ``bottleneck`` and ``head`` say what those tensors are, where the adapter has them. The codes that
    a bundle wants for that depend on the bundle: :meth:`rows` adds them.
    """

    name: str
    source_type: str
    source_sha256: str
    base_fingerprint: str
    tensors: Mapping[str, Array]
    bottleneck: BottleneckStyle | None = None
    head: HeadStyle | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """The rank at every linear layer that the adapter touches; 0 where it brings no pair."""
        ranks: dict[str, int] = {}
        for name, tensor in self.tensors.items():
            path, _, factor = name.rpartition(".")
            if factor in _LINEAR_FACTORS:
                ranks[path] = int(tensor.shape[1]) if factor == "lora_A" else ranks.get(path, 0)
        return ranks

    @property
    def factors(self) -> dict[str, frozenset[str]]:
        """The factors at every linear layer that the adapter touches."""
        found: dict[str, frozenset[str]] = {}
        for name in self.tensors:
            path, _, end = name.rpartition(".")
            if end in _LINEAR_FACTORS:
                found[path] = found.get(path, frozenset()) | {_LINEAR_FACTORS[end]}
        return found

    @property
    def widths(self) -> dict[str, int]:
        """The width at every bottleneck site that the adapter touches."""
        return {
            name.removesuffix(_DOWN): int(tensor.shape[1])
            for name, tensor in self.tensors.items()
            if name.endswith(_DOWN)
        }

    @property
    def rank(self) -> int:
        """The largest rank at any site."""
        return max(self.ranks.values(), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all slot tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def rows(self, manifest: Manifest) -> dict[str, Array]:
        """What a bank's row holds: the tensors, and the codes and guards of this bundle for them."""
        rows = dict(self.tensors)
        codes: list[tuple[SlotInput | None, int | None]] = []
        if self.bottleneck is not None and manifest.bottlenecks is not None:
            code = manifest.bottlenecks.code(self.bottleneck)
            codes += [
                (site.slot.code, code)
                for site in manifest.bottlenecks.sites
                if site.slot.down.name in self.tensors
            ]
        if self.head is not None and manifest.head is not None:
            codes.append((manifest.head.slot.code, manifest.head.code(self.head)))
        if manifest.guards is not None:
            codes += [
                (manifest.guards.linear, int(bool(self.ranks))),
                (manifest.guards.bottleneck, int(bool(self.widths))),
            ]
        for slot, code in codes:
            if slot is not None:
                assert code is not None, "checked when it was bound"
                rows[slot.name] = np.array(code, np.int64)
        return rows

    def save(self, path: Path) -> None:
        """Write the adapter to a safetensors file, whole or not at all."""
        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "source_type": self.source_type,
            "source_sha256": self.source_sha256,
            "base_fingerprint": self.base_fingerprint,
            "rank": str(self.rank),
        }
        for key, style in (("bottleneck", self.bottleneck), ("head", self.head)):
            if style is not None:
                metadata[key] = style.model_dump_json()
        write_tensors(path, self.tensors, metadata)

    @classmethod
    def read(cls, path: Path) -> BoundAdapter:
        """Read a bound adapter without a bundle to check it against (for ``inspect``).

        Raises:
            AdapterError: the file is no bound adapter, or of another version.
        """
        return cls._from_metadata(read_tensors(path))

    @classmethod
    def from_file(cls, file: TensorFile, manifest: Manifest, name: str | None = None) -> BoundAdapter:
        """Check a bound adapter's file whole against a manifest; ``name`` replaces its own.

        Raises:
            AdapterError: naming everything that does not fit.
        """
        adapter = cls._from_metadata(file)
        problems = _base_problems(adapter, manifest) or fit_problems(
            adapter.tensors, adapter.bottleneck, adapter.head, manifest
        )
        if problems:
            raise AdapterError(f"{file.path.name} is refused", problems)
        return adapter if name is None else replace(adapter, name=check_name(name))

    @classmethod
    def _from_metadata(cls, file: TensorFile) -> BoundAdapter:
        headline = f"{file.path.name} is refused"
        if not is_bound(file.metadata):
            raise AdapterError(
                headline,
                Problem(
                    Code.VERSION,
                    str(file.path),
                    got="no adexport metadata",
                    expected=f"format {FORMAT}",
                    cause="not an adapter that `adexport bind` wrote",
                    mend="adexport bind ADAPTER",
                ),
            )
        lacking = [key for key in _REQUIRED if key not in file.metadata]
        version = file.metadata.get("format_version")
        if lacking or version not in READABLE_VERSIONS:
            raise AdapterError(
                headline,
                Problem(
                    Code.VERSION,
                    str(file.path),
                    got=f"version {version}" + (f", without {', '.join(lacking)}" if lacking else ""),
                    expected=f"version {' or '.join(READABLE_VERSIONS)} with {', '.join(_REQUIRED)}",
                    cause="bound by another version of adexport",
                    mend="bind the original adapter again",
                ),
            )
        known = {"format", *_REQUIRED, *_STYLES[version]}
        wrong = [
            Problem(
                Code.BAD_CONFIG,
                key,
                got="metadata that version " + version + " does not have",
                expected=", ".join(sorted(known)),
                cause="an edited file",
                mend="bind the original adapter again",
            )
            for key in file.metadata.keys() - known
        ]
        wrong += [
            Problem(
                Code.BAD_CONFIG,
                key,
                got=repr(value)[:80],
                expected="a text without NUL",
                cause="an edited file",
                mend="bind the original adapter again",
            )
            for key, value in file.metadata.items()
            if key in known and "\0" in value
        ]
        wrong += [
            Problem(
                Code.WRONG_DTYPE, name, got=str(tensor.dtype), expected="float32", cause="an edited file"
            )
            for name, tensor in file.tensors.items()
            if tensor.dtype != np.float32
        ]
        if wrong:
            raise AdapterError(headline, wrong)
        return cls(
            name=check_name(file.metadata["name"]),
            source_type=file.metadata["source_type"],
            source_sha256=file.metadata["source_sha256"],
            base_fingerprint=file.metadata["base_fingerprint"],
            tensors=file.tensors,
            bottleneck=_style(file, "bottleneck", BottleneckStyle),
            head=_style(file, "head", HeadStyle),
        )


def _style(file: TensorFile, key: str, kind: type[_Style]) -> _Style | None:
    text = file.metadata.get(key)
    if text is None:
        return None
    headline = f"{file.path.name} is refused"
    try:
        load_json(text)
        return kind.model_validate_json(text)
    except DuplicateKeyError as error:
        raise AdapterError(
            headline,
            Problem(
                Code.DUPLICATE_KEY, f"{key}: key {error}", got="the same key twice", cause="an edited file"
            ),
        ) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise AdapterError(
            headline,
            Problem(
                Code.BAD_CONFIG,
                key,
                got=f"no JSON ({error})",
                cause="an edited file",
                mend="bind the original adapter again",
            ),
        ) from None
    except ValidationError as error:
        raise AdapterError(
            headline,
            [
                Problem(
                    Code.BAD_CONFIG,
                    f"{key}.{where}" if where else key,
                    got=got,
                    expected=expected,
                    cause="an edited file, or bound by a newer adexport",
                    mend="bind the original adapter again",
                )
                for where, got, expected in violations(error)
            ],
        ) from None


def is_bound(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata of a safetensors file say that it is a bound adapter."""
    return metadata.get("format") == FORMAT


def _base_problems(adapter: BoundAdapter, manifest: Manifest) -> list[Problem]:
    if adapter.base_fingerprint == manifest.base.fingerprint:
        return []
    return [
        Problem(
            Code.WRONG_BASE,
            adapter.name,
            got=f"an adapter bound for the base {adapter.base_fingerprint}",
            expected=manifest.base.fingerprint,
            cause=f"bound for another base than {manifest.base.name}",
            mend="bind the original adapter to this bundle, if it was trained on this base",
        )
    ]
