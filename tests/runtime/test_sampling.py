"""The settings of a generation: kept as they are, or refused with all that is wrong."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from adexport_runtime import Code, RequestError
from adexport_runtime.generation.settings import Sampling


def test_defaults_are_greedy() -> None:
    settings = Sampling()
    assert settings.greedy
    assert (settings.max_new_tokens, settings.stop, settings.eos, settings.seed) == (128, (), None, None)


def test_values_are_kept() -> None:
    settings = Sampling(
        max_new_tokens=np.int64(7),
        temperature=np.float32(0.5),
        top_k=3,
        top_p=1,
        repetition_penalty=2,
        seed=2**64 - 1,
        stop="END",
        eos=[np.int32(2), 0],
    )
    assert not settings.greedy
    assert dataclasses.astuple(settings) == (7, 0.5, 3, 1.0, 2.0, 2**64 - 1, ("END",), (2, 0))
    kinds = [type(value) for value in dataclasses.astuple(settings)]
    assert kinds == [int, float, int, float, float, int, tuple, tuple]
    assert [type(token) for token in settings.eos or ()] == [int, int]
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")
    assert Sampling(eos=()).eos == ()


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().temperature = 1.0  # type: ignore[misc]


BAD = {
    "max_new_tokens": [0, -1, 1.0, True, None, "7", math.nan],
    "temperature": [-0.1, 1e-7, 1e7, math.nan, math.inf, True, False, None, "0"],
    "top_k": [0, -1, 2.0, True, math.inf],
    "top_p": [0, 0.0, -0.5, 1.01, math.nan, math.inf, True],
    "repetition_penalty": [0, -1.0, 1e-9, 1e9, math.nan, math.inf, True, None],
    "seed": [-1, 2**64, 0.5, True],
    "stop": ["", ["a", ""], [1], None, b"a", {"a"}, [b"a"]],
    "eos": [3, "3", [-1], [1.0], [True], [None], {3}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, bad in BAD.items() for value in bad])
def test_a_bad_value_is_refused(name: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        Sampling(**{name: value})  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject, problem.got) == (Code.BAD_INPUT, name, repr(value))


def test_all_culprits_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        Sampling(**{name: bad[0] for name, bad in BAD.items()})  # type: ignore[arg-type]
    assert [problem.subject for problem in caught.value.problems] == list(BAD)
