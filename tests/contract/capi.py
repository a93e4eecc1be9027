"""The C interface of libadexport for ctypes: its structures, its functions, its errors."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

#: where `make native` puts it
BUILT = Path(__file__).resolve().parents[2] / "build" / "native" / "install"
KINDS = {
    1: "BundleError",
    2: "AdapterError",
    3: "ProviderError",
    4: "RequestError",
    5: "UnknownAdapterError",
    6: "BankFullError",
    7: "DependencyError",
    8: "InternalError",
}
REASONS = {1: "eos", 2: "length", 3: "cancelled", 4: "error"}
DTYPES = {1: np.dtype(np.float32), 2: np.dtype(np.int64), 3: np.dtype(np.int32)}


class Problem(ctypes.Structure):
    _fields_ = [(name, c_char_p) for name in ("code", "subject", "got", "expected", "cause", "mend")]


class Option(ctypes.Structure):
    _fields_ = [("key", c_char_p), ("value", c_char_p)]


class Options(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("provider", c_char_p),
        ("ort_library", c_char_p),
        ("kernels", c_char_p),
        ("rows", c_int64),
        ("threads", c_int32),
        ("spin", c_int32),
        ("provider_options", POINTER(Option)),
        ("provider_option_count", c_size_t),
    ]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p),
        ("dtype", c_int32),
        ("data", c_void_p),
        ("shape", POINTER(c_int64)),
        ("rank", c_size_t),
    ]


class Prompt(ctypes.Structure):
    _fields_ = [("ids", POINTER(c_int64)), ("count", c_size_t), ("adapter", c_char_p)]


class Sampling(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("max_new_tokens", c_int64),
        ("temperature", c_double),
        ("top_k", c_int64),
        ("top_p", c_double),
        ("repetition_penalty", c_double),
        ("has_seed", c_int32),
        ("seed", c_uint64),
        ("eos_ids", POINTER(c_int64)),
        ("eos_count", c_size_t),
        ("has_eos", c_int32),
    ]


OnToken = ctypes.CFUNCTYPE(c_int32, c_void_p, c_size_t, c_int64)


@dataclass(frozen=True)
class NativeProblem:
    """One culprit, as adexport_runtime.Problem has it."""

    code: str
    subject: str
    got: str
    expected: str
    cause: str
    mend: str


class NativeError(Exception):
    """What the library refused."""

    def __init__(self, kind: str, message: str, problems: Sequence[NativeProblem]) -> None:
        super().__init__(message)
        self.kind = kind
        self.problems = tuple(problems)

    @property
    def codes(self) -> frozenset[str]:
        return frozenset(problem.code for problem in self.problems)


def library_path() -> Path | None:
    """``$ADEXPORT_LIBRARY``, or what `make native` built."""
    named = os.environ.get("ADEXPORT_LIBRARY")
    if named:
        return Path(named)
    return next(iter(sorted(BUILT.glob("lib*/**/libadexport.so"))), None)


def ort_library() -> Path:
    """``$ADEXPORT_ORT_LIBRARY``, or the shared library in the installed package of ONNX Runtime."""
    if named := os.environ.get("ADEXPORT_ORT_LIBRARY"):
        return Path(named)
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    return next((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"))


needs_native = pytest.mark.skipif(
    library_path() is None and not os.environ.get("CI"), reason="no libadexport: make native builds it"
)


@cache
def library() -> ctypes.CDLL:
    """The library, with the types of its functions."""
    path = library_path()
    assert path is not None, "no libadexport: make native builds it"
    lib = ctypes.CDLL(os.fspath(path))
    fail, handle = c_void_p, c_void_p
    for name, result, arguments in (
        ("version", c_char_p, []),
        ("error_get_kind", c_int32, [c_void_p]),
        ("error_message", c_char_p, [c_void_p]),
        ("error_problem_count", c_size_t, [c_void_p]),
        ("error_get_problem", Problem, [c_void_p, c_size_t]),
        ("error_free", None, [c_void_p]),
        ("engine_open", fail, [c_char_p, POINTER(Options), POINTER(handle)]),
        ("engine_close", None, [handle]),
        ("engine_provider", c_char_p, [handle]),
        ("engine_ort_version", c_char_p, [handle]),
        ("engine_kernels", c_char_p, [handle]),
        ("engine_manifest", c_char_p, [handle]),
        ("engine_bind", fail, [handle, c_char_p, c_char_p]),
        ("engine_unbind", fail, [handle, c_char_p]),
        ("engine_adapters", fail, [handle, POINTER(handle)]),
        ("names_count", c_size_t, [handle]),
        ("names_get", c_char_p, [handle, c_size_t]),
        ("names_free", None, [handle]),
        (
            "engine_run",
            fail,
            [handle, POINTER(Tensor), c_size_t, POINTER(c_char_p), c_size_t, POINTER(handle)],
        ),
        ("outputs_count", c_size_t, [handle]),
        ("outputs_get", Tensor, [handle, c_size_t]),
        ("outputs_label_count", c_size_t, [handle, c_size_t]),
        ("outputs_label", c_char_p, [handle, c_size_t, c_size_t]),
        ("outputs_free", None, [handle]),
        (
            "engine_generate",
            fail,
            [
                handle,
                POINTER(Prompt),
                c_size_t,
                POINTER(Sampling),
                c_size_t,
                OnToken,
                c_void_p,
                POINTER(handle),
            ],
        ),
        ("generated_count", c_size_t, [handle]),
        ("generated_ids", POINTER(c_int64), [handle, c_size_t, POINTER(c_size_t)]),
        ("generated_reason", c_int32, [handle, c_size_t]),
        ("generated_error", c_void_p, [handle, c_size_t]),
        ("generated_free", None, [handle]),
    ):
        function = getattr(lib, f"adexport_{name}")
        function.restype, function.argtypes = result, arguments
    return lib


def read_error(error: int) -> NativeError:
    lib = library()
    problems = [
        NativeProblem(
            *(getattr(problem, field).decode() for field, _ in Problem._fields_)  # type: ignore[misc]
        )
        for problem in (
            lib.adexport_error_get_problem(error, index)
            for index in range(lib.adexport_error_problem_count(error))
        )
    ]
    kind = KINDS[lib.adexport_error_get_kind(error)]
    return NativeError(kind, lib.adexport_error_message(error).decode(), problems)


def _raise(error: int) -> NoReturn:
    found = read_error(error)
    library().adexport_error_free(error)
    raise found


def check(error: int | None) -> None:
    if error:
        _raise(error)
