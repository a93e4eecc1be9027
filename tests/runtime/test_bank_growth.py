"""A bank that may grow so far and no further, and what a lease tells of its rows."""

from __future__ import annotations

import pytest

from adexport_runtime import BankFullError

from .test_bank import adapter, bank, holds


def test_it_grows_up_to_its_most_and_then_pages() -> None:
    made = bank(most=5)
    assert made.capacity == 1
    capacities = []
    for index in range(8):
        made.put(f"n{index}", adapter(index))
        capacities.append(made.capacity)
    assert capacities == [1, 3, 3, 5, 5, 5, 5, 5]
    for index in (7, 0, 6, 1, 5):
        with made.lease([f"n{index}"]) as lease:
            assert holds(lease, f"n{index}", adapter(index))
    with made.lease([f"n{index}" for index in range(5)]) as lease:
        assert len(set(lease.rows.values())) == 5
    with pytest.raises(BankFullError):
        made.lease([f"n{index}" for index in range(6)]).__enter__()


def test_none_at_all() -> None:
    """A backend may have room for the identity alone."""
    made = bank(most=0)
    made.put("a", adapter(1))
    assert made.capacity == 0
    with made.lease([]) as lease:
        assert all(len(array) == 1 for array in lease.arrays.values())
    with pytest.raises(BankFullError):
        made.lease(["a"]).__enter__()


def test_a_lease_says_which_binding_a_row_holds() -> None:
    made = bank(rows=2)
    made.put("a", adapter(1))
    with made.lease(["a"]) as first:
        made.put("a", adapter(2))
        with made.lease(["a"]) as second:
            assert second.generations["a"] > first.generations["a"]
            assert second.rows["a"] != first.rows["a"]
    with made.lease(["a"]) as again:
        assert again.generations == second.generations == made.generations()
