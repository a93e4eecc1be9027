"""Slot inputs in device memory: adapters are copied there row by row, when a run first needs them.

A row of the bank belongs to one binding while anybody leases it, so a row that a run reads is never
written: a run that leases a row of another generation than the device has is the only one that holds it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import dtypes
from ..bank import IDENTITY_ROW, Lease, Tensors
from ..batch_rows import BatchRows
from ..errors import Code, Problem, RequestError
from ..graph_io import kind_of
from ..profiles import Profile
from ..slots import SlotInput
from ..tensors import Array
from .device import Device, DeviceArray, aligned

DeviceArrays = Mapping[str, DeviceArray]


def device_shapes(
    slots: Sequence[SlotInput], arrays: Tensors, profile: Profile | None, rows: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """The shapes that host arrays get on a device: with a profile, one size for each kind of ragged sizes.

    All ranks are then as large as the largest, and kept within the profile: where none has any, the rank
    is the profile's smallest; one that the host has rounded up is cut to its largest. ``rows``: how many,
    whatever the profile says.
    """
    sizes: dict[str, int] = {}
    if profile is not None:
        for slot in slots:
            for symbol, size in zip(slot.shape, arrays[slot.name].shape, strict=True):
                if isinstance(symbol, str):
                    kind = kind_of(symbol)
                    sizes[kind] = max(size, sizes.get(kind, 0))
        sizes = {
            kind: min(max(size, profile.sizes[kind].min), profile.sizes[kind].max)
            for kind, size in sizes.items()
            if kind in profile.sizes
        }
    found = []
    for slot in slots:
        shape = [
            sizes.get(kind_of(symbol), size) if isinstance(symbol, str) else size
            for symbol, size in zip(slot.shape, arrays[slot.name].shape, strict=True)
        ]
        found.append((shape[0] if rows is None else rows, *shape[1:]))
    return tuple(found)


class SlotMemory:
    """One array for each slot input in one piece of device memory, written row by row."""

    def __init__(
        self,
        device: Device,
        slots: Sequence[SlotInput],
        shapes: Sequence[tuple[int, ...]],
        dtype: np.dtype[Any],
    ) -> None:
        """Take the memory; it holds anything until rows are written.

        Args:
            device: where.
            slots: the slot inputs.
            shapes: of each, rows first.
            dtype: element type, where a slot input does not name its own.

        Raises:
            MemoryError: the device has not enough.
        """
        self._device = device
        self._slots = slots
        self.shapes = tuple(shapes)
        self.sizes = {
            symbol: size
            for slot, shape in zip(slots, shapes, strict=True)
            for symbol, size in zip(slot.shape[1:], shape[1:], strict=True)
            if isinstance(symbol, str)
        }
        kinds = [dtype if slot.dtype == "float" else dtypes.NUMPY[slot.dtype] for slot in slots]
        plain = [DeviceArray(0, shape, kind) for shape, kind in zip(self.shapes, kinds, strict=True)]
        self.nbytes = sum(aligned(array.nbytes) for array in plain)
        self._address = device.allocate(self.nbytes) if self.nbytes else None
        place = self._address or 0
        self.arrays: dict[str, DeviceArray] = {}
        for slot, array in zip(slots, plain, strict=True):
            self.arrays[slot.name] = array._replace(address=place)
            place += aligned(array.nbytes)

    def write(self, row: int, tensors: Tensors, source: int, stream: int) -> list[Array]:
        """Queue copies of row ``source`` of host arrays into ``row``; what they read must outlive them.

        Returns what must be kept until the stream is synchronized.
        """
        read = []
        for slot in self._slots:
            assert row < self.arrays[slot.name].shape[0], "the bank has more rows than the device"
            target = self.arrays[slot.name].rows(row, row + 1)
            host = self._row(slot, tensors[slot.name][source, ...], target)
            self._device.upload(target.address, host, stream)
            read.append(host)
        return read

    @staticmethod
    def _row(slot: SlotInput, host: Array, target: DeviceArray) -> Array:
        """A row of a host array in the device's sizes."""
        shape = target.shape[1:]
        if host.shape == shape:
            return np.ascontiguousarray(host)
        made = np.full(shape, 1 if slot.identity == "ones" else 0, target.dtype)
        common = tuple(slice(min(pair)) for pair in zip(host.shape, shape, strict=True))
        made[common] = host[common]
        return made

    def check(self, subject: str, sizes: Mapping[str, int]) -> None:
        """Refuse an adapter that would be cut.

        Raises:
            RequestError: naming every size that is too large.
        """
        problems = [
            Problem(
                Code.RANK_ABOVE_MAX,
                subject,
                got=f"{symbol} of {size}",
                expected=f"at most {self.sizes[symbol]} on the device",
                mend="adexport build BUNDLE --target tensorrt with a --profile that holds it",
            )
            for symbol, size in sizes.items()
            if size > self.sizes.get(symbol, size)
        ]
        if problems:
            raise RequestError("the adapter does not fit", problems)

    def free(self) -> None:
        """Give the memory back."""
        if self._address is not None:
            self._device.free(self._address)
            self._address = None


