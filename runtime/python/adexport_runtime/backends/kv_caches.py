"""KV caches in one buffer for each layer's keys and values, read and written in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..caches import Generation
from ..tensors import Array


class KvCaches:
    """The caches of a batch in host memory, which is taken as texts grow.

    ``[rows, kv_heads, room, size]`` for keys and values of every layer.
    """

    def __init__(self, generation: Generation, dtype: np.dtype[Any], rows: int, room: int) -> None:
        """Reserve the memory.

        Args:
            generation: the layers.
            dtype: of keys and values.
            rows: how many texts at once.
            room: tokens of the longest one.
        """
        self.rows = rows
        self._arrays: list[Array] = []
        self._by_name: dict[str, Array] = {}
        for cache in generation.caches:
            pairs = ((cache.past_key, cache.present_key), (cache.past_value, cache.present_value))
            for names in pairs:
                self._arrays.append(np.zeros((rows, cache.kv_heads, room, cache.size), dtype))
                self._by_name |= dict.fromkeys(names, self._arrays[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, when full."""
        return sum(array.nbytes for array in self._arrays)

    @property
    def movable(self) -> bool:
        """Rows can be moved."""
        return True

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a row over another row."""
        for array in self._arrays:
            array[target, :, :tokens] = array[source, :, :tokens]

    def buffer(self, name: str, rows: slice) -> tuple[int, tuple[int, ...]]:
        """The address and the shape of the rows' part of a cache."""
        part = self._by_name[name][rows]
        return part.ctypes.data, part.shape
