"""Where an engine goes: what may be replaced there, and what is said of a full or read-only disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adexport_runtime.engine_file import RECORD_FILE
from adexport_runtime.errors import BuildError, Code, Problem

_MENDS = {
    errno.ENOSPC: "make room: beside the engine, its graph lies there with all weights while it is built",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EROFS: "give -o a folder that can be written",
    errno.EACCES: "give -o a folder that can be written",
    errno.EPERM: "give -o a folder that can be written",
}


def check_place(root: Path, folder: Path) -> None:
    """See that an engine may appear at ``folder``, in the bundle ``root``: what stands there is replaced.

    Raises:
        BuildError: something else than an engine stands there, or a link leads out of the bundle.
    """
    inside = root.resolve() / folder.relative_to(root)
    if folder.resolve() != inside:
        got = f"a link to {folder.resolve()}"
    elif folder.parent.exists() and not folder.parent.is_dir():
        got = "a file in the place of a folder"
    elif folder.exists() and not (folder / RECORD_FILE).exists():
        got = "something that is no engine"
    else:
        return
    problem = Problem(
        Code.EXISTS,
        str(folder),
        got=got,
        expected="nothing, or an engine, which is replaced",
        mend="remove it, or build into a copy: adexport build BUNDLE -o COPY --target tensorrt",
    )
    raise BuildError("no engine was built", problem)


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
            str(error.filename2 or error.filename or where),
            got=error.strerror or str(error),
            expected="a file that can be written",
            mend=_MENDS.get(error.errno or 0, ""),
        )
        raise BuildError("no engine was built", problem) from error
