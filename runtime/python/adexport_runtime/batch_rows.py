"""Slot inputs that come with a row for each row of a batch, for graphs that do not pick rows themselves.

Rows are copied in as they join and stay where they are: while a batch decodes, no step gathers anything,
and a row keeps the weights that it began with, whatever is bound or unbound meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import dtypes
from .bank import Tensors, rounded_sizes, sizes_of
from .slots import SlotInput
from .tensors import Array


class BatchRows:
    """One array for each slot input, ``[rows, …]``; a row that nobody has put is the identity."""

    def __init__(self, slots: Sequence[SlotInput], dtype: np.dtype[Any], rows: int) -> None:
        """Make rows of identities.

        Args:
            slots: the slot inputs; ragged sizes are as large as the rows need.
            dtype: element type, where a slot input does not name its own.
            rows: how many.
        """
        self._slots = {slot.name: slot for slot in slots}
        self._shapes = {slot.name: slot.shape[1:] for slot in slots}
        self._dtypes = {
            slot.name: dtype if slot.dtype == "float" else dtypes.NUMPY[slot.dtype] for slot in slots
        }
        self._rows: list[Mapping[str, int]] = [{} for _ in range(rows)]
        symbols = {size for shape in self._shapes.values() for size in shape if isinstance(size, str)}
        self._sizes = dict.fromkeys(symbols, 0)
        self._arrays: dict[str, Array] = {}
        #: changes whenever arrays are replaced; a row's of ``revisions`` whenever it is written
        self.layout = 0
        self.revisions = [0] * rows
        self._replace(self._sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._arrays.values())

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def put(self, row: int, tensors: Tensors) -> None:
        """Fill a row; slot inputs that are not named get the identity.

        Raises:
            MemoryError: there is none for sizes so large; then the row counts for nothing.
        """
        self._rows[row] = sizes_of(self._shapes, tensors)
        try:
            self._fit()
        except MemoryError:
            self._rows[row] = {}
            raise
        self.revisions[row] += 1
        for name, array in self._arrays.items():
            array[row] = self._identity(name)
            tensor = tensors.get(name)
            if tensor is not None:
                array[row, ...][tuple(slice(size) for size in tensor.shape)] = tensor

    def move(self, source: int, target: int) -> None:
        """Let ``target`` be what ``source`` was, and ``source`` the identity."""
        self._rows[target] = self._rows[source]
        self.revisions[target] += 1
        for array in self._arrays.values():
            array[target] = array[source]
        self.put(source, {})

    def view(self, rows: slice) -> dict[str, Array]:
        """The rows' part of every array, not copied."""
        return {name: array[rows] for name, array in self._arrays.items()}

    def sizes(self, row: int) -> Mapping[str, int]:
        """A row's own ragged sizes."""
        return self._rows[row]

    def _fit(self) -> None:
        """Let ragged sizes be as large as the widest row: all rows pay for it."""
        needed = {
            symbol: max((sizes.get(symbol, 0) for sizes in self._rows), default=0) for symbol in self._sizes
        }
        if rounded_sizes(needed) != self._sizes:
            self._replace(rounded_sizes(needed))

    def _replace(self, sizes: Mapping[str, int]) -> None:
        made: dict[str, Array] = {}
        for name, shape in self._shapes.items():
            old = self._arrays.get(name)
            fixed = [size if isinstance(size, int) else sizes[size] for size in shape]
            if old is not None and list(old.shape[1:]) == fixed:
                continue
            new = np.full([len(self._rows), *fixed], self._identity(name), self._dtypes[name])
            if old is not None:
                common = tuple(slice(min(pair)) for pair in zip(fixed, old.shape[1:], strict=True))
                new[(slice(None), *common)] = old[(slice(None), *common)]
            made[name] = new
        self._arrays |= made  # all or none: sizes that two arrays share stay the same
        self._sizes = dict(sizes)
        self.layout += 1

    def _identity(self, name: str) -> int:
        return 1 if self._slots[name].identity == "ones" else 0
