"""Token ids to text, piece by piece as they are generated (the ``tokenizers`` library decodes).

``tokenizers.decoders.DecodeStream`` is not used: it raises on ids that byte fallback turns into something
else once more bytes follow, and gives no way to get at what it holds back at the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .stops import StopFinder

#: what stands for bytes that are no UTF-8, or none yet
REPLACEMENT = "\ufffd"


class Detokenizer:
    """Decodes the ids of one tokenizer. Special tokens, and ids that have no token, have no text.

    Meant for decoders whose text only grows at its end: all of the ``tokenizers`` library but CTC, which
    is for speech.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Decode with a ``tokenizers.Tokenizer``."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        #: special tokens by their ids
        self.special = {token: entry.content for token, entry in added.items() if entry.special}
        bytes_ = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._bytes = {token for token in bytes_ if token is not None} if _falls_back(tokenizer) else set()

    def text(self, ids: Sequence[int]) -> str:
        """The text of a whole sequence of ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        """A stream for one request, which ends at the first of these strings."""
        return TextStream(self, stop)

    def is_silent(self, token: int) -> bool:
        """Whether the id has no text."""
        return token in self.special or self._tokenizer.id_to_token(token) is None

    def is_open(self, token: int, text: str) -> bool:
        """Whether ids that follow may still change the text that ends with this id's.

        Of bytes that fell back, all in a row are shown as replacements if not all are UTF-8.
        """
        return token in self._bytes or text.endswith(REPLACEMENT)


class TextStream:
    """The text of one request. The pieces joined are the text of all its ids, up to the stop string.

    No piece ends within a character. Special tokens have no text, but a stop string that is one of them
    ends the text where it comes.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        """Start a text; see :meth:`Detokenizer.stream`."""
        self._detokenizer = detokenizer
        self._stops = StopFinder(stop)
        self._special = {i: text for i, text in detokenizer.special.items() if text in self._stops.strings}
        # The ids of the last piece are decoded again with those that follow: alone, these would be taken
        # for the start of a text and lose their leading space
        self._ids: list[int] = []
        self._open = 0  # how many of them are not in a piece yet
        self._shown = ""
        self._ended: str | None = None

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        return self._stops.found or self._ended

    def push(self, token: int) -> str:
        """Take the next id; the text that is certain by now, often none. Nothing more after a stop."""
        if self.stopped is not None:
            return ""
        if token in self._special:
            text = self.finish()
            if self._stops.found is None:
                self._ended = self._special[token]
            return text
        if self._detokenizer.is_silent(token):
            return ""
        self._ids.append(token)
        self._open += 1
        text = self._detokenizer.text(self._ids)
        if len(text) <= len(self._shown) or self._detokenizer.is_open(token, text):
            return ""
        piece = text[len(self._shown) :]
        self._ids = self._ids[-self._open :]
        self._open = 0
        self._shown = self._detokenizer.text(self._ids)
        return self._stops.push(piece)

    def finish(self) -> str:
        """What was held back, when no more ids come: a torn character, the start of a stop string."""
        rest = self._detokenizer.text(self._ids)[len(self._shown) :]
        self._ids, self._open, self._shown = [], 0, ""
        return self._stops.push(rest) + self._stops.finish()


def _falls_back(tokenizer: Any) -> bool:
    """Whether tokens like ``<0x0A>`` are decoded as bytes."""
    if tokenizer.decoder is None:
        return False
    state = json.loads(tokenizer.decoder.__getstate__())
    return any(part.get("type") == "ByteFallback" for part in (state, *state.get("decoders", ())))
