"""The frozen weights of a bundle's base, read when an adapter's factors depend on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .adapters.neutral import FrozenLinear
from .errors import BundleError, Code, Problem
from .manifest import FrozenWeight, Manifest
from .tensors import Array


class FrozenWeights:
    """Reads single weights of a bundle, without ONNX and without loading the rest."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        """Keep where the weights are."""
        self._root = root
        self._entries = {entry.name: entry for entry in manifest.weights}

    def linear(self, weight: str, bias: str | None) -> FrozenLinear:
        """The frozen layer whose weight and bias have these names, in float32.

        Raises:
            BundleError: the bundle does not say where they are (it is of version 1), or a file is cut.
        """
        entry = self._entry(weight)
        matrix = self._read(entry)
        return FrozenLinear(
            weight=matrix.T if entry.transposed else matrix,
            bias=None if bias is None else self._read(self._entry(bias)),
            transposed=entry.checkpoint_transposed,
        )

    def _entry(self, name: str) -> FrozenWeight:
        entry = self._entries.get(name)
        if entry is not None:
            return entry
        raise BundleError(
            "the frozen weights cannot be read",
            Problem(
                Code.VERSION,
                name,
                got="a bundle that does not say where the weight is",
                expected="a bundle that was built as format version 2",
                cause="traced by an earlier adexport; this adapter's factors depend on the base's weights",
                mend="build the bundle again from its model",
            ),
        )

    def _read(self, entry: FrozenWeight) -> Array:
        count = int(np.prod(entry.shape, dtype=np.int64))
        values: Array = np.fromfile(self._root / entry.path, "<f4", count, offset=entry.offset)
        if values.size != count:
            raise BundleError(
                "the frozen weights cannot be read",
                Problem(
                    Code.DAMAGED,
                    entry.path,
                    got=f"{values.size} values of {entry.name}",
                    expected=str(count),
                    cause="an incomplete copy of the bundle",
                    mend="copy or build the bundle again",
                ),
            )
        return values.reshape(entry.shape)