@dataclass
class _Resident:
    """Memory of one layout, and which generation each row holds there."""

    memory: SlotMemory
    layout: int
    generations: dict[int, int] = field(default_factory=dict)
    users: int = 0


class DeviceBank:
    """The bank's rows on a device. Safe to use from several threads.

    One copy of an adapter's row for each slot input is all that binding it costs. When the bank's arrays
    change their sizes, new memory takes the place of the old, which is freed behind the last run that
    reads it.
    """

    def __init__(
        self,
        device: Device,
        slots: Sequence[SlotInput],
        dtype: np.dtype[Any],
        profile: Profile | None = None,
    ) -> None:
        """Take nothing yet.

        Args:
            device: where.
            slots: the slot inputs that the graph takes.
            dtype: element type, where a slot input does not name its own.
            profile: the sizes that an engine can take; None: those of the bank.
        """
        self._device = device
        self._slots = tuple(slots)
        self._dtype = dtype
        self._profile = profile
        self._lock = threading.Lock()
        self._residents: list[_Resident] = []
        self._stream: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        with self._lock:
            return sum(resident.memory.nbytes for resident in self._residents)

    @contextmanager
    def hold(self, lease: Lease) -> Iterator[DeviceArrays]:
        """The slot inputs with the lease's rows in them, for one run.

        The caller must have synchronized its stream when it leaves, and hold the lease all the while.

        Raises:
            MemoryError: the device has not enough.
            RequestError: an adapter is larger than the profile.
        """
        shapes = device_shapes(self._slots, lease.arrays, self._profile)
        with self._lock:
            resident = self._resident(shapes, lease)
            resident.users += 1
        try:
            self._bring(resident, lease)
            yield resident.memory.arrays
        finally:
            with self._lock:
                resident.users -= 1
                self._drop_unused()

    def close(self) -> None:
        """Free everything; no run may be under way."""
        with self._lock:
            for resident in self._residents:
                resident.memory.free()
            self._residents.clear()
            if self._stream is not None:
                self._device.close_stream(self._stream)
                self._stream = None

    def _resident(self, shapes: tuple[tuple[int, ...], ...], lease: Lease) -> _Resident:
        """The memory of these shapes; new memory has the identity (under ``_lock``)."""
        found = next((one for one in self._residents if one.memory.shapes == shapes), None)
        if found is None:
            self._residents.append(found := self._made(shapes, lease))
        found.layout = max(found.layout, lease.layout)
        self._drop_unused(keep=found)
        return found

    def _made(self, shapes: tuple[tuple[int, ...], ...], lease: Lease) -> _Resident:
        self._drop_unused(all_but_newest=False)  # first: two layouts may not fit at once
        memory = SlotMemory(self._device, self._slots, shapes, self._dtype)
        try:
            stream = self._queue()
            try:
                read = memory.write(IDENTITY_ROW, lease.arrays, IDENTITY_ROW, stream)
            finally:
                self._device.synchronize(stream)  # nothing may be queued for memory that is freed
            del read
        except BaseException:
            memory.free()
            raise
        return _Resident(memory, lease.layout)

    def _bring(self, resident: _Resident, lease: Lease) -> None:
        """Copy the rows that the device has not, and wait until they are there."""
        if all(resident.generations.get(lease.rows[n]) == g for n, g in lease.generations.items()):
            return  # what is noted has been copied, and stays while it is leased
        with self._lock:
            stream = self._queue()
            read: list[Array] = []
            brought = {}
            try:
                for name, generation in lease.generations.items():
                    row = lease.rows[name]
                    if resident.generations.get(row) != generation:
                        resident.memory.check(name, lease.sizes[name])
                        resident.generations.pop(row, None)
                        read += resident.memory.write(row, lease.arrays, row, stream)
                        brought[row] = generation
            finally:
                self._device.synchronize(stream)
            del read
            resident.generations |= brought

    def _drop_unused(self, keep: _Resident | None = None, *, all_but_newest: bool = True) -> None:
        """Free what no run reads and no later run will (under ``_lock``)."""
        newest = max(self._residents, key=lambda one: one.layout, default=None) if all_but_newest else None
        for resident in list(self._residents):
            if not resident.users and resident is not newest and resident is not keep:
                resident.memory.free()
                self._residents.remove(resident)

    def _queue(self) -> int:
        if self._stream is None:
            self._stream = self._device.open_stream()
        return self._stream


