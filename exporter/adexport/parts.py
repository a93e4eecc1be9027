"""The files of a bundle under construction, and what is carried over from another one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from adexport_runtime.bound import BoundAdapter
from adexport_runtime.bundle import (
    ADAPTERS_FOLDER,
    MANIFEST_FILE,
    MODEL_FILE,
    WEIGHTS_FOLDER,
    Bundle,
    file_entry,
)
from adexport_runtime.engine_file import engine_folder, engine_targets
from adexport_runtime.errors import AdapterError, BuildError, Code, Problem
from adexport_runtime.manifest import File, Manifest
from adexport_runtime.tensors import read_tensors

from .lower import LowerOptions

#: what a lowering writes: all else is of the trace
_LOWERED = {MODEL_FILE, *(f"{WEIGHTS_FOLDER}/{kind}.bin" for kind in ("fp16", "bf16", "int8", "int4"))}

#: bytes of a tensor that still lies in the graph's own file, as onnx-ir has it by default
_SMALL = 256


def check_target(output: Path, force: bool) -> None:
    """A bundle may appear at ``output``, or with ``force`` take the place of another.

    Raises:
        BuildError: something stands there.
    """
    if not output.exists():
        return
    if not (output / MANIFEST_FILE).exists():
        raise BuildError(
            "nothing was built",
            Problem(
                Code.EXISTS,
                str(output),
                got="something that is no bundle",
                mend="choose another -o; --force replaces bundles only",
            ),
        )
    if not force:
        raise BuildError(
            "nothing was built",
            Problem(
                Code.EXISTS,
                str(output),
                got="a bundle of this name",
                mend="give --force to replace it, or another -o",
            ),
        )


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


def carry_bundle(bundle: Bundle, part: Path) -> None:
    """Copy a whole bundle, with its adapters, and with its engines: they fit as long as it is the same."""
    names = [entry.path for entry in bundle.manifest.files] + [MANIFEST_FILE]
    names += [
        file.relative_to(bundle.root).as_posix()
        for target in engine_targets(bundle.root)
        for file in engine_folder(bundle.root, target).iterdir()
        if file.is_file() and file.name[0] != "."
    ]
    for name in names:
        _copy(bundle.root / name, part / name)
    carry_adapters(bundle.root, part)


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


def write_lowered(graph: ir.Model, part: Path, options: LowerOptions) -> None:
    """Write ``model.onnx``, with its weights in a file of their own where they are not the trace's."""
    quantization = options.quantization
    kind = options.dtype if quantization is None else f"int{quantization.bits}"
    own = None if kind == "fp32" else f"{WEIGHTS_FOLDER}/{kind}.bin"
    if quantization is not None:  # what stays float is in the trace's file
        new = [value for value in graph.graph.initializers.values() if _is_new(value)]
        tensors = [value.const_value for value in new if value.const_value is not None]
        for value, tensor in zip(
            new,
            ir.external_data.convert_tensors_to_external(tensors, part, str(own), alignment=64),
            strict=True,
        ):
            value.const_value = tensor
        own = None
    ir.save(graph, part / MODEL_FILE, external_data=own, alignment=64)


def _is_new(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > _SMALL


def _copy(source: Path, target: Path) -> None:
    """A real copy: onnx-ir refuses weights that have a second hard link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
