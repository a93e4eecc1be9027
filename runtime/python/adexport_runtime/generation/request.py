"""One text that is being generated: what was asked for, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ..errors import AdexportError
from .decoding import TextStream
from .sampler import Sampler

#: why a text ended: its own end, a stop string, its limit, the caller, or a failure
Reason = Literal["eos", "stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Generated:
    """A text that has ended.

    ``ids`` are the new tokens, the one that ended the text included; ``text`` is what they say up to a
    stop string, without special tokens, or None for a bundle without a tokenizer. After an error both
    hold what came before it.
    """

    ids: tuple[int, ...]
    text: str | None
    reason: Reason
    prompt_tokens: int
    error: AdexportError | None = None


@dataclass(eq=False)
class Request:
    """A text on its way.

    ``on_token`` is told every new token, ``on_text`` the text that is certain by now, ``on_end`` the
    whole, once.
    """

    ids: list[int]
    adapter: str | None
    limit: int
    eos_ids: frozenset[int]
    sampler: Sampler
    stream: TextStream | None
    on_token: Callable[[int], None] = lambda _token: None
    on_text: Callable[[str], None] = lambda _text: None
    on_end: Callable[[Generated], None] = lambda _result: None
    #: set by the caller, from any thread
    cancelled: bool = False
    #: tokens in the cache
    past: int = 0
    new: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ended: bool = False

    @property
    def prefilled(self) -> bool:
        """Whether the whole prompt is in the cache, so that one token follows another."""
        return self.past >= len(self.ids)

    @property
    def last(self) -> int:
        """The token to run next, once the prompt is in the cache."""
        return self.new[-1]

    def take(self, token: int) -> None:
        """Add a token, and end the text if it was the last one."""
        self.new.append(token)
        self.on_token(token)
        if self.stream is not None:
            self._tell(self.stream.push(token))
        if token in self.eos_ids:
            self.end("eos")
        elif self.stream is not None and self.stream.stopped is not None:
            self.end("stop")
        elif len(self.new) >= self.limit:
            self.end("length")

    def end(self, reason: Reason, error: AdexportError | None = None) -> None:
        """End the text; what was held back is told, unless it was a stop string."""
        if self.ended:
            return
        self.ended = True
        if self.stream is not None:
            self._tell(self.stream.finish())
        text = None if self.stream is None else "".join(self.texts)
        self.on_end(Generated(tuple(self.new), text, reason, len(self.ids), error))

    def _tell(self, text: str) -> None:
        if text:
            self.texts.append(text)
            self.on_text(text)