class DeviceRows:
    """The rows of a batch on a device, for one batch: not for several threads at once."""

    def __init__(
        self,
        device: Device,
        slots: Sequence[SlotInput],
        dtype: np.dtype[Any],
        profile: Profile | None = None,
    ) -> None:
        """Take nothing yet; see :class:`DeviceBank`."""
        self._device = device
        self._slots = tuple(slots)
        self._dtype = dtype
        self._profile = profile
        self._memory: SlotMemory | None = None
        self._revisions: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self._memory.nbytes if self._memory is not None else 0

    def bring(
        self, rows: BatchRows, part: slice, stream: int, *, each: bool = False
    ) -> tuple[DeviceArrays, list[Array]]:
        """Queue copies of the rows of ``part`` that have changed; their arrays, and what to keep.

        The second of what is returned must live until the stream is synchronized. Arrays may lie
        unaligned: see :attr:`DeviceArray.aligned`. ``each``: where one row stands for all, the device
        gets it for each of ``part``.

        Raises:
            MemoryError: the device has not enough.
            RequestError: a row is larger than the profile.
        """
        one = each and len(rows) == 1
        count = max(part.stop, 1) if one else len(rows)
        start, stop, _ = part.indices(count)
        whole = rows.view(slice(0, len(rows)))
        shapes = device_shapes(self._slots, whole, self._profile, count)
        if self._memory is None or self._memory.shapes != shapes:
            self.close()
            self._memory = SlotMemory(self._device, self._slots, shapes, self._dtype)
        read: list[Array] = []
        for row in range(start, stop):
            source = 0 if one else row
            if self._revisions.get(row) != rows.revisions[source]:
                self._memory.check(f"row {source}", rows.sizes(source))
                read += self._memory.write(row, whole, source, stream)
                self._revisions[row] = rows.revisions[source]
        return {name: array.rows(start, stop) for name, array in self._memory.arrays.items()}, read

    def forget(self) -> None:
        """Copy every row again when it is next needed: after a run that failed half way."""
        self._revisions.clear()

    def close(self) -> None:
        """Free the memory."""
        self._revisions.clear()
        if self._memory is not None:
            self._memory.free()
            self._memory = None
