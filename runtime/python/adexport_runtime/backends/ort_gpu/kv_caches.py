"""What a batch that decodes has on a device: KV caches read and written in place, and its rows' slots."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from ...batch_rows import BatchRows
from ...caches import Generation
from ...tensors import Array
from ..device import Device, DeviceArray, aligned
from ..device_bank import DeviceArrays, DeviceRows


class DeviceCaches:
    """The caches of a batch, in one piece of device memory."""

    def __init__(
        self,
        device: Device,
        slots: DeviceRows,
        generation: Generation,
        dtype: np.dtype[Any],
        rows: int,
        room: int,
    ) -> None:
        """Take the memory.

        Args:
            device: where.
            slots: the slot inputs of the batch's rows.
            generation: the layers.
            dtype: of keys and values.
            rows: how many texts at once.
            room: tokens of the longest one.

        Raises:
            MemoryError: the device has not enough.
        """
        self.rows, self.room = rows, room
        self._slots = slots
        self._stream = device.open_stream()
        self._device = device
        self._arrays: dict[str, DeviceArray] = {}
        self._names = tuple(generation.past)
        place = 0
        for cache in generation.caches:
            shape = (rows, cache.kv_heads, room, cache.size)
            pairs = ((cache.past_key, cache.present_key), (cache.past_value, cache.present_value))
            for names in pairs:
                array = DeviceArray(place, shape, dtype)
                self._arrays |= dict.fromkeys(names, array)
                place += aligned(array.nbytes)
        try:
            start = device.allocate(max(place, 1))
        except MemoryError:
            device.close_stream(self._stream)
            raise
        self._arrays = {n: a._replace(address=a.address + start) for n, a in self._arrays.items()}
        weakref.finalize(self, _release, device, start, slots, self._stream)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, and of the slot inputs as they are."""
        return sum(self._arrays[name].nbytes for name in self._names) + self._slots.nbytes

    @property
    def movable(self) -> bool:
        """Rows can be moved."""
        return True

    def move(self, source: int, target: int, tokens: int) -> None:  # noqa: ARG002
        """Copy a row over another row: whole, one copy for each cache instead of one for each head."""
        try:
            for name in self._names:
                array = self._arrays[name]
                start, end = (array.rows(row, row + 1).address for row in (source, target))
                self._device.copy(end, start, array.row_bytes, self._stream)
        finally:
            self._device.synchronize(self._stream)

    def array(self, name: str, rows: slice) -> DeviceArray:
        """The rows' part of a cache."""
        first, last, _ = rows.indices(self.rows)
        return self._arrays[name].rows(first, last)

    def ready(self, rows: slice, past_lengths: Array, slots: BatchRows) -> DeviceArrays:
        """The slot inputs of rows that are about to run, when all that is queued for them has happened.

        Rows without a past are emptied: what a text before left there, NaN too, must not reach a sum.
        """
        first, last, _ = rows.indices(self.rows)
        try:
            for row in range(first, last):
                if not past_lengths[row - first]:
                    for name in self._names:
                        place = self._arrays[name].rows(row, row + 1)
                        self._device.zero(place.address, place.nbytes, self._stream)
            arrays, read = self._slots.bring(slots, rows, self._stream)
        except BaseException:
            self._slots.forget()
            raise
        finally:
            self._device.synchronize(self._stream)
        del read
        return arrays


def _release(device: Device, address: int, slots: DeviceRows, stream: int) -> None:
    slots.close()
    device.free(address)
    device.close_stream(stream)
