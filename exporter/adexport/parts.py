"""The files of a bundle under construction, and what is carried over from another one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from adexport_runtime.bound import BoundAdapter
from adexport_runtime.bundle import (
    ADAPTERS_FOLDER,
    MANIFEST_FILE,
    MODEL_FILE,
    WEIGHTS_FOLDER,
    Bundle,
    file_entry,
)
from adexport_runtime.errors import AdapterError
from adexport_runtime.manifest import File, Manifest
from adexport_runtime.tensors import read_tensors

#: what a lowering writes: all else is of the trace
_LOWERED = {MODEL_FILE, *(f"{WEIGHTS_FOLDER}/{dtype}.bin" for dtype in ("fp16", "bf16"))}


def files_of(part: Path) -> tuple[File, ...]:
    """Every file of the bundle but its manifest and its adapters."""
    paths = sorted(path for path in part.rglob("*") if path.is_file())
    inside = [path for path in paths if path.relative_to(part).parts[0] != ADAPTERS_FOLDER]
    return tuple(file_entry(part, path) for path in inside if path.name != MANIFEST_FILE)


def carry_trace(bundle: Bundle, part: Path) -> None:
    """Copy what does not depend on a lowering."""
    for entry in bundle.manifest.files:
        if entry.path not in _LOWERED:
            _copy(bundle.root / entry.path, part / entry.path)


def carry_adapters(source: Path, part: Path) -> None:
    """Copy bound adapters that are not there yet."""
    for path in sorted((source / ADAPTERS_FOLDER).glob("*.safetensors")):
        if not (part / ADAPTERS_FOLDER / path.name).exists():
            _copy(path, part / ADAPTERS_FOLDER / path.name)


def check_adapters(part: Path, manifest: Manifest) -> None:
    """What is bound must fit the new graph: an adapter is never dropped in silence.

    Raises:
        AdapterError: naming everything that does not fit.
    """
    problems = []
    for name, path in Bundle(part, manifest).adapters().items():
        try:
            BoundAdapter.from_file(read_tensors(path), manifest)
        except AdapterError as error:
            problems += [replace(p, subject=f"{name}: {p.subject}") for p in error.problems]
    if problems:
        raise AdapterError(
            f"adapters bound in the bundle would no longer fit (remove their files in {ADAPTERS_FOLDER}/)",
            problems,
        )


def _copy(source: Path, target: Path) -> None:
    """A real copy: onnx-ir refuses weights that have a second hard link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
