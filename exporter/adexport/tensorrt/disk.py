"""What is said where a disk is full, read-only, or gone."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adexport_runtime.errors import BuildError, Code, Problem

_MENDS = {
    errno.ENOSPC: "make room: beside the engine, its graph lies there with all weights while it is built",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EROFS: "give -o a folder that can be written",
    errno.EACCES: "give -o a folder that can be written",
    errno.EPERM: "give -o a folder that can be written",
}


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Have an OSError told as an error of ours; ``where`` is its subject if it names no file.

    Raises:
        BuildError: with the file, and what the system says of it.
    """
    try:
        yield
    except OSError as error:
        problem = Problem(
            Code.EXPORT_FAILED,
            str(error.filename or where),
            got=error.strerror or str(error),
            expected="a file that can be written",
            mend=_MENDS.get(error.errno or 0, ""),
        )
        raise BuildError("no engine was built", problem) from error
