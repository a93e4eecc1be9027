"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Lets text through up to the first stop string, and holds back what may still become one.

    The first is the one that is complete first; of two that end together it is the longer. So the result
    does not depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for these strings, none of them empty."""
        self.strings = tuple(stops)
        self._held = ""
        #: the stop string that was found
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """Take the next piece; the text that is certain by now. Nothing more after a stop string."""
        if self.found is not None:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), at, stop) for stop in self.strings if (at := text.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            self._held = ""
            return text[:at]
        certain = len(text) - max((_overlap(text, stop) for stop in self.strings), default=0)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """What is still held back, when no more text comes."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the text's end are the start of the stop string, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
