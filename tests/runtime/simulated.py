"""A device in host memory that is stricter than a real one, for tests where there is no GPU.

Work is queued: nothing happens before the stream is synchronized. Every access must lie within one live
piece of memory; what is freed is poisoned, and must not be used or freed again.
"""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Callable

import numpy as np

from adexport_runtime.backends.device import ALIGNMENT

Array = np.ndarray


class SimulatedDevice:
    """See :class:`~adexport_runtime.backends.device.Device`. ``copies`` and ``nbytes`` count by kind."""

    name = "a simulated GPU"

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.copies: Counter[str] = Counter()
        self.nbytes: Counter[str] = Counter()
        self._pieces: dict[int, Array] = {}
        self._starts: list[int] = []
        self._next = ALIGNMENT
        self._streams: dict[int, list[Callable[[], None]]] = {}
        self._next_stream = 1
        self._lock = threading.RLock()

    @property
    def allocated(self) -> int:
        return sum(piece.nbytes for piece in self._pieces.values())

    @property
    def pieces(self) -> int:
        return len(self._pieces)

    @property
    def streams(self) -> int:
        return len(self._streams)

    def reset_counts(self) -> None:
        self.copies.clear()
        self.nbytes.clear()

    def allocate(self, nbytes: int) -> int:
        assert nbytes >= 1, "an allocation of nothing"
        with self._lock:
            if self.capacity is not None and self.allocated + nbytes > self.capacity:
                raise MemoryError("no memory left on the GPU")
            address = self._next
            self._next += -(-(nbytes + 1) // ALIGNMENT) * ALIGNMENT + ALIGNMENT
            self._pieces[address] = np.full(nbytes, 0xFF, np.uint8)  # NaN, whatever the float type
            bisect.insort(self._starts, address)
            return address

    def free(self, address: int) -> None:
        with self._lock:
            assert address in self._pieces, f"{address} is freed that is not allocated (any more)"
            self._pieces.pop(address)[:] = 0xFF
            self._starts.remove(address)

    def memory(self, address: int, nbytes: int) -> Array:
        """The bytes from an address on, which must lie within one piece."""
        with self._lock:
            at = bisect.bisect_right(self._starts, address) - 1
            assert at >= 0, f"{address} was never allocated"
            piece = self._pieces[self._starts[at]]
            offset = address - self._starts[at]
            assert offset + nbytes <= piece.nbytes, f"{nbytes} bytes at {address}: out of bounds or freed"
            return piece[offset : offset + nbytes]

    def view(self, address: int, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """Device memory as an array."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self.memory(address, nbytes).view(dtype).reshape(shape)

    def upload(self, address: int, array: Array, stream: int) -> None:
        def work() -> None:
            self.memory(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

        assert array.flags.c_contiguous
        self._queue("upload", array.nbytes, stream, work)

    def download(self, array: Array, address: int, stream: int) -> None:
        def work() -> None:
            array.reshape(-1).view(np.uint8)[:] = self.memory(address, array.nbytes)

        assert array.flags.c_contiguous
        self._queue("download", array.nbytes, stream, work)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        def work() -> None:
            self.memory(target, nbytes)[:] = self.memory(source, nbytes)

        assert target + nbytes <= source or source + nbytes <= target or not nbytes, "an overlap"
        self._queue("copy", nbytes, stream, work)

    def zero(self, address: int, nbytes: int, stream: int) -> None:
        def work() -> None:
            self.memory(address, nbytes)[:] = 0

        self._queue("zero", nbytes, stream, work)

    def run(self, stream: int, work: Callable[[], None]) -> None:
        """Queue any work, as a kernel is."""
        self._queue("run", 0, stream, work)

    def open_stream(self) -> int:
        with self._lock:
            stream, self._next_stream = self._next_stream, self._next_stream + 1
            self._streams[stream] = []
            return stream

    def close_stream(self, stream: int) -> None:
        with self._lock:
            assert not self._streams.pop(stream), "a stream is closed with work in it"

    def synchronize(self, stream: int) -> None:
        with self._lock:
            queue, self._streams[stream] = self._streams[stream], []
        for work in queue:
            work()

    def _queue(self, kind: str, nbytes: int, stream: int, work: Callable[[], None]) -> None:
        with self._lock:
            self.copies[kind] += 1
            self.nbytes[kind] += nbytes
            self._streams[stream].append(work)
