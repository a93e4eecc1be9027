"""The simulated device with addresses of real memory, so that a session on the CPU can be bound to it."""

from __future__ import annotations

import bisect
from pathlib import Path

import numpy as np

from adexport_runtime import Bundle, Engine
from adexport_runtime.backends import open as providers
from adexport_runtime.backends.device import ALIGNMENT
from adexport_runtime.backends.onnxruntime import open_session
from adexport_runtime.backends.ort_gpu.backend import OrtGpuBackend
from adexport_runtime.profiles import parse_profiles

from .simulated import Array, SimulatedDevice


class HostDevice(SimulatedDevice):
    """Memory that is freed stays, poisoned, as long as the device: a late read sees NaN and no fault."""

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__(capacity)
        self._kept: list[Array] = []

    def allocate(self, nbytes: int) -> int:
        assert nbytes >= 1, "an allocation of nothing"
        with self._lock:
            if self.capacity is not None and self.allocated + nbytes > self.capacity:
                raise MemoryError("no memory left on the GPU")
            memory = np.full(nbytes + ALIGNMENT, 0xFF, np.uint8)  # NaN, whatever the float type
            self._kept.append(memory)
            start = -memory.ctypes.data % ALIGNMENT
            address = memory.ctypes.data + start
            self._pieces[address] = memory[start : start + nbytes]
            bisect.insort(self._starts, address)
            return address


def open_simulated(root: Path, device: HostDevice, *profile: str, rows: int | None = None) -> Engine:
    """The backend for GPUs, with a session on the CPU that is bound to the device."""

    def opened(bundle: Bundle, settings: providers.Settings) -> OrtGpuBackend:
        manifest = bundle.manifest
        session = open_session(bundle.model_path, threads=1)
        profiles = parse_profiles(profile, manifest) if profile else ()
        return OrtGpuBackend(session, manifest, device, profiles, name=str(root), kind="cpu")

    before = providers.OPENERS["cuda"]
    providers.OPENERS["cuda"] = opened
    try:
        return Engine.open(root, "cuda", rows)
    finally:
        providers.OPENERS["cuda"] = before
