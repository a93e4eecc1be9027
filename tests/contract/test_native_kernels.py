"""Kernel libraries that both runtimes refuse: kind, codes and culprits are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from adexport_runtime import Engine
from adexport_runtime.backends.kernels import INTERFACE
from tests.runtime.library_stand_ins import FOREIGN, compiled, of_interface

from .capi import needs_native
from .native import NativeEngine
from .refusals import Found, same

pytestmark = needs_native


def refused(bundle: Path, library: Path) -> Found | None:
    return same(lambda: Engine.open(bundle, kernels=library), lambda: NativeEngine(bundle, kernels=library))


@pytest.mark.parametrize("number", [None, 0, INTERFACE + 1])
def test_another_interface(tiny_bundle: Path, tmp_path: Path, number: int | None) -> None:
    library = of_interface(tmp_path / "other.so", number)
    assert refused(tiny_bundle, library) == ("DependencyError", {"version": {str(library)}})


@pytest.mark.parametrize("content", ["foreign", "text", "absent"])
def test_no_kernels(tiny_bundle: Path, tmp_path: Path, content: str) -> None:
    library = tmp_path / "none.so"
    if content == "foreign":
        compiled(FOREIGN, library)
    elif content == "text":
        library.write_text("no library")
    assert refused(tiny_bundle, library) == ("DependencyError", {"package-missing": {str(library)}})
