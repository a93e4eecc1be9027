"""The device layer on NVIDIA's CUDA runtime, by the package ``cuda-bindings`` (12 or 13)."""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

from ..errors import Code, Problem, ProviderError
from ..tensors import Array

#: the driver's library, which every CUDA program needs
DRIVER = "libcuda.so.1"


class CudaDevice:
    """The first GPU that the driver shows (``CUDA_VISIBLE_DEVICES`` chooses among several)."""

    def __init__(self) -> None:
        """Open the device.

        Raises:
            ProviderError: ``cuda-bindings``, the driver or a GPU is missing; it says which.
        """
        self._cuda = _runtime()
        self._kinds = self._cuda.cudaMemcpyKind
        properties = self._call("cudaGetDeviceProperties", 0)
        found = properties.name
        self.name = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
        #: as ``sm89``
        self.compute_capability = f"sm{properties.major}{properties.minor}"

    def allocate(self, nbytes: int) -> int:
        """See :class:`~adexport_runtime.backends.device.Device`."""
        return int(self._call("cudaMalloc", nbytes))

    def free(self, address: int) -> None:
        """See :class:`~adexport_runtime.backends.device.Device`."""
        self._call("cudaFree", address)

    def upload(self, address: int, array: Array, stream: int) -> None:
        """See :class:`~adexport_runtime.backends.device.Device`."""
        self._copy(address, _address(array), array.nbytes, self._kinds.cudaMemcpyHostToDevice, stream)

    def download(self, array: Array, address: int, stream: int) -> None:
        """See :class:`~adexport_runtime.backends.device.Device`."""
        self._copy(_address(array), address, array.nbytes, self._kinds.cudaMemcpyDeviceToHost, stream)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """See :class:`~adexport_runtime.backends.device.Device`."""
        self._copy(target, source, nbytes, self._kinds.cudaMemcpyDeviceToDevice, stream)

    def zero(self, address: int, nbytes: int, stream: int) -> None:
        """See :class:`~adexport_runtime.backends.device.Device`."""
        self._call("cudaMemsetAsync", address, 0, nbytes, stream)

    def open_stream(self) -> int:
        """See :class:`~adexport_runtime.backends.device.Device`.

        The default stream, which others may use, is not waited for.
        """
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def close_stream(self, stream: int) -> None:
        """See :class:`~adexport_runtime.backends.device.Device`."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """See :class:`~adexport_runtime.backends.device.Device`."""
        self._call("cudaStreamSynchronize", stream)

    def _copy(self, target: int, source: int, nbytes: int, kind: Any, stream: int) -> None:
        if nbytes:
            self._call("cudaMemcpyAsync", target, source, nbytes, kind, stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the runtime; what it gives beside its code, of which there is at most one."""
        code, *values = getattr(self._cuda, function)(*arguments)
        if code == self._cuda.cudaError_t.cudaSuccess:
            return values[0] if values else None
        if code == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            raise MemoryError(f"{function}: no memory left on the GPU")
        raise ProviderError(
            "the GPU failed",
            Problem(
                Code.RUN_FAILED,
                function,
                got=_explain(self._cuda, code),
                cause="the driver, or an earlier kernel; this process can hardly use the GPU any more",
                mend="start the process again; if it comes back, see dmesg for the driver's report",
            ),
        )


def _address(array: Array) -> int:
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


def _runtime() -> Any:
    """``cuda.bindings.runtime``, with a GPU behind it."""
    try:
        cuda = import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise _missing(
            "cuda-bindings", str(error), "the package is not installed", "pip install adexport[tensorrt]"
        ) from error
    try:
        code, *rest = cuda.cudaGetDeviceCount()
    except RuntimeError as error:  # some versions look for the driver themselves
        raise _no_driver(str(error)) from error
    if code == cuda.cudaError_t.cudaErrorNoDevice or (code == cuda.cudaError_t.cudaSuccess and not rest[0]):
        raise _missing(
            "a GPU",
            "a driver that shows none",
            "no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it",
            "run where nvidia-smi lists a GPU",
        )
    if code != cuda.cudaError_t.cudaSuccess:
        raise _no_driver(_explain(cuda, code))
    return cuda


def _no_driver(got: str) -> ProviderError:
    try:
        ctypes.CDLL(DRIVER)
    except OSError as error:
        return _missing(
            DRIVER,
            str(error),
            "NVIDIA's driver is not installed",
            "install the driver (nvidia-smi shows it)",
        )
    return _missing(
        DRIVER,
        got,
        "the driver is older than this cuda-bindings",
        "update the driver, or install cuda-bindings of its CUDA version",
    )


def _missing(subject: str, got: str, cause: str, mend: str) -> ProviderError:
    return ProviderError(
        "no GPU is to be had",
        Problem(Code.PROVIDER_UNAVAILABLE, subject, got=got, cause=cause, mend=mend),
    )


def _explain(cuda: Any, code: Any) -> str:
    _, text = cuda.cudaGetErrorString(code)
    return f"{code.name}: {text.decode(errors='replace') if isinstance(text, bytes) else text}"
