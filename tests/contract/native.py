"""libadexport through its C interface: the C++ runtime as the contract tests see it."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from adexport_runtime.outputs import Outputs

from .capi import (
    DTYPES,
    REASONS,
    NativeError,
    OnToken,
    Option,
    Options,
    Prompt,
    Sampling,
    Tensor,
    check,
    library,
    ort_library,
    read_error,
)


def _text(value: str | os.PathLike[str] | None) -> bytes | None:
    return None if value is None else os.fspath(value).encode()


class NativeEngine:
    """An engine of the C++ runtime, with the shape of adexport_runtime.Engine."""

    def __init__(
        self,
        bundle: Path,
        *,
        provider: str | None = None,
        rows: int = 0,
        threads: int = 1,
        kernels: str | Path | None = "",
        ort: Path | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Open a bundle; ``kernels``: the empty text runs without."""
        pairs = [Option(key.encode(), value.encode()) for key, value in (options or {}).items()]
        given = Options(
            ctypes.sizeof(Options),
            _text(provider),
            _text(ort or ort_library()),
            _text(kernels),
            rows,
            threads,
            1,
            (Option * len(pairs))(*pairs),
            len(pairs),
        )
        self._handle = c_void_p()
        check(library().adexport_engine_open(os.fsencode(bundle), byref(given), byref(self._handle)))
        manifest = json.loads(self.manifest)
        self._classified = manifest.get("head") is not None or bool(manifest["base"].get("labels"))

    def __enter__(self) -> NativeEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        library().adexport_engine_close(self._handle)
        self._handle = c_void_p()

    def __getattr__(self, name: str) -> str:
        if name not in ("provider", "ort_version", "kernels", "manifest"):
            raise AttributeError(name)
        text: bytes = getattr(library(), f"adexport_engine_{name}")(self._handle)
        return text.decode()

    def bind(self, name: str, path: Path | None = None) -> None:
        check(library().adexport_engine_bind(self._handle, name.encode(), _text(path)))

    def unbind(self, name: str) -> None:
        check(library().adexport_engine_unbind(self._handle, name.encode()))

    def adapters(self) -> list[str]:
        lib, names = library(), c_void_p()
        check(lib.adexport_engine_adapters(self._handle, byref(names)))
        try:
            count = lib.adexport_names_count(names)
            return [lib.adexport_names_get(names, index).decode() for index in range(count)]
        finally:
            lib.adexport_names_free(names)

    def run(self, inputs: Mapping[str, Any], adapters: str | Sequence[str | None] | None = None) -> Outputs:
        """Run one batch."""
        lib, outputs = library(), c_void_p()
        arrays = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        tensors = (Tensor * len(arrays))(*(_tensor(name, array) for name, array in arrays.items()))
        rows = [adapters] if adapters is None or isinstance(adapters, str) else list(adapters)
        names = (c_char_p * len(rows))(*(_text(row) for row in rows))
        check(lib.adexport_engine_run(self._handle, tensors, len(arrays), names, len(rows), byref(outputs)))
        try:
            found = [
                lib.adexport_outputs_get(outputs, at) for at in range(lib.adexport_outputs_count(outputs))
            ]
            copies = {tensor.name.decode(): _array(tensor) for tensor in found}
            batch = next(iter(copies.values())).shape[0]
            labels = tuple(
                tuple(
                    lib.adexport_outputs_label(outputs, row, at).decode()
                    for at in range(lib.adexport_outputs_label_count(outputs, row))
                )
                for row in range(batch)
            )
            return Outputs(copies, labels, classified=self._classified)
        finally:
            lib.adexport_outputs_free(outputs)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[str | None] | None = None,
        *,
        max_batch: int = 8,
        on_token: Callable[[int, int], bool] | None = None,
        eos: Sequence[int] | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> list[tuple[list[int], str, NativeError | None]]:
        """Continue prompts; the ids, the reason and the error of each. ``on_token``: whether to go on."""
        lib, generated = library(), c_void_p()
        rows = [None] * len(prompts) if adapters is None else adapters
        ids = [(c_int64 * len(prompt))(*prompt) for prompt in prompts]
        given = (Prompt * len(prompts))(
            *(
                Prompt(row, len(prompt), _text(name))
                for row, prompt, name in zip(ids, prompts, rows, strict=True)
            )
        )
        ends = (c_int64 * len(eos or ()))(*(eos or ()))
        sampling = Sampling(
            ctypes.sizeof(Sampling),
            settings.pop("max_new_tokens", 128),
            settings.pop("temperature", 0.0),
            settings.pop("top_k", None) or 0,
            settings.pop("top_p", None) or 0.0,
            settings.pop("repetition_penalty", 1.0),
            int(seed is not None),
            seed or 0,
            ends,
            len(ends),
            int(eos is not None),
        )
        assert not settings, settings

        def told(_user: int | None, row: int, token: int) -> int:
            return 0 if on_token is None or on_token(row, token) else 1

        check(
            lib.adexport_engine_generate(
                self._handle,
                given,
                len(prompts),
                byref(sampling),
                max_batch,
                OnToken(told) if on_token is not None else OnToken(),
                None,
                byref(generated),
            )
        )
        try:
            results = []
            for row in range(lib.adexport_generated_count(generated)):
                count = c_size_t()
                tokens = lib.adexport_generated_ids(generated, row, byref(count))
                error = lib.adexport_generated_error(generated, row)
                reason = REASONS[lib.adexport_generated_reason(generated, row)]
                results.append((tokens[: count.value], reason, read_error(error) if error else None))
            return results
        finally:
            lib.adexport_generated_free(generated)


def _tensor(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    dtype = next(code for code, known in DTYPES.items() if known == array.dtype)
    shape = (c_int64 * array.ndim)(*array.shape)
    return Tensor(name.encode(), dtype, array.ctypes.data, shape, array.ndim)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    shape = tensor.shape[: tensor.rank]
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, DTYPES[tensor.dtype])
    kind = {1: ctypes.c_float, 2: c_int64, 3: c_int32}[tensor.dtype]
    values = ctypes.cast(tensor.data, POINTER(kind * count)).contents
    return np.array(values, DTYPES[tensor.dtype]).reshape(shape)
