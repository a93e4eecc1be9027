"""A part of an AdapterHub config, checked: every key is used, without effect, or refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import Code, Problem


class Settings(BaseModel):
    """The keys of a config that decide what its tensors mean; the defaults are the library's."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


_S = TypeVar("_S", bound=Settings)


def refused(key: str, value: object, cause: str, mend: str = "") -> Problem:
    """A key whose value no slot carries."""
    return Problem(Code.UNSUPPORTED, key, got=repr(value)[:80], cause=cause, mend=mend)


def parse(
    kind: type[_S],
    data: Mapping[str, Any],
    *,
    ignored: Collection[str],
    refusals: Mapping[str, tuple[str, str]],
) -> tuple[_S | None, list[Problem]]:
    """Validate a config.

    Args:
        kind: what to make of it.
        data: the config as the file has it.
        ignored: keys without effect on what the saved tensors compute.
        refusals: key -> (cause, mend), for keys that may not be true.

    Returns:
        The settings (None if a value is unusable) and every problem found.
    """
    problems = [
        refused(key, data[key], cause, mend) for key, (cause, mend) in refusals.items() if data.get(key)
    ]
    known = {*ignored, *refusals, *kind.model_fields}
    problems += [
        Problem(
            Code.UNSUPPORTED,
            key,
            got=repr(data[key])[:80],
            expected="a key of adapters 1.3",
            cause="saved by another version, or edited",
            mend="if the key changes nothing at inference, remove it",
        )
        for key in sorted(data.keys() - known)
        if data[key]
    ]
    try:
        return kind.model_validate(dict(data)), problems
    except ValidationError as error:
        problems += [
            Problem(
                Code.BAD_CONFIG,
                ".".join(str(part) for part in item["loc"]) or "config",
                got=repr(item["input"])[:80],
                expected=item["msg"],
            )
            for item in error.errors()
        ]
        return None, problems
