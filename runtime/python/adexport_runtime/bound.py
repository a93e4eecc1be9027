"""A bound adapter: one tenant's slot tensors, and the base they were made for.

It fits every bundle of the same base whose sites cover it, whatever the bundle's precision:
the tensors are float32, with every scaling folded in. ``runtime/FORMAT.md`` has the details.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import AdapterError, Code, Problem
from .fit import linear_problems
from .manifest import Manifest
from .names import check_name
from .tensors import Array, TensorFile, read_tensors, write_tensors

FORMAT = "adexport-adapter"
FORMAT_VERSION = "1"
_REQUIRED = ("format_version", "name", "source_type", "source_sha256", "base_fingerprint", "rank")


@dataclass(frozen=True)
class BoundAdapter:
    """Slot tensors by slot input: ``SITE.lora_A`` ``[in, rank]``, ``SITE.lora_B`` ``[rank, out]``."""

    name: str
    source_type: str
    source_sha256: str
    base_fingerprint: str
    tensors: Mapping[str, Array]

    @property
    def ranks(self) -> dict[str, int]:
        """The rank at every site that the adapter touches."""
        return {
            name.removesuffix(".lora_A"): int(tensor.shape[1])
            for name, tensor in self.tensors.items()
            if name.endswith(".lora_A")
        }

    @property
    def rank(self) -> int:
        """The largest rank at any site."""
        return max(self.ranks.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all slot tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def save(self, path: Path) -> None:
        """Write the adapter to a safetensors file, whole or not at all."""
        write_tensors(
            path,
            self.tensors,
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "name": self.name,
                "source_type": self.source_type,
                "source_sha256": self.source_sha256,
                "base_fingerprint": self.base_fingerprint,
                "rank": str(self.rank),
            },
        )

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
        problems = _base_problems(adapter, manifest) or _tensor_problems(adapter, manifest)
        if problems:
            raise AdapterError(f"{file.path.name} is refused", problems)
        return cls(
            name=adapter.name if name is None else check_name(name),
            source_type=adapter.source_type,
            source_sha256=adapter.source_sha256,
            base_fingerprint=adapter.base_fingerprint,
            tensors=adapter.tensors,
        )

    @classmethod
    def _from_metadata(cls, file: TensorFile) -> BoundAdapter:
        headline = f"{file.path.name} is refused"
        if not is_bound(file):
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
        if lacking or version != FORMAT_VERSION:
            raise AdapterError(
                headline,
                Problem(
                    Code.VERSION,
                    str(file.path),
                    got=f"version {version}" + (f", without {', '.join(lacking)}" if lacking else ""),
                    expected=f"version {FORMAT_VERSION} with {', '.join(_REQUIRED)}",
                    cause="bound by another version of adexport",
                    mend="bind the original adapter again",
                ),
            )
        wrong = [
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
        )


def is_bound(file: TensorFile) -> bool:
    """Whether a safetensors file says that it is a bound adapter."""
    return file.metadata.get("format") == FORMAT


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


def _tensor_problems(adapter: BoundAdapter, manifest: Manifest) -> list[Problem]:
    problems = []
    left = dict(adapter.tensors)
    for site in manifest.sites:
        names = (site.linear.lora_A.name, site.linear.lora_B.name)
        a, b = (left.pop(name, None) for name in names)
        if a is None and b is None:
            continue
        if a is None or b is None:
            problems.append(
                Problem(
                    Code.HALF_MISSING,
                    site.path,
                    got=f"{names[1] if a is None else names[0]} only",
                    expected=" and ".join(names),
                    cause="an edited file",
                    mend="bind the original adapter again",
                )
            )
        elif a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            problems.append(
                Problem(
                    Code.WRONG_SHAPE,
                    site.path,
                    got=f"{list(a.shape)} and {list(b.shape)}",
                    expected="[in, rank] and [rank, out]",
                    cause="an edited file",
                    mend="bind the original adapter again",
                )
            )
        else:
            problems += linear_problems(site, a, b, names, manifest)
    problems += [
        Problem(
            Code.UNKNOWN_SITE,
            name,
            got="a tensor without a slot here",
            expected="slot inputs of the bundle",
            cause="the bundle was built for other targets than the one it was bound for",
            mend="adexport build BUNDLE with --targets that cover it",
        )
        for name in left
    ]
    return problems
