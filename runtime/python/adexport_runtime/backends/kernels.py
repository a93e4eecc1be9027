"""The kernel library: native operators that ONNX Runtime runs in the place of the slots' local functions.

It is data to this package: built by ``make native``, found by the environment or in the package, and
registered with sessions for the CPU. Without it the functions are inlined, and all works the same.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Code, DependencyError, Problem

#: a path, or ``none``
ENVIRONMENT = "ADEXPORT_KERNELS"
LIBRARY = "libadexport_kernels.so"
NONE = "none"
#: which slots' functions a library's operators stand for; raised with CMakeLists.txt of the C++ runtime
INTERFACE = 1
_ISA = "ADEXPORT_KERNELS_ISA"
_MEND = f"make native; or {NONE} in its place, to run without"
_UNFIT = "built for another machine, or no kernel library"

#: where an installed library lies: in the package, and no module of it
BESIDE = Path(__file__).resolve().parents[1] / "native" / LIBRARY

Kernels = str | os.PathLike[str] | None


@dataclass(frozen=True)
class KernelLibrary:
    """What a library says of itself: version, interface, and the instructions that it runs on here."""

    path: Path
    version: str
    interface: int
    isa: str


def find_kernels(asked: Kernels = None) -> Path | None:
    """The library to use: what is asked for, ``$ADEXPORT_KERNELS``, or what lies in the package.

    ``none``: to run without.

    Raises:
        DependencyError: a file was named, and is not there.
    """
    named = os.fspath(asked) if asked is not None else os.environ.get(ENVIRONMENT) or None
    if named is None:
        return BESIDE if BESIDE.is_file() else None
    if named == NONE:
        return None
    path = Path(named)
    if not path.is_file():
        got = "no file" if path.exists() else "no such file"
        where = f"${ENVIRONMENT}" if asked is None else "kernels"
        raise _refused(path, got, f"{where} must name the library itself, or say {NONE}")
    return path.resolve()


def register_kernels(options: Any, path: Path) -> None:
    """Let a session of ONNX Runtime (its ``SessionOptions``) run the library's operators.

    Raises:
        DependencyError: the library does not load here, is no kernel library, or one for other graphs.
    """
    _load(path)  # ONNX Runtime would take any operators, and then run none of them
    try:
        options.register_custom_ops_library(os.fspath(path))
    except Exception as error:
        raise _refused(path, str(error), _UNFIT) from error


def describe_kernels(path: Path) -> KernelLibrary:
    """Load a library and ask it.

    Raises:
        DependencyError: it is no kernel library, one for other graphs, or does not load here.
    """
    library = _load(path)
    if not library.isa:
        wanted = os.environ.get(_ISA, "")
        raise _refused(path, f"{_ISA}={wanted}", "this CPU has no such instructions", mend=f"unset {_ISA}")
    return library


def _load(path: Path) -> KernelLibrary:
    """What a kernel library tells, with the interface that this runtime's graphs need."""
    try:
        library = ctypes.CDLL(os.fspath(path))
        version = _word(library, "adexport_kernels_version")
        interface = _interface(library)
        if interface != INTERFACE:
            raise _refused(
                path,
                "no interface number" if interface is None else f"interface {interface}",
                "built by another version of adexport",
                code=Code.VERSION,
                expected=f"interface {INTERFACE}",
            )
        return KernelLibrary(path, version, interface, _word(library, "adexport_kernels_isa"))
    except (OSError, AttributeError) as error:
        raise _refused(path, str(error), _UNFIT) from error


def _word(library: ctypes.CDLL, name: str) -> str:
    ask = getattr(library, name)
    ask.restype = ctypes.c_char_p
    return str(ask().decode())


def _interface(library: ctypes.CDLL) -> int | None:
    """None: the library is older than the number."""
    try:
        ask = library.adexport_kernels_interface
    except AttributeError:
        return None
    ask.restype = ctypes.c_int32
    return int(ask())


def _refused(
    path: Path,
    got: str,
    cause: str,
    *,
    code: Code = Code.PACKAGE_MISSING,
    expected: str = LIBRARY,
    mend: str = _MEND,
) -> DependencyError:
    problem = Problem(code, str(path), got=got, expected=expected, cause=cause, mend=mend)
    return DependencyError("the kernel library is not to be had", problem)
