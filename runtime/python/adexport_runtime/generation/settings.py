"""What a request wants generated: how long, how random, and where it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ..errors import Code, Problem, RequestError

#: outside of these float32 logits could overflow, and nobody would see a difference
TEMPERATURES = (1e-6, 1e6)
PENALTIES = (0.01, 100.0)
SEEDS = 2**64


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request is generated; checked whole when it is made.

    Args:
        max_new_tokens: how many tokens are generated at most.
        temperature: 0 takes the likeliest token (greedy); else logits are divided by it.
        top_k: sample among this many likeliest tokens (and those as likely as the last of them).
        top_p: sample among the fewest tokens that together have this probability.
        repetition_penalty: above 1, tokens of the prompt and of the text so far become less likely.
        seed: the same seed gives the same tokens; None draws afresh.
        stop: the text ends before the first of these strings (one string, or several).
        eos: ids of tokens that end the request; None: the bundle's, ``()``: none.

    Raises:
        RequestError: naming every value that is of a wrong type or out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    eos: Sequence[int] | None = None

    def __post_init__(self) -> None:
        problems: list[Problem] = []

        def keep(name: str, fits: bool, expected: str, value: Any, mend: str = "") -> None:
            if fits:
                object.__setattr__(self, name, value())
            else:
                got = repr(getattr(self, name))[:80]
                problems.append(Problem(Code.BAD_INPUT, name, got=got, expected=expected, mend=mend))

        def whole(name: str, low: int, end: float, expected: str, mend: str = "") -> None:
            value = getattr(self, name)
            keep(name, _is_whole(value) and low <= value < end, expected, lambda: int(value), mend)

        def real(name: str, low: float, high: float, expected: str, mend: str = "") -> None:
            value = getattr(self, name)
            keep(name, _is_real(value) and low <= value <= high, expected, lambda: float(value), mend)

        whole("max_new_tokens", 1, math.inf, "a whole number, at least 1")
        if not _is_zero(self.temperature):
            low, high = TEMPERATURES
            real("temperature", low, high, f"0, or {low} to {high}", "0 takes the likeliest token")
        if self.top_k is not None:
            whole("top_k", 1, math.inf, "a whole number, at least 1, or None", "None keeps all tokens")
        if self.top_p is not None:
            least = math.nextafter(0.0, 1.0)
            real("top_p", least, 1.0, "above 0, at most 1, or None", "None keeps all tokens")
        low, high = PENALTIES
        real("repetition_penalty", low, high, f"{low} to {high}", "1 is no penalty")
        if self.seed is not None:
            whole("seed", 0, SEEDS, "a whole number from 0 to 2**64 - 1, or None")
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        fits = _is_list(stop) and all(isinstance(text, str) and text for text in stop)
        keep("stop", fits, "strings, none of them empty", lambda: tuple(stop))
        if (eos := self.eos) is not None:
            fits = _is_list(eos) and all(_is_whole(token) and token >= 0 for token in eos)
            keep("eos", fits, "token ids, or None", lambda: tuple(int(token) for token in eos))
        if problems:
            raise RequestError("the settings of the generation do not fit", problems)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_zero(value: object) -> bool:
    return _is_real(value) and value == 0


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
