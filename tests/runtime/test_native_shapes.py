"""Which profile takes a run: by itself and against a plain search."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adexport_runtime import AdapterError, Code, RequestError
from adexport_runtime.backends.shapes import Shapes, envelope, limits_of
from adexport_runtime.graph_io import Tensor
from adexport_runtime.limits import MEND, check_adapter, check_batch, most_adapters
from adexport_runtime.profiles import Profile, Range

from .support import subjects

INPUTS = (
    Tensor(name="x", dtype="int64", shape=("batch", "seq")),
    Tensor(name="ids", dtype="int64", shape=("batch",)),
    Tensor(name="A", dtype="fp32", shape=("rows", 3, "s.rank")),
    Tensor(name="B", dtype="fp32", shape=("rows", "t.rank", 5)),
)
KINDS = ("batch", "seq", "rows", "rank")


def profile(**sizes: tuple[int, int, int]) -> Profile:
    whole = dict.fromkeys(KINDS, (1, 8, 64)) | sizes
    return Profile(sizes={kind: Range(min=a, opt=b, max=c) for kind, (a, b, c) in whole.items()})


def shapes(batch: int, seq: int, rows: int, one: int, other: int) -> dict[str, Any]:
    return {
        "x": (batch, seq),
        "ids": (batch,),
        "A": (rows, 3, one),
        "B": (rows, other, 5),
    }


ranges = st.lists(st.integers(1, 12), min_size=3, max_size=3).map(sorted).map(tuple)
profiles = st.lists(
    st.fixed_dictionaries(dict.fromkeys(KINDS, ranges)).map(lambda sizes: profile(**sizes)),
    min_size=1,
    max_size=4,
)
size = st.integers(1, 13)


@given(profiles, size, size, size, size, size)
def test_against_a_plain_search(
    some: list[Profile], batch: int, seq: int, rows: int, one: int, other: int
) -> None:
    """The first of the nearest that hold all sizes; where there is none, all that do not fit are named."""
    table = Shapes(INPUTS, some)
    given_sizes = shapes(batch, seq, rows, one, other)
    values = [("batch", batch), ("seq", seq), ("rows", rows), ("rank", one), ("rank", other)]

    def wrong(each: Profile) -> set[tuple[str, int]]:
        return {(k, v) for k, v in values if not each.sizes[k].min <= v <= each.sizes[k].max}

    def distance(each: Profile) -> float:
        widest = {"batch": batch, "seq": seq, "rows": rows, "rank": max(one, other)}
        return sum(abs(math.log(v / each.sizes[k].opt)) for k, v in widest.items())

    fitting = [index for index, each in enumerate(some) if not wrong(each)]
    if fitting:
        chosen = table.choose(given_sizes)
        assert chosen in fitting
        nearest = min(distance(some[index]) for index in fitting)
        assert math.isclose(distance(some[chosen]), nearest, abs_tol=1e-9)
        assert not any(distance(some[index]) < nearest - 1e-9 for index in fitting)
        assert table.choose(given_sizes) == chosen
    else:
        with pytest.raises(RequestError) as caught:
            table.choose(given_sizes)
        found = {(problem.subject, int(problem.got)) for problem in caught.value.problems}
        assert found == set().union(*map(wrong, some))
        for problem in caught.value.problems:
            for each in some:
                wanted = each.sizes[problem.subject]
                assert f"{wanted.min} to {wanted.max}" in problem.expected


def test_equals_go_to_the_first() -> None:
    table = Shapes(INPUTS, [profile(seq=(1, 8, 8)), profile(), profile()])
    assert table.choose(shapes(8, 8, 8, 8, 8)) == 0
    assert table.choose(shapes(8, 9, 8, 8, 8)) == 1


def test_the_mend_is_a_profile() -> None:
    table = Shapes(INPUTS, [profile(), profile(rank=(1, 4, 32))])
    with pytest.raises(RequestError) as caught:
        table.choose(shapes(65, 8, 8, 8, 70))
    mends = {problem.subject: problem.mend for problem in caught.value.problems}
    assert mends == {
        "batch": MEND.format("batch=1:65:65"),
        "rank": MEND.format("rank=1:70:70"),
    }
    assert subjects(caught.value, Code.RANK_ABOVE_MAX) == {"rank"}


@given(profiles)
def test_the_envelope_holds_every_profile(some: list[Profile]) -> None:
    whole = envelope(some)
    for kind in KINDS:
        assert whole.sizes[kind].min == min(each.sizes[kind].min for each in some)
        assert whole.sizes[kind].max == max(each.sizes[kind].max for each in some) == limits_of(some)[kind]


class TestLimits:
    def test_adapters(self) -> None:
        check_adapter("a", {"x.rank": 8, "y.width": 99}, {"rank": 8})
        with pytest.raises(AdapterError) as caught:
            check_adapter("a", {"x.rank": 9, "y.rank": 8, "z.rank": 10, "y.width": 99}, {"rank": 8})
        assert subjects(caught.value, Code.RANK_ABOVE_MAX) == {"x.rank", "z.rank"}

    def test_rows(self) -> None:
        assert most_adapters(None, {}) is None
        assert most_adapters(99, {}) is None
        assert most_adapters(None, {"rows": 9}) == most_adapters(8, {"rows": 9}) == 8
        with pytest.raises(RequestError) as caught:
            most_adapters(9, {"rows": 9})
        assert "rows=1:10:10" in str(caught.value)

    def test_batches(self) -> None:
        check_batch(99, 99, {})
        check_batch(4, 8, {"batch": 4, "room": 8})
        with pytest.raises(RequestError) as caught:
            check_batch(5, 9, {"batch": 4, "room": 8})
        assert subjects(caught.value, Code.BAD_INPUT) == {"max_batch", "max_tokens"}
