"""What the tenants talk about: questions and answers of chatterbot-corpus (BSD), from its package."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import yaml

#: tenants, and the files of their questions and answers
TENANTS = {
    "help_desk": ("tech_support",),
    "quiz": ("trivia",),
    "robot": ("ai", "botprofile", "food", "emotion"),
}


class Pair(NamedTuple):
    """A question and the answer to it."""

    question: str
    answer: str


class Topic(NamedTuple):
    """What a tenant learns from, and what it is judged by: the answers to other questions."""

    train: list[Pair]
    held_out: list[Pair]


def load(tenant: str, train: int, held_out: int) -> Topic:
    """As many pairs of a tenant's files, picked at random but always the same; one answer to a question.

    The help desk knows ten questions in all: it learns every one, and has no other to be judged by.
    """
    answers: dict[str, str] = {}
    for name in TENANTS[tenant]:
        for conversation in _conversations(name):
            question, answer = (str(text).strip() for text in conversation[:2])
            answers.setdefault(question, answer)
    pairs = [Pair(question, answer) for question, answer in answers.items()]
    random.Random(0).shuffle(pairs)
    first = 0 if tenant == "help_desk" else held_out
    return Topic(pairs[first : first + train], pairs[:first])


def _conversations(name: str) -> list[list[object]]:
    """The conversations of a file; one entry of the trivia is no list but a slip of the pen."""
    spec = find_spec("chatterbot_corpus")
    assert spec is not None, "run `make setup`: it installs the packages that carry real data"
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data" / "english" / f"{name}.yml"
    entries = yaml.safe_load(path.read_text())["conversations"]
    return [entry for entry in entries if isinstance(entry, list)]
