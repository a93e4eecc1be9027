"""Memory of a device and copies to and from it: all that backends ask of a GPU, in one interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import Code, Problem, RequestError
from ..tensors import Array

#: what TensorRT asks of the address of an input or an output, in bytes
ALIGNMENT = 256


class DeviceArray(NamedTuple):
    """An array in device memory; it owns nothing."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> DeviceArray:
        """The rows from ``start`` up to ``stop``, where they lie."""
        return DeviceArray(
            self.address + start * self.row_bytes, (stop - start, *self.shape[1:]), self.dtype
        )

    @property
    def aligned(self) -> bool:
        """Whether TensorRT takes the address."""
        return self.address % ALIGNMENT == 0


def aligned(nbytes: int) -> int:
    """The next multiple of the alignment; at least one, so that an empty array has an address too."""
    return max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT


class Device(Protocol):
    """A GPU. Addresses and streams are plain numbers; safe to call from several threads.

    Copies and fills are queued: those of one stream happen in order, and all have happened when
    :meth:`synchronize` returns. Until then host arrays must be left as they are, and memory not freed.
    """

    @property
    def name(self) -> str:
        """What the device calls itself."""
        ...

    def allocate(self, nbytes: int) -> int:
        """The address of new memory, aligned to :data:`ALIGNMENT`; ``nbytes`` is at least 1.

        Raises:
            MemoryError: there is not so much left.
        """
        ...

    def free(self, address: int) -> None:
        """Give back what :meth:`allocate` gave."""
        ...

    def upload(self, address: int, array: Array, stream: int) -> None:
        """Copy a C-contiguous host array to the device."""
        ...

    def download(self, array: Array, address: int, stream: int) -> None:
        """Fill a C-contiguous host array from the device."""
        ...

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copy within the device; the two must not overlap."""
        ...

    def zero(self, address: int, nbytes: int, stream: int) -> None:
        """Fill memory with zero bytes."""
        ...

    def open_stream(self) -> int:
        """A new queue of work."""
        ...

    def close_stream(self, stream: int) -> None:
        """Give back a stream on which nothing is queued any more."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait until all that was queued on the stream has happened."""
        ...


@contextmanager
def enough_memory() -> Iterator[None]:
    """Say of a run for which the device has no memory what can be done.

    Raises:
        RequestError: in the place of MemoryError.
    """
    try:
        yield
    except MemoryError as error:
        raise RequestError(
            "the run failed",
            Problem(
                Code.RUN_FAILED,
                "device memory",
                got=str(error),
                expected="enough for the adapters and the run",
                mend="open the engine with fewer rows, or run smaller batches",
            ),
        ) from error
