"""A context of an engine with its stream and its buffers: what one run needs for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...tensors import Array
from ..device import Device, DeviceArray, aligned
from ..shapes import Shape, Shapes
from .engines import Context


class Worker:
    """Runs of one context, one after another. Buffers grow and stay."""

    def __init__(self, device: Device, context: Context, shapes: Shapes, stream: int) -> None:
        """Take a context and a stream; :meth:`close` gives the stream back."""
        self._device = device
        self._context = context
        self._table = shapes
        self.stream = stream
        #: False after a run that the GPU or TensorRT failed: the context is not to be used again
        self.sound = True
        self._profile = -1
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._buffers: dict[str, tuple[int, int]] = {}
        self._read: list[Array] = []

    def upload(self, feeds: Mapping[str, Array]) -> dict[str, DeviceArray]:
        """Queue copies of host arrays into the worker's buffers; they are kept until :meth:`wait`."""
        placed = {}
        for name, array in feeds.items():
            host = np.ascontiguousarray(array)
            placed[name] = DeviceArray(self._buffer(name, host.nbytes), host.shape, host.dtype)
            self._device.upload(placed[name].address, host, self.stream)
            self._read.append(host)
        return placed

    def keep(self, arrays: list[Array]) -> None:
        """Keep what queued copies read until :meth:`wait`."""
        self._read += arrays

    def align(self, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """The same arrays where TensorRT takes them: those that lie unaligned are copied."""
        placed = {}
        for name, array in inputs.items():
            placed[name] = array
            if not array.aligned:
                placed[name] = array._replace(address=self._buffer(name, array.nbytes))
                self._device.copy(placed[name].address, array.address, array.nbytes, self.stream)
        return placed

    def execute(
        self,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, np.dtype[Any]],
        placed: Mapping[str, DeviceArray] | None = None,
    ) -> dict[str, Array]:
        """Run; outputs come to the host when :meth:`wait` returns, but those that are ``placed`` stay.

        Args:
            inputs: all inputs of the engine.
            outputs: element types of outputs to download.
            placed: where other outputs are to lie.

        Raises:
            RequestError: no profile takes the shapes, or TensorRT refuses the run.
            MemoryError: the device has none for a buffer.
        """
        profile = self._table.choose({name: array.shape for name, array in inputs.items()})
        if profile != self._profile:
            self._profile = -1  # if it fails
            self._shapes.clear()
            self._addresses.clear()
            self._context.set_profile(profile, self.stream)
            self._profile = profile
        for name, array in inputs.items():
            if self._shapes.get(name) != array.shape:
                self._shapes.pop(name, None)
                self._context.set_shape(name, array.shape)
                self._shapes[name] = array.shape
            self._set_address(name, array.address)
        for name, array in (placed or {}).items():
            self._set_address(name, array.address)
        given = {}
        for name, dtype in outputs.items():
            given[name] = np.empty(self._context.output_shape(name), dtype)
            self._set_address(name, self._buffer(name, given[name].nbytes))
        try:
            self._context.execute(self.stream)
        except BaseException:
            self.sound = False
            raise
        for name, host in given.items():
            self._device.download(host, self._addresses[name], self.stream)
        return given

    def wait(self) -> None:
        """Wait for all that was queued; only then may a lease end."""
        try:
            self._device.synchronize(self.stream)
        except BaseException:
            self.sound = False
            raise
        finally:
            self._read.clear()

    def close(self) -> None:
        """Give everything back, also where an error that somebody keeps still refers to this."""
        self._context.close()
        for address, _ in self._buffers.values():
            self._device.free(address)
        self._buffers.clear()
        self._device.close_stream(self.stream)

    def _set_address(self, name: str, address: int) -> None:
        if self._addresses.get(name) != address:
            self._addresses.pop(name, None)
            self._context.set_address(name, address)
            self._addresses[name] = address

    def _buffer(self, name: str, nbytes: int) -> int:
        """The address of a buffer of at least so many bytes, and never null."""
        address, size = self._buffers.get(name, (0, 0))
        if size < max(nbytes, 1):
            if size:
                self._device.synchronize(self.stream)  # something queued may still use it
                del self._buffers[name]
                self._device.free(address)
            size = aligned(nbytes)
            address = self._device.allocate(size)
            self._buffers[name] = (address, size)
        return address
