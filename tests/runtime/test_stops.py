"""Stop strings: the first to be complete ends the text, however the text is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adexport_runtime.generation.stops import StopFinder


def whole(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What is right, character by character: the text up to the stop string, and that."""
    for end in range(1, len(text) + 1):
        if complete := [stop for stop in stops if text[:end].endswith(stop)]:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


SHORT = st.text("ab", min_size=0, max_size=6)


@given(st.lists(SHORT, max_size=8), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
def test_pieces_make_the_whole(pieces: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    out, seen = "", ""
    for piece in pieces:
        seen += piece
        out += finder.push(piece)
        text, found = whole(seen, stops)
        assert finder.found == found
        # nothing that could still become a stop string is out, and nothing else is held back
        held = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        assert out == (text if found is not None or not held else text[: -max(held)])
    out += finder.finish()
    assert (out, finder.found) == whole("".join(pieces), stops)
    assert finder.finish() == ""


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", ["two", "one two"], ("", "one two")),  # both end together: the longer
        ("xabcx", ["abcx", "b"], ("xa", "b")),  # "b" is complete first
        ("a\n\nb", ["\n\n"], ("a", "\n\n")),
        ("ab", ["abc"], ("ab", None)),
        ("", ["a"], ("", None)),
        ("aaa", [], ("aaa", None)),
    ],
)
def test_cases(text: str, stops: list[str], expected: tuple[str, str | None]) -> None:
    for pieces in ([text], list(text)):
        finder = StopFinder(stops)
        out = "".join(finder.push(piece) for piece in pieces) + finder.finish()
        assert (out, finder.found) == expected


def test_nothing_comes_after_a_stop() -> None:
    finder = StopFinder(["."])
    assert finder.push("end. more") == "end"
    assert finder.push("more") == ""
    assert finder.finish() == ""
    assert finder.found == "."
