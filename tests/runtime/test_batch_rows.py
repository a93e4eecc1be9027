"""Rows of a batch, side by side: filled, moved, emptied; as wide as the widest of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adexport_runtime import batch_rows
from adexport_runtime.batch_rows import BatchRows
from adexport_runtime.slots import SlotInput

SLOTS = (
    SlotInput(name="A", shape=("rows", 3, "r")),
    SlotInput(name="B", shape=("rows", "r", 2)),
    SlotInput(name="scale", shape=("rows", 2), identity="ones"),
    SlotInput(name="code", shape=("rows",), dtype="int64"),
)
Row = dict[str, np.ndarray]


def made(rank: int, seed: int) -> Row:
    random = np.random.default_rng(seed)
    return {
        "A": random.standard_normal((3, rank)).astype(np.float32),
        "B": random.standard_normal((rank, 2)).astype(np.float32),
        "code": np.array(seed, np.int64),
    }


def check(rows: BatchRows, expected: list[Row]) -> None:
    """Each row holds what it should, zeros beyond it, and the identity where nothing is said."""
    view = rows.view(slice(0, len(expected)))
    for index, row in enumerate(expected):
        rank = row["A"].shape[1] if row else 0
        if row:
            np.testing.assert_array_equal(view["A"][index, :, :rank], row["A"])
            np.testing.assert_array_equal(view["B"][index, :rank], row["B"])
        assert not view["A"][index, :, rank:].any()
        assert not view["B"][index, rank:].any()
        assert view["code"][index] == (row["code"] if row else 0)
        np.testing.assert_array_equal(view["scale"][index], np.ones(2))


def test_an_empty_batch_has_rank_zero() -> None:
    rows = BatchRows(SLOTS, np.dtype(np.float32), 3)
    assert rows.view(slice(0, 3))["A"].shape == (3, 3, 0)
    assert rows.nbytes == 3 * (2 * 4 + 8)


def test_a_view_is_not_copied_until_arrays_are_replaced() -> None:
    rows = BatchRows(SLOTS, np.dtype(np.float32), 3)
    rows.put(0, made(4, 1))
    layout, view = rows.layout, rows.view(slice(0, 2))
    rows.put(1, made(3, 2))
    assert rows.layout == layout
    np.testing.assert_array_equal(view["A"][1, :, :3], made(3, 2)["A"])
    rows.put(2, made(9, 3))
    assert rows.layout > layout
    assert rows.view(slice(1, 3))["A"].shape == (2, 3, 16)


@pytest.mark.parametrize("rank", [1, 8, 9])
def test_the_widest_row_leaves_its_width_with_it(rank: int) -> None:
    rows = BatchRows(SLOTS, np.dtype(np.float32), 2)
    rows.put(0, made(2, 1))
    rows.put(1, made(rank, 2))
    rows.move(1, 0)
    check(rows, [made(rank, 2), {}])
    rows.put(0, {})
    check(rows, [{}, {}])
    assert rows.view(slice(0, 2))["A"].shape[2] == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "clear", "move"]),
            st.integers(0, 3),
            st.integers(0, 3),
            st.integers(1, 20),
        ),
        max_size=20,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_order_of_changes(changes: list[tuple[str, int, int, int]]) -> None:
    rows = BatchRows(SLOTS, np.dtype(np.float32), 4)
    expected: list[Row] = [{}, {}, {}, {}]
    for turn, (what, one, other, rank) in enumerate(changes):
        if what == "put":
            expected[one] = made(rank, turn)
            rows.put(one, expected[one])
        elif what == "clear":
            expected[one] = {}
            rows.put(one, {})
        elif one != other:
            expected[other], expected[one] = expected[one], {}
            rows.move(one, other)
        check(rows, expected)


def test_a_row_that_finds_no_memory_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = BatchRows(SLOTS, np.dtype(np.float32), 3)
    rows.put(0, made(4, 1))
    full = np.full

    def fail(shape: list[int], *args: Any) -> Any:
        if shape == [3, 64, 2]:  # A has found some
            raise MemoryError
        return full(shape, *args)

    monkeypatch.setattr(batch_rows.np, "full", fail)
    with pytest.raises(MemoryError):
        rows.put(1, made(64, 2))
    assert rows.view(slice(0, 3))["A"].shape == (3, 3, 8)
    check(rows, [made(4, 1), {}, {}])
    rows.put(2, made(12, 3))
    assert rows.view(slice(0, 3))["A"].shape == (3, 3, 16)
    check(rows, [made(4, 1), {}, made(12, 3)])
