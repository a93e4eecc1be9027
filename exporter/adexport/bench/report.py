"""What was measured, as plain data."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from adexport_runtime.backends.kernels import describe_kernels, find_kernels

from .measure import Quartiles

_PACKAGES = ("adexport", "onnxruntime", "torch", "peft", "transformers")


@dataclass(frozen=True)
class Comparison:
    """The runtime against one contender.

    ``cpu_ratio`` and ``wall_ratio`` are runtime / contender (below 1: the runtime is faster);
    ``difference`` is the largest between their outputs, relative to the largest value.
    """

    cpu_ms: float
    wall_ms: float
    cpu_ratio: Quartiles
    wall_ratio: Quartiles
    difference: float


@dataclass(frozen=True)
class ColdBind:
    """From an adapter's file to the first output with it, on an open engine.

    ``ratio`` is (whole - read) / forward, in CPU time.
    """

    read_ms: float
    forward_ms: float
    whole_ms: float
    ratio: Quartiles


@dataclass(frozen=True)
class BenchReport:
    """One run of the benchmark."""

    bundle: str
    settings: Mapping[str, Any]
    cpu_ms: float
    wall_ms: float
    against: Mapping[str, Comparison]
    cold_bind: ColdBind

    def to_dict(self) -> dict[str, Any]:
        """The report with the machine that it was made on."""
        return {**asdict(self), "machine": machine()}


def machine() -> dict[str, Any]:
    """What the numbers were seen on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    kernels = find_kernels()
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "kernels": "none" if kernels is None else describe_kernels(kernels).isa,
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - not a file of ours
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
