"""safetensors files, read strictly: what the parser lets through and we must not is refused."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save as _serialize

from .errors import AdapterError, Code, Problem
from .files import DuplicateKeyError, atomic_file, load_json

Array = np.ndarray[Any, np.dtype[Any]]

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


#: what no module path has: control characters and slashes
_NO_PATH = re.compile(r"[\x00-\x1f/\\]")
_LARGEST_HEADER = 100_000_000
_CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class TensorFile:
    """The content of one safetensors file, and the hash of exactly the bytes that were read."""

    path: Path
    tensors: Mapping[str, Array]
    metadata: Mapping[str, str]
    sha256: str
    size: int


def _refuse(path: Path, problem: Problem) -> AdapterError:
    return AdapterError(f"{path.name} is refused", problem)


def _not_safetensors(path: Path, content: bytes, error: Exception) -> Problem:
    """What a file that does not parse is, by its first bytes."""
    expected = "a whole safetensors file"
    if content.startswith(b"version https://git-lfs"):
        return Problem(
            Code.NOT_SAFETENSORS,
            str(path),
            got="a Git LFS pointer, not the file it points to",
            expected=expected,
            cause="cloned without Git LFS",
            mend="git lfs pull",
        )
    kind = None
    if content[:4] == b"PK\x03\x04":
        kind = "a zip archive (a torch .bin or .pt file?)"
    elif content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        kind = "a Python pickle"
    if kind is not None:
        return Problem(
            Code.NOT_SAFETENSORS,
            str(path),
            got=kind,
            expected=expected,
            cause="the file was saved by torch.save",
            mend="adexport convert FILE -o FOLDER (offline; needs torch)",
        )
    return Problem(
        Code.DAMAGED,
        str(path),
        got=f"bytes that do not parse ({error})",
        expected=expected,
        cause="a truncated copy or download",
        mend="copy or download the file again",
    )


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its pairs, the repeated ones too."""


def _header_faults(content: bytes) -> list[str]:
    """Values of a type that a header cannot have: the parser takes some, and tells one at a time.

    Empty for what is no JSON object: the parser tells that.
    """
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length], object_pairs_hook=_Pairs)
    except (struct.error, ValueError, RecursionError):
        return []
    faults = []
    for name, value in header if isinstance(header, _Pairs) else ():
        faults += _metadata_faults(value) if name == "__metadata__" else _entry_faults(name, value)
    return faults


def _metadata_faults(value: object) -> list[str]:
    if not isinstance(value, _Pairs):
        return ["__metadata__ is no object"]
    return [f"{key!r} of the metadata is no text" for key, text in value if not isinstance(text, str)]


def _entry_faults(name: str, value: object) -> list[str]:
    if not isinstance(value, _Pairs):
        return [f"tensor {name!r} is no object"]
    fields = dict(value)
    offsets: Any = fields.get("data_offsets")
    faults = [] if isinstance(fields.get("dtype"), str) else [f"the dtype of {name!r} is no text"]
    if not _are_sizes(fields.get("shape")):
        faults.append(f"the shape of {name!r} is no list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        faults.append(f"the data_offsets of {name!r} are no pair of sizes")
    return faults


def _are_sizes(value: Any) -> bool:
    listed = isinstance(value, list) and not isinstance(value, _Pairs)
    return listed and all(type(size) is int and size >= 0 for size in value)


def _read_header(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON header, with repeated keys refused; the parser has already checked its bounds."""
    (length,) = struct.unpack("<Q", content[:8])
    try:
        header = load_json(content[8 : 8 + length])
    except DuplicateKeyError as error:
        raise _refuse(
            path,
            Problem(
                Code.DUPLICATE_KEY,
                f"header key {error}",
                got="the same key twice",
                expected="every tensor named once",
                cause="a tampered or badly merged file",
                mend="save the adapter again",
            ),
        ) from None
    assert isinstance(header, dict)
    return header


def _check_entries(path: Path, header: dict[str, Any], *, empty: bool, slashes: bool) -> None:
    unfit = _CONTROL if slashes else _NO_PATH
    problems = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not name or unfit.search(name):
            problems.append(
                Problem(
                    Code.BAD_NAME,
                    f"tensor {name!r}",
                    expected="a module path without slashes or control characters",
                    cause="a tampered file",
                )
            )
        if 0 in entry["shape"] and not empty:
            problems.append(
                Problem(
                    Code.EMPTY_TENSOR,
                    name,
                    got=f"shape {entry['shape']}",
                    expected="at least one element",
                    cause="saved from a sharded (ZeRO-3) model whose weights were not gathered",
                    mend="gather the weights and save the adapter again",
                )
            )
        if entry["dtype"] not in _DTYPES:
            problems.append(
                Problem(
                    Code.WRONG_DTYPE,
                    name,
                    got=str(entry["dtype"]),
                    expected="one of " + ", ".join(_DTYPES),
                )
            )
    if problems:
        raise AdapterError(f"{path.name} is refused", problems)


def read_tensors(path: Path, *, empty: bool = False, slashes: bool = False) -> TensorFile:
    """Read a whole safetensors file.

    Args:
        path: of the file.
        empty: whether tensors without elements can be meant; else they are refused.
        slashes: whether names can hold them: some libraries put an adapter's name into those.

    Raises:
        AdapterError: the file is absent, truncated, a zip or a pickle, names a key twice, or
            holds empty tensors, tensors of an unknown dtype or names that are no module paths.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _refuse(path, Problem(Code.ABSENT, str(path), got=error.strerror or "no file")) from error
    try:
        if faults := _header_faults(content):
            raise ValueError(f"invalid header: {'; '.join(faults)}")
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise _refuse(path, _not_safetensors(path, content, error)) from error
    header = _read_header(path, content)
    _check_entries(path, header, empty=empty, slashes=slashes)
    tensors = {
        name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in sorted(entries, key=itemgetter(0))  # so that messages have one order
    }
    if not tensors:
        raise _refuse(path, Problem(Code.EMPTY_TENSOR, str(path), got="no tensors at all"))
    return TensorFile(
        path=path,
        tensors=tensors,
        metadata=header.get("__metadata__", {}),
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
    )


def peek_metadata(path: Path) -> Mapping[str, str]:
    """The metadata of a safetensors file, read without its tensors; empty if it is no such file.

    Good enough to tell which reader a file is for; that reader checks it.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _LARGEST_HEADER)))
            return dict(header["__metadata__"])
    except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError):
        return {}


def write_tensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all (written beside, flushed, renamed)."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with atomic_file(path) as part:
        part.write_bytes(_serialize(contiguous, dict(metadata)))
