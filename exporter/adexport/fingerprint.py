"""The identity of a base: a hash of its frozen float weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from adexport_runtime.tensors import Array


def fingerprint(weights: Mapping[str, Array]) -> str:
    """``sha256:…`` over names, shapes and values, whatever the order of the mapping.

    Args:
        weights: frozen weights by module path, without the base's prefix, in the orientation of
            the checkpoint. Values are compared as float32, so a bfloat16 checkpoint and its
            float32 copy are one base.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = np.ascontiguousarray(weights[name], dtype="<f4")
        digest.update(f"{name}\0{','.join(str(size) for size in values.shape)}\0".encode())
        digest.update(hashlib.sha256(values.data).digest())
    return f"sha256:{digest.hexdigest()}"
