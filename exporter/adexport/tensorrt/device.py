"""The GPU of this machine, as the driver tells."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from adexport_runtime.errors import Code, DependencyError, Problem

_HEADLINE = "TensorRT builds for the GPU that it runs on, and there is none to use"
_AHEAD = "--engine rtx builds ahead of time, without a GPU"


def present_device(driver: Any = None) -> str:
    """The compute capability of the first GPU, as ``sm86``.

    Args:
        driver: the module ``cuda.bindings.driver``; imported if None.

    Raises:
        DependencyError: saying what is missing: the bindings, the driver's library, or the GPU.
    """
    if driver is None:
        try:
            driver = import_module("cuda.bindings.driver")
        except ImportError as error:
            raise _missing("cuda-bindings", str(error), "pip install 'adexport[tensorrt]'") from error
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError as error:  # the bindings look for the library now
        raise _missing("libcuda.so.1", str(error), f"install the GPU's driver; {_AHEAD}") from error
    _check(driver, status)
    status, device = driver.cuDeviceGet(0)
    _check(driver, status)
    numbers = []
    for part in ("MAJOR", "MINOR"):
        attribute = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}")
        status, number = driver.cuDeviceGetAttribute(attribute, device)
        _check(driver, status)
        numbers.append(number)
    return f"sm{numbers[0]}{numbers[1]}"


def _check(driver: Any, status: Any) -> None:
    if status != driver.CUresult.CUDA_SUCCESS:
        raise _missing("the GPU", str(getattr(status, "name", status)), f"check nvidia-smi; {_AHEAD}")


def _missing(subject: str, got: str, mend: str) -> DependencyError:
    return DependencyError(_HEADLINE, Problem(Code.PACKAGE_MISSING, subject, got=got, mend=mend))
