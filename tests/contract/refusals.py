"""What both runtimes say of one thing, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from adexport_runtime import AdexportError, BoundAdapter, Bundle, Engine
from adexport_runtime.tensors import read_tensors

from .capi import NativeError
from .native import NativeEngine

Found = tuple[str, Mapping[str, set[str]]]


def found(call: Callable[[], object]) -> Found | None:
    """The class and the culprits by code of what a call raises; None if it raises nothing."""
    try:
        call()
    except AdexportError as error:
        kind, problems = type(error).__name__, [(str(p.code), p.subject) for p in error.problems]
    except NativeError as error:
        kind, problems = error.kind, [(p.code, p.subject) for p in error.problems]
    else:
        return None
    return kind, {code: {subject for other, subject in problems if other == code} for code, _ in problems}


def same(python: Callable[[], object], native: Callable[[], object]) -> Found | None:
    """What both raise, if it is the same."""
    ours, theirs = found(python), found(native)
    assert theirs == ours
    return ours


def open_native(bundle: Path) -> None:
    NativeEngine(bundle).close()


def open_both(bundle: Path) -> Found | None:
    return same(lambda: Bundle.open(bundle), lambda: open_native(bundle))


def read_bound(path: Path, bundle: Bundle) -> BoundAdapter:
    """What C++ reads; ``bind`` of Python takes files without its mark for another library's."""
    return BoundAdapter.from_file(read_tensors(path), bundle.manifest)


_OPEN: dict[Path, tuple[Engine, NativeEngine]] = {}


def open_once(bundle: Path) -> tuple[Engine, NativeEngine]:
    if bundle not in _OPEN:
        _OPEN[bundle] = Engine.open(bundle, threads=1), NativeEngine(bundle)
    return _OPEN[bundle]
