"""KV caches in one buffer for each layer's keys and values, read and written in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..caches import Generation
from ..tensors import Array


class KvCaches:
    """The caches of a batch: ``[rows, kv_heads, room, size]`` for keys and values of every layer."""

    def __init__(self, ort: Any, generation: Generation, dtype: np.dtype[Any], rows: int, room: int, *,
                 device: str) -> None:  # fmt: skip
        """Reserve the memory; on the CPU it is taken as texts grow.

        Args:
            ort: the onnxruntime module.
            generation: the layers.
            dtype: of keys and values.
            rows: how many texts at once.
            room: tokens of the longest one.
            device: ``cpu`` or ``cuda``.
        """
        self.rows, self.room = rows, room
        self._host: list[Array] = []
        self._values: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._itemsize = dtype.itemsize
        for cache in generation.caches:
            shape = (rows, cache.kv_heads, room, cache.size)
            pairs = ((cache.past_key, cache.present_key), (cache.past_value, cache.present_value))
            for past, present in pairs:
                if device == "cpu":
                    self._host.append(np.zeros(shape, dtype))
                    value = self._host[-1]
                else:
                    value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)
                for name in (past, present):
                    self._values[name], self._shapes[name] = value, shape

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, when full."""
        return sum(int(np.prod(shape)) for shape in self._shapes.values()) * self._itemsize // 2

    @property
    def movable(self) -> bool:
        """Whether rows can be moved: what lies on a device stays where it is."""
        return bool(self._host) or not self._values

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a row over another row."""
        for array in self._host:
            array[target, :, :tokens] = array[source, :, :tokens]

    def buffer(self, name: str, rows: slice) -> tuple[int, tuple[int, ...]]:
        """The address and the shape of the rows' part of a cache."""
        shape = self._shapes[name]
        value = self._values[name]
        start = value.ctypes.data if isinstance(value, np.ndarray) else value.data_ptr()
        first, last, _ = rows.indices(self.rows)
        return start + first * int(np.prod(shape[1:])) * self._itemsize, (last - first, *shape[1:])
