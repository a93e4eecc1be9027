"""Files that appear whole or not at all, and JSON that says one thing once."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class DuplicateKeyError(ValueError):
    """A JSON object names a key twice, so two readers could read two things."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    if twice:
        raise DuplicateKeyError(", ".join(twice))
    return dict(pairs)


def load_json(text: str | bytes) -> Any:
    """Parse JSON; a repeated key raises :class:`DuplicateKeyError` (``json`` keeps the last)."""
    return json.loads(text, object_pairs_hook=_unique)


def sync_tree(path: Path) -> None:
    """Flush every file and folder below ``path`` to the disk."""
    for entry in (path, *path.rglob("*")):
        handle = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two paths in one step (Linux ``renameat2``); False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    done = renameat2(
        _AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    if done != 0 and ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(ctypes.get_errno(), "cannot swap", str(left), None, str(right))
    return bool(done == 0)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path`` on success."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside ``path`` to fill; it takes the place of ``path`` on success.

    What stood at ``path`` before is removed only after the new folder stands in its place. A link
    stays a link: the folder that it points to is replaced.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield part
        part.chmod(0o755)
        sync_tree(part)
        if not path.exists():
            part.rename(path)
        elif not _exchange(part, path):
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.rename(old / path.name)
            part.rename(path)
            shutil.rmtree(old)
    finally:
        shutil.rmtree(part, ignore_errors=True)
