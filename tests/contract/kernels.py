"""The kernel library that `make native` built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .capi import BUILT


def kernel_library() -> Path:
    """``$ADEXPORT_KERNELS``, or what `make native` installed."""
    named = os.environ.get("ADEXPORT_KERNELS")
    if named and named != "none":
        return Path(named)
    found = sorted(BUILT.glob("lib*/**/libadexport_kernels.so"))
    assert found, "no libadexport_kernels: make native builds it"
    return found[0]


def _there() -> bool:
    try:
        return kernel_library().is_file()
    except AssertionError:
        return False


needs_kernels = pytest.mark.skipif(
    not _there() and not os.environ.get("CI"), reason="no libadexport_kernels: make native builds it"
)
