"""An engine for a bundle: its trace is lowered, the graph built, and the engine put beside it."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from adexport_runtime.bundle import REFERENCE_FILE, TRACE_FILE, Bundle, file_entry
from adexport_runtime.engine_file import (
    PLAN_FILE,
    RECORD_FILE,
    EngineFile,
    EngineRecord,
    bundle_digest,
    engine_folder,
)
from adexport_runtime.errors import BuildError, BundleError, Code, Problem
from adexport_runtime.files import atomic_folder
from adexport_runtime.graph_io import Tensor, engine_inputs, graph_outputs
from adexport_runtime.manifest import Manifest
from adexport_runtime.profiles import Profile, Range, parse_profiles

from ..check import check_model, check_quality
from ..lower import TENSORRT, lower
from ..options import BuildOptions, EngineOptions
from ..parts import carry_adapters, carry_bundle, check_adapters, check_target
from ..progress import Progress, silent
from ..quality import floor_of, text_cases
from ..reference import load_reference
from ..slots.again import plan_again
from .child import order
from .disk import check_place, disk_errors
from .messages import Built, Job, Probe, Probed
from .tool import Tool, capability_problems, find_tool

#: measured times, kept from build to build; TensorRT-RTX, which measures nothing ahead of time, has none
TIMING_FILE = "timing.cache"

_GRAPH_FOLDER = "graph"
_ROOM = "room"


def check_tool(options: EngineOptions, progress: Progress = silent) -> Tool:
    """Find the builder and ask it whether it can build for what ``options`` name.

    Raises:
        DependencyError: it is not installed, or the GPU that it needs is not there.
        BuildError: it cannot build for a compute capability.
    """
    tool = find_tool(options.engine)
    return _asked(tool, options, progress)[0]


def add_engine(
    source: Path,
    output: Path | None = None,
    *,
    options: EngineOptions | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> EngineFile:
    """Build an engine into a bundle, or into a copy of it at ``output``. Needs no torch.

    Raises:
        AdapterError: an adapter bound in the bundle to be replaced does not fit.
        BuildError, DependencyError, RequestError: as :func:`build_engine`.
    """
    bundle = Bundle.open(source)
    if output is None or output.resolve() == source.resolve():
        return build_engine(bundle, options, progress=progress)
    check_target(output, force)
    with disk_errors(output), atomic_folder(output) as part:
        carry_bundle(bundle, part)
        if output.exists():
            carry_adapters(output, part)
            check_adapters(part, bundle.manifest)
        target = build_engine(Bundle.open(part), options, progress=progress).record.target
    return EngineFile.open(Bundle.open(output), target)


def build_engine(
    bundle: Bundle,
    options: EngineOptions | None = None,
    *,
    asked: BuildOptions | None = None,
    progress: Progress = silent,
) -> EngineFile:
    """Build an engine from the trace of a bundle, into the bundle; one of the same target is replaced.

    The engine has the slots, the precision and the quantization that the bundle has. Its graph is held to
    the tolerance that was ``asked`` for, and a quantized one to the cosine.

    Raises:
        DependencyError: the builder is not installed, or the GPU that it needs is not there.
        RequestError: a profile is none of this bundle.
        BuildError: the builder refused the graph, a profile or a compute capability, or crashed; the
            bundle was replaced meanwhile; the disk is full or read-only; or something else than an engine
            stands in its place.
    """
    options, asked = options or EngineOptions(), asked or BuildOptions()
    manifest = bundle.manifest
    profiles = parse_profiles(options.profiles, manifest)
    in_place = None
    if options.caches == "in-place":
        profiles, in_place = _fixed_room(profiles, manifest)
    tool, probed = _asked(find_tool(options.engine), options, progress)
    folder = engine_folder(bundle.root, tool.target)
    check_place(bundle.root, folder)
    fresh = not folder.parent.exists()
    try:
        with disk_errors(folder), atomic_folder(folder) as part:
            record = _build(bundle, (tool, probed), options, profiles, in_place, part, asked, progress)
            (part / RECORD_FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
            _check_same(bundle)
    except BaseException as error:
        if fresh:
            with suppress(OSError):  # it was never made, or someone else has put an engine there
                folder.parent.rmdir()
        if isinstance(error, BuildError):
            _check_same(bundle)  # what failed may have failed for this
        raise
    return EngineFile(folder, record)


def _asked(tool: Tool, options: EngineOptions, progress: Progress) -> tuple[Tool, Probed]:
    answer = order(Probe(module=tool.module, device=not tool.ahead), progress)
    assert isinstance(answer, Probed)
    problems = capability_problems(options.compute_capabilities, tool, answer.capabilities, answer.device)
    if problems:
        raise BuildError(f"{tool.module} {answer.version} cannot build for what was asked", problems)
    return tool, answer


def _check_same(bundle: Bundle) -> None:
    """See that a bundle was not replaced while its engine was built.

    Raises:
        BuildError: it was.
    """
    try:
        same = Bundle.open(bundle.root).manifest == bundle.manifest
    except BundleError:
        same = False
    if not same:
        problem = Problem(
            Code.WRONG_BASE,
            str(bundle.root),
            got="another bundle than when the build began",
            expected="the same from beginning to end",
            cause="it was lowered again, or removed, meanwhile",
            mend="build the engine again",
        )
        raise BuildError("no engine was built", problem)


def _build(
    bundle: Bundle,
    builder: tuple[Tool, Probed],
    options: EngineOptions,
    profiles: tuple[Profile, ...],
    in_place: int | None,
    part: Path,
    asked: BuildOptions,
    progress: Progress,
) -> EngineRecord:
    """Write the plan into ``part``."""
    tool, probed = builder
    manifest = bundle.manifest
    inputs, outputs = engine_inputs(manifest), graph_outputs(manifest)
    timing = None if tool.ahead else part / TIMING_FILE
    before = engine_folder(bundle.root, tool.target) / TIMING_FILE
    if timing is not None and before.exists():
        shutil.copyfile(before, timing)
    scratch = part / _GRAPH_FOLDER
    scratch.mkdir()
    job = Job(
        module=tool.module,
        graph=str(_lower(bundle, in_place, scratch, asked, progress)),
        plan=str(part / PLAN_FILE),
        inputs=_with_room(inputs, in_place),
        outputs=_with_room(outputs, in_place),
        profiles=profiles,
        compute_capabilities=options.compute_capabilities if tool.ahead else (),
        memory_limit=options.memory_limit,
        tf32=options.tf32,
        timing=None if timing is None else str(timing),
    )
    built = order(job, progress)
    assert isinstance(built, Built)
    shutil.rmtree(scratch)
    return EngineRecord(
        target=tool.target,
        tool_version=built.version,
        bundle=bundle_digest(bundle.root),
        fingerprint=manifest.base.fingerprint,
        plan=file_entry(part, part / PLAN_FILE),
        compute_capabilities=options.compute_capabilities if probed.device is None else (probed.device,),
        profiles=profiles,
        inputs=inputs,
        outputs=outputs,
        caches=None if manifest.generation is None else options.caches,
        tf32=options.tf32,
        layers=built.layers,
        seconds=built.seconds,
        peak_bytes=built.peak_bytes,
    )


def _lower(
    bundle: Bundle, in_place: int | None, folder: Path, asked: BuildOptions, progress: Progress
) -> Path:
    """The ONNX file for TensorRT, with its weights beside it, checked against what torch computed."""
    manifest = bundle.manifest
    if manifest.bank_dtype is not None:
        raise BuildError(
            "no engine was built",
            Problem(
                Code.UNSUPPORTED,
                "--bank-dtype",
                got=f"a bundle with adapters in {manifest.bank_dtype} under a float32 base",
                expected="adapters of the base's type",
                cause="such banks are for ONNX Runtime",
                mend=f"adexport build BUNDLE --bank-dtype fp32, or --dtype {manifest.bank_dtype}",
            ),
        )
    progress("lower it for TensorRT")
    trace = ir.load(bundle.root / TRACE_FILE)
    lowering = replace(
        plan_again(bundle, BuildOptions()).lowering(manifest.base.dtype),
        quantization=manifest.base.quantization,
        in_place=in_place,
    )
    path = folder / "model.onnx"
    ir.save(lower(trace, lowering, TENSORRT).graph, path, external_data="model.bin", alignment=64)
    progress("check the graph: ONNX Runtime on the CPU, parity with torch")
    cases = load_reference(bundle.root / REFERENCE_FILE)
    check_model(path, trace, lowering, cases, asked.tolerance, manifest.generation, TENSORRT)
    if lowering.quantization is not None:
        progress("compare it with the float base, text by text")
        texts = text_cases(bundle, cases)
        floor = floor_of(lowering.quantization, asked.min_cosine)
        check_quality(path, trace, lowering, cases, texts, floor, manifest.generation, TENSORRT)
    return path


def _fixed_room(profiles: tuple[Profile, ...], manifest: Manifest) -> tuple[tuple[Profile, ...], int]:
    """Profiles for caches that are written in place: their room is one number, the largest.

    Raises:
        BuildError: the bundle has no caches, or the profiles end at several rooms.
    """
    if manifest.generation is None:
        raise _no_caches_in_place(
            "a bundle without caches", "a bundle that generates", "leave --in-place out"
        )
    rooms = sorted({profile.sizes[_ROOM].max for profile in profiles})
    if len(rooms) > 1:
        found = ", ".join(str(room) for room in rooms)
        raise _no_caches_in_place(
            f"profiles of room {found}", "one room", "give each --profile the same room"
        )
    (room,) = rooms
    fixed = {_ROOM: Range(min=room, opt=room, max=room)}
    return tuple(Profile(sizes={**profile.sizes, **fixed}) for profile in profiles), room


def _with_room(tensors: tuple[Tensor, ...], room: int | None) -> tuple[Tensor, ...]:
    """What a graph whose caches have just this room must have."""
    return tuple(
        tensor.model_copy(update={"shape": tuple(room if size == _ROOM else size for size in tensor.shape)})
        if room is not None
        else tensor
        for tensor in tensors
    )


def _no_caches_in_place(got: str, expected: str, mend: str) -> BuildError:
    problem = Problem(Code.UNSUPPORTED, "--in-place", got=got, expected=expected, mend=mend)
    return BuildError("no engine was built", problem)
