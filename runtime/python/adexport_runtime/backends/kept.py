"""Folders for what is compiled on a machine and worth keeping from process to process."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..engine_file import ENGINES_FOLDER
from ..errors import Code, Problem, RequestError


def keep_folder(root: Path, name: str, asked: str | os.PathLike[str] | None) -> Path | None:
    """Make the folder ``name`` to keep things in; None if nowhere can be written.

    Args:
        root: the bundle.
        name: of the folder, with slashes.
        asked: a folder that a caller chose, for any number of bundles; None: ``engines/`` of the bundle.

    Raises:
        RequestError: the folder that was asked for cannot be written.
    """
    folder = (root / ENGINES_FOLDER if asked is None else Path(asked)).absolute() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        if asked is None:
            return None
        problem = Problem(
            Code.BAD_INPUT,
            "cache",
            got=f"{folder}: {error.strerror}",
            expected="a folder that can be written",
            mend="another folder, or leave it out",
        )
        raise RequestError("the engine is not opened", problem) from error
