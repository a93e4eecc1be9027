"""What this process would run with: versions, providers, and the kernel library."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .backends.kernels import describe_kernels, find_kernels
from .backends.onnxruntime import import_onnxruntime

#: what a provider may need
_PACKAGES = (
    "adexport",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tokenizers",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
)


def environment() -> dict[str, Any]:
    """Plain data for people and for logs.

    Raises:
        DependencyError: ONNX Runtime is not installed, or a kernel library was named and does not load.
    """
    ort = import_onnxruntime()
    kernels = find_kernels()
    return {
        "kind": "environment",
        "python": platform.python_version(),
        "machine": platform.machine(),
        "onnxruntime": ort.__version__,
        "providers": list(ort.get_available_providers()),
        "kernels": None if kernels is None else asdict(describe_kernels(kernels)) | {"path": str(kernels)},
        "packages": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
