"""Kernels that TensorRT-RTX compiles while an engine first runs, kept from process to process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...bundle import Bundle
from ...engine_file import EngineFile
from ...errors import Code, Problem, RequestError
from ...files import atomic_file
from ..kept import keep_folder

#: beside the bundle's engines, or where a caller wants it
_FOLDER = "kernels"
#: of a plan's hash, in the name of a file
_DIGITS = 16


def compiles(target: str) -> bool:
    """Whether a target's library compiles kernels where an engine runs, and can keep them."""
    return target == "tensorrt-rtx"


def kernel_file(bundle: Bundle, file: EngineFile, cache: str | os.PathLike[str] | None) -> Path | None:
    """Where to keep what is compiled of an engine; None: nowhere.

    Raises:
        RequestError: the folder ``cache`` cannot be written, or there is nothing to keep in it.
    """
    if compiles(file.record.target):
        folder = keep_folder(bundle.root, _FOLDER, cache)
        return None if folder is None else folder / f"{file.record.plan.sha256[:_DIGITS]}.bin"
    if cache is None:
        return None
    raise RequestError(
        "the engine is not opened",
        Problem(
            Code.BAD_INPUT,
            "cache",
            got=str(cache),
            expected="None",
            cause=f"an engine of {file.record.target} compiles nothing where it runs",
            mend="leave it out",
        ),
    )


class KernelCache:
    """A runtime cache of TensorRT-RTX, and the file that it is read from and written to."""

    def __init__(self, engine: Any, file: Path | None) -> None:
        """Read what an earlier process kept; the library passes over what is of another GPU or version.

        Args:
            engine: the deserialized engine.
            file: where kernels are kept; None: nowhere.
        """
        self._file = file
        self._kept = file.read_bytes() if file is not None and file.exists() else b""
        #: for the contexts of the engine
        self.config = engine.create_runtime_config()
        self._cache = self.config.create_runtime_cache()
        if self._kept:
            self._cache.deserialize(self._kept)
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled since; a disk that is full only costs the next process its time."""
        if self._file is None:
            return
        compiled = bytes(memoryview(self._cache.serialize()))
        if compiled == self._kept:
            return
        with suppress(OSError), atomic_file(self._file) as part:
            part.write_bytes(compiled)
