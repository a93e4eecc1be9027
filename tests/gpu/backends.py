"""The backends that the suite runs on: why one does not answer here, and how a bundle is opened on it."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from adexport_runtime import AdexportError, Bundle, Engine
from adexport_runtime.backends.cuda import CudaDevice
from adexport_runtime.backends.onnxruntime import available_provider
from adexport_runtime.manifest import Manifest
from adexport_runtime.profiles import kinds_of_sizes
from tests.runtime.host_device import HostDevice, open_simulated
from tests.runtime.simulated_engine import Graph, Simulation, lowered_graph

#: what the engines of the suite are built for: the tests stay within, but those of refusals
SIZES = {
    "batch": (1, 4, 40),
    "seq": (1, 8, 40),
    "rows": (1, 8, 17),
    "rank": (1, 8, 64),
    "width": (1, 8, 64),
    "labels": (1, 3, 16),
    "room": (1, 48, 128),
}


@dataclass(frozen=True)
class Gpu:
    """A backend: its name, why it does not answer (None if it does), and how it opens a bundle."""

    name: str
    probe: Callable[[], str | None]
    open: Callable[[Path, str, int | None], Engine]
    dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16")
    generates: bool = True
    profiled: bool = True
    control: bool = False


def profile_text(root: Path, **sizes: tuple[int, int, int]) -> str:
    """A profile for the sizes that a bundle has, within its limits."""
    manifest = Bundle.open(root).manifest
    limits, wanted = _limits(manifest), SIZES | sizes
    parts = []
    for kind in kinds_of_sizes(manifest):
        if kind in wanted:
            low, usual, high = (min(size, limits.get(kind, size)) for size in wanted[kind])
            parts.append(f"{kind}={low}:{usual}:{high}")
    return ",".join(parts)


def _limits(manifest: Manifest) -> dict[str, int]:
    positions = manifest.base.max_positions
    found = {"rank": manifest.limits.max_rank, "width": manifest.limits.max_width}
    found |= dict.fromkeys(("seq", "room"), positions)
    return {kind: size for kind, size in found.items() if size is not None}


def _answers() -> None:
    return None


def _of_onnxruntime(name: str) -> Callable[[], str | None]:
    def probe() -> str | None:
        try:
            available_provider(name)
            CudaDevice()
        except AdexportError as error:
            return _reason(error)
        return None

    return cache(probe)


@cache
def _native() -> str | None:
    missing = []
    for module in ("tensorrt_rtx", "tensorrt"):
        try:
            importlib.import_module(module)
            break
        except Exception as error:  # a library that does not load shows in many ways
            missing.append(f"{type(error).__name__}: {error}")
    else:
        return "; ".join(missing)
    try:
        CudaDevice()
    except AdexportError as error:
        return _reason(error)
    return None


def _reason(error: AdexportError) -> str:
    return "; ".join(f"{problem.subject}: {problem.got}" for problem in error.problems)


def _open_cpu(root: Path, profile: str, rows: int | None) -> Engine:
    return Engine.open(root, "cpu", rows, threads=1)


def _open_simulated(root: Path, profile: str, rows: int | None) -> Engine:
    return open_simulated(root, HostDevice(), profile, rows=rows)


def _open_simulated_tensorrt(root: Path, profile: str, rows: int | None) -> Engine:
    return Simulation(root, _lowered(root), [profile], "copied").open(rows=rows)


@cache
def _lowered(root: Path) -> Graph:
    with tempfile.TemporaryDirectory() as folder:
        return lowered_graph(root, Path(folder))


def _open_cuda(root: Path, profile: str, rows: int | None) -> Engine:
    return Engine.open(root, "cuda", rows)


def _open_ort_tensorrt(name: str) -> Callable[[Path, str, int | None], Engine]:
    def opened(root: Path, profile: str, rows: int | None) -> Engine:
        return Engine.open(root, name, rows, profile=[profile], cache=root.parent / "engines")

    return opened


def _open_native(root: Path, profile: str, rows: int | None) -> Engine:
    return Engine.open(_built(root, profile), "tensorrt", rows)


@cache
def _built(root: Path, profile: str) -> Path:
    """A copy of the bundle with an engine in it."""
    builder = importlib.import_module("adexport.tensorrt.builder")
    options = importlib.import_module("adexport.options").EngineOptions(profiles=(profile,))
    target = root.with_name(f"{root.stem}-{abs(hash(profile))}.bundle")
    shutil.copytree(root, target)
    builder.add_engine(target, options=options)
    return target


GPUS = (
    Gpu("cpu", _answers, _open_cpu, ("fp32", "fp16"), profiled=False, control=True),
    Gpu("simulated", _answers, _open_simulated, ("fp32", "fp16"), control=True),
    Gpu("simulated-tensorrt", _answers, _open_simulated_tensorrt, ("fp32", "fp16"), control=True),
    Gpu("cuda", _of_onnxruntime("cuda"), _open_cuda, profiled=False),
    Gpu(
        "ort-tensorrt",
        _of_onnxruntime("ort-tensorrt"),
        _open_ort_tensorrt("ort-tensorrt"),
        generates=False,
    ),
    Gpu(
        "ort-tensorrt-rtx",
        _of_onnxruntime("ort-tensorrt-rtx"),
        _open_ort_tensorrt("ort-tensorrt-rtx"),
        generates=False,
    ),
    Gpu("tensorrt", _native, _open_native),
)
