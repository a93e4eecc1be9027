"""What a backend can take at most, by kind of size (see :mod:`.profiles`); no limit where there is none."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import AdapterError, Code, Problem, RequestError
from .graph_io import kind_of

Limits = Mapping[str, int]

#: beside the kinds: how many rows may bring several tokens at once, as prompts do
PROMPTS = "prompts"

#: how to get larger ones
MEND = "adexport build BUNDLE --target tensorrt --profile {0} (ort-tensorrt: open with profile=['{0}'])"


def check_adapter(name: str, sizes: Mapping[str, int], limits: Limits) -> None:
    """See whether a backend can take an adapter of these sizes.

    Raises:
        AdapterError: naming every size that is too large.
    """
    problems = [
        Problem(
            Code.RANK_ABOVE_MAX,
            symbol,
            got=str(size),
            expected=f"at most {limits[kind]}, the largest {kind} of the engine's profiles",
            cause="the engine was built for smaller adapters",
            mend=MEND.format(f"{kind}=1:{size}:{size}"),
        )
        for symbol, size in sizes.items()
        if size > limits.get(kind := kind_of(symbol), size)
    ]
    if problems:
        raise AdapterError(f"{name} is refused", problems)


def most_adapters(rows: int | None, limits: Limits) -> int | None:
    """How many adapters may be resident beside the identity; None: no limit.

    Raises:
        RequestError: ``rows`` is more.
    """
    if "rows" not in limits:
        return None
    most = limits["rows"] - 1
    if rows is not None and rows > most:
        raise RequestError(
            "the engine is not opened",
            Problem(
                Code.BAD_INPUT,
                "rows",
                got=str(rows),
                expected=f"at most {most}, as the engine has {limits['rows']} rows, one for the base",
                mend=MEND.format(f"rows=1:{rows + 1}:{rows + 1}"),
            ),
        )
    return most


def check_batch(rows: int, room: int, limits: Limits) -> None:
    """See whether a batch of ``rows`` texts with ``room`` tokens each can run.

    Raises:
        RequestError: naming both if both are too large.
    """
    given = {"batch": ("max_batch", rows), "room": ("max_tokens", room)}
    problems = [
        Problem(
            Code.BAD_INPUT,
            name,
            got=str(size),
            expected=f"at most {limits[kind]}, the largest {kind} of the engine's profiles",
            mend=f"ask for less, or {MEND.format(f'{kind}=1:{size}:{size}')}",
        )
        for kind, (name, size) in given.items()
        if size > limits.get(kind, size)
    ]
    if problems:
        raise RequestError("the batch does not fit", problems)
