"""KV caches on a device, for graphs that write them in place and for those that give new ones."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...caches import Generation
from ...engine_file import CacheForm
from ...tensors import Array
from ..device import Device, DeviceArray, aligned


class Span(NamedTuple):
    """Where the caches of side by side rows lie for one run, by input and by output name.

    ``back``: what is to be copied behind the run, from where to where.
    """

    past: dict[str, DeviceArray]
    present: dict[str, DeviceArray]
    back: list[tuple[DeviceArray, DeviceArray]]


class _Memory:
    """Pieces of device memory that are freed with their owner."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pieces: list[int] = []

    def allocate(self, nbytes: int) -> int:
        self._pieces.append(self._device.allocate(aligned(nbytes)))
        return self._pieces[-1]

    def free(self) -> None:
        while self._pieces:
            self._device.free(self._pieces.pop())


class DeviceCaches:
    """The caches of a batch: ``[rows, kv_heads, room, size]`` for keys and values of every layer.

    A graph of the form ``copied`` must not write where it reads: there are two sides then, and each row is
    on one of them. A run goes from the side that most of its rows are on to the other; rows that are not
    there are copied first. So nothing is copied while the same rows decode, and a row at most once when it
    joins them.
    """

    movable = True

    def __init__(
        self,
        device: Device,
        generation: Generation,
        form: CacheForm,
        dtype: np.dtype[Any],
        rows: int,
        room: int,
    ) -> None:
        """Reserve the memory; it is freed when nobody holds the caches any more.

        Args:
            device: where.
            generation: the layers.
            form: whether the graph writes in place (``in-place``) or not (``copied``).
            dtype: of keys and values.
            rows: how many texts at once.
            room: tokens of the longest one.

        Raises:
            MemoryError: the device has not enough.
        """
        self.rows, self.room = rows, room
        self._device = device
        self._names = tuple(zip(generation.past, generation.outputs, strict=True))
        self._sides: list[int] = [0] * rows
        memory = _Memory(device)
        self._stream = device.open_stream()
        self._memory = memory
        self._scratch: dict[tuple[str, int], DeviceArray] = {}
        shapes = [(rows, c.kv_heads, room, c.size) for c in generation.caches for _ in ("key", "value")]
        self._arrays: list[dict[str, DeviceArray]] = []
        try:
            for _ in range(2 if form == "copied" else 1):
                side = {}
                for (past, _present), shape in zip(self._names, shapes, strict=True):
                    array = DeviceArray(0, shape, dtype)
                    side[past] = array._replace(address=memory.allocate(array.nbytes))
                self._arrays.append(side)
        except BaseException:
            memory.free()
            device.close_stream(self._stream)
            raise
        weakref.finalize(self, _release, device, memory, self._stream)

    @property
    def nbytes(self) -> int:
        """Bytes of both sides, or of the one there is."""
        return sum(array.nbytes for side in self._arrays for array in side.values())

    def move(self, source: int, target: int, tokens: int) -> None:  # noqa: ARG002
        """Copy a row over another row, whole: one piece for each layer."""
        side = self._sides[target] = self._sides[source]
        try:
            for array in self._arrays[side].values():
                self._copy_row(array, source, array, target, self._stream)
        finally:
            self._device.synchronize(self._stream)

    def span(self, rows: slice, past_lengths: Array, stream: int) -> Span:
        """Get rows ready for a run, by copies queued on a stream.

        Rows without a past are emptied: what a text before left there, NaN too, must not reach a sum.
        """
        start, stop, _ = rows.indices(self.rows)
        held = [row for row in range(start, stop) if past_lengths[row - start]]
        side = self._side_of_most(held)
        for row in held:
            if self._sides[row] != side:
                for name, array in self._arrays[side].items():
                    self._copy_row(self._arrays[1 - side][name], row, array, row, stream)
        for row in range(start, stop):
            if row not in held:
                for array in self._arrays[side].values():
                    place = array.rows(row, row + 1)
                    self._device.zero(place.address, place.nbytes, stream)
            self._sides[row] = side
        return self._span(start, stop, side, stream)

    def done(self, rows: slice) -> None:
        """The run has happened: its rows are on the other side now."""
        if len(self._arrays) == 1:
            return
        for row in range(*rows.indices(self.rows)):
            self._sides[row] = 1 - self._sides[row]

    def _side_of_most(self, held: Sequence[int]) -> int:
        there = sum(self._sides[row] for row in held)
        return int(2 * there > len(held))

    def _span(self, start: int, stop: int, side: int, stream: int) -> Span:
        """The addresses; rows that begin where TensorRT takes no address go through other memory."""
        span = Span({}, {}, [])
        other = (side + 1) % len(self._arrays)
        for past, present in self._names:
            source = self._arrays[side][past].rows(start, stop)
            target = self._arrays[other][past].rows(start, stop)
            span.past[past], span.present[present] = source, target
            if not source.aligned:
                span.past[past] = self._aside(past, side, source)
                self._device.copy(span.past[past].address, source.address, source.nbytes, stream)
            if not target.aligned:
                span.present[present] = self._aside(past, other, target)
                span.back.append((span.present[present], target))
        return span

    def _aside(self, name: str, side: int, array: DeviceArray) -> DeviceArray:
        kept = self._scratch.get((name, side))
        if kept is None:  # large enough for all rows, so that it is taken once
            nbytes = self._arrays[side][name].nbytes
            kept = self._scratch[name, side] = array._replace(address=self._memory.allocate(nbytes))
        return array._replace(address=kept.address)

    def _copy_row(
        self, source: DeviceArray, source_row: int, target: DeviceArray, target_row: int, stream: int
    ) -> None:
        where, place = source.rows(source_row, source_row + 1), target.rows(target_row, target_row + 1)
        self._device.copy(place.address, where.address, where.nbytes, stream)


def _release(device: Device, memory: _Memory, stream: int) -> None:
    memory.free()
    device.close_stream(stream)
