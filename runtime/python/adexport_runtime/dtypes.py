"""The element types of the bundle format, by their names in the manifest."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

#: name in the manifest -> numpy dtype (bfloat16 comes from ml_dtypes)
NUMPY: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
}


def name_of(dtype: np.dtype[Any]) -> str:
    """The manifest's name of a numpy dtype; ``str(dtype)`` where the format has none."""
    return next((name for name, known in NUMPY.items() if known == dtype), str(dtype))


def largest(name: str) -> float:
    """The largest finite value of a float type."""
    return float(ml_dtypes.finfo(NUMPY[name]).max)  # type: ignore[no-untyped-call]
