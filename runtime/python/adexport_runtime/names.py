"""Adapter names: opaque ids, never paths."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import AdapterError, Code, Problem

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def nul_problems(code: Code, subject: str, texts: Iterable[str], mend: str = "") -> list[Problem]:
    """Texts with NUL, where readers in C would end them."""
    return [
        Problem(code, subject, got=repr(text)[:80], expected="a text without NUL", mend=mend)
        for text in texts
        if "\0" in text
    ]


def check_name(name: str) -> str:
    """Return ``name`` if it is a valid adapter name, else raise :class:`AdapterError`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise AdapterError(
            "adapter name refused",
            Problem(
                Code.BAD_NAME,
                repr(name),
                expected="1 to 128 of A-Z a-z 0-9 . _ -, the first a letter or a digit",
                cause="a name is an id, never a path",
                mend="give another name (--name on the command line)",
            ),
        )
    return name
