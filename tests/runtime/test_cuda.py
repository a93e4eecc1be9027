"""The CUDA device: here, what it says where something is missing, and that no code is overlooked."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adexport_runtime import Code, ProviderError
from adexport_runtime.backends.cuda import DRIVER, CudaDevice


class Error:
    """As ``cudaError_t``: members have a name."""

    def __init__(self, name: str) -> None:
        self.name = name


ERRORS = SimpleNamespace(
    **{
        name: Error(name)
        for name in (
            "cudaSuccess",
            "cudaErrorNoDevice",
            "cudaErrorInsufficientDriver",
            "cudaErrorMemoryAllocation",
            "cudaErrorIllegalAddress",
        )
    }
)


class Runtime:
    """A stand-in for ``cuda.bindings.runtime`` that notes calls and gives chosen codes."""

    cudaError_t = ERRORS
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down", cudaMemcpyDeviceToDevice="within"
    )
    cudaStreamNonBlocking = 1

    def __init__(self, **codes: Error) -> None:
        self.codes = codes
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        results = {
            "cudaGetDeviceCount": 1,
            "cudaGetDeviceProperties": SimpleNamespace(name=b"Card", major=8, minor=9),
            "cudaMalloc": 4096,
            "cudaStreamCreateWithFlags": 77,
        }

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            code = self.codes.get(name, ERRORS.cudaSuccess)
            return (code, results[name]) if name in results else (code,)

        return call

    def cudaGetErrorString(self, code: Error) -> tuple[Error, bytes]:  # noqa: N802
        return ERRORS.cudaSuccess, f"text of {code.name}".encode()


def install(monkeypatch: pytest.MonkeyPatch, runtime: Any) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)


def refused(monkeypatch: pytest.MonkeyPatch, runtime: Any) -> Any:
    install(monkeypatch, runtime)
    with pytest.raises(ProviderError) as caught:
        CudaDevice()
    assert caught.value.codes == {Code.PROVIDER_UNAVAILABLE}
    (problem,) = caught.value.problems
    return problem


class TestWhatIsMissing:
    def test_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert refused(monkeypatch, None).subject == "cuda-bindings"

    def test_the_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(name: str) -> None:
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(ctypes, "CDLL", absent)
        problem = refused(monkeypatch, Runtime(cudaGetDeviceCount=ERRORS.cudaErrorInsufficientDriver))
        assert problem.subject == DRIVER
        assert "not installed" in problem.cause

    def test_a_newer_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: name)
        problem = refused(monkeypatch, Runtime(cudaGetDeviceCount=ERRORS.cudaErrorInsufficientDriver))
        assert problem.subject == DRIVER
        assert "older" in problem.cause
        assert problem.got == "cudaErrorInsufficientDriver: text of cudaErrorInsufficientDriver"

    def test_the_driver_as_some_versions_say_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runtime = Runtime()

        def fail() -> None:
            raise RuntimeError("Failed to dlopen libcuda.so.1")

        runtime.cudaGetDeviceCount = fail
        monkeypatch.setattr(ctypes, "CDLL", lambda name: name)
        assert "dlopen" in refused(monkeypatch, runtime).got

    def test_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runtime = Runtime(cudaGetDeviceCount=ERRORS.cudaErrorNoDevice)
        assert refused(monkeypatch, runtime).subject == "a GPU"


class TestCalls:
    def test_what_is_asked_of_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runtime = Runtime()
        install(monkeypatch, runtime)
        device = CudaDevice()
        assert (device.name, device.compute_capability) == ("Card", "sm89")
        runtime.calls.clear()
        array = np.zeros((2, 3), np.float32)
        assert device.allocate(24) == 4096
        assert device.open_stream() == 77
        device.upload(4096, array, 77)
        device.download(array, 4096, 77)
        device.copy(8192, 4096, 24, 77)
        device.zero(4096, 24, 77)
        device.synchronize(77)
        device.close_stream(77)
        device.free(4096)
        device.upload(4096, array[:0], 77)  # nothing to copy
        assert runtime.calls == [
            ("cudaMalloc", 24),
            ("cudaStreamCreateWithFlags", 1),
            ("cudaMemcpyAsync", 4096, array.ctypes.data, 24, "up", 77),
            ("cudaMemcpyAsync", array.ctypes.data, 4096, 24, "down", 77),
            ("cudaMemcpyAsync", 8192, 4096, 24, "within", 77),
            ("cudaMemsetAsync", 4096, 0, 24, 77),
            ("cudaStreamSynchronize", 77),
            ("cudaStreamDestroy", 77),
            ("cudaFree", 4096),
        ]

    @pytest.mark.parametrize(
        ("function", "call"),
        [
            ("cudaMalloc", lambda device: device.allocate(1)),
            ("cudaFree", lambda device: device.free(4096)),
            ("cudaMemcpyAsync", lambda device: device.copy(8192, 4096, 1, 77)),
            ("cudaMemsetAsync", lambda device: device.zero(4096, 1, 77)),
            ("cudaStreamCreateWithFlags", lambda device: device.open_stream()),
            ("cudaStreamDestroy", lambda device: device.close_stream(77)),
            ("cudaStreamSynchronize", lambda device: device.synchronize(77)),
        ],
    )
    def test_every_code_is_looked_at(
        self, monkeypatch: pytest.MonkeyPatch, function: str, call: Any
    ) -> None:
        install(monkeypatch, Runtime(**{function: ERRORS.cudaErrorIllegalAddress}))
        device = CudaDevice()
        with pytest.raises(ProviderError) as caught:
            call(device)
        (problem,) = caught.value.problems
        assert (problem.subject, problem.code) == (function, Code.RUN_FAILED)
        assert "text of cudaErrorIllegalAddress" in problem.got

    def test_no_memory_is_pythons_own_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, Runtime(cudaMalloc=ERRORS.cudaErrorMemoryAllocation))
        device = CudaDevice()
        with pytest.raises(MemoryError):
            device.allocate(1)


def test_the_real_package_has_all_that_is_called() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for function in (
        *("cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaGetErrorString", "cudaMalloc", "cudaFree"),
        *("cudaMemcpyAsync", "cudaMemsetAsync", "cudaStreamCreateWithFlags", "cudaStreamDestroy"),
        *("cudaStreamSynchronize", "cudaStreamNonBlocking"),
    ):
        assert hasattr(runtime, function), function
    for name in vars(ERRORS):
        assert hasattr(runtime.cudaError_t, name), name
    for name in vars(Runtime.cudaMemcpyKind):
        assert hasattr(runtime.cudaMemcpyKind, name), name
    assert {"name", "major", "minor"} <= set(dir(runtime.cudaDeviceProp))
