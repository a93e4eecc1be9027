"""Rows, leases and paging: a row belongs to one generation, and a leased row never changes."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle as Names
from hypothesis.stateful import RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from adexport_runtime import BankFullError, Code, UnknownAdapterError
from adexport_runtime.bank import Bank, Lease, Row
from adexport_runtime.manifest import SlotInput

SLOTS = (
    SlotInput(name="s.lora_A", shape=("rows", 3, "s.rank")),
    SlotInput(name="s.lora_B", shape=("rows", "s.rank", 2)),
    SlotInput(name="t.lora_A", shape=("rows", 2, "t.rank")),
    SlotInput(name="t.lora_B", shape=("rows", "t.rank", 4)),
)


def adapter(value: float, rank: int = 2, sites: str = "st") -> dict[str, np.ndarray]:
    """All entries are ``value``; ``sites`` are those that it touches."""
    shapes = {"s": ((3, rank), (rank, 2)), "t": ((2, rank), (rank, 4))}
    tensors = {}
    for site in sites:
        for half, shape in zip("AB", shapes[site], strict=True):
            tensors[f"{site}.lora_{half}"] = np.full(shape, value, np.float32)
    return tensors


def content(lease: Lease, name: str) -> dict[str, np.ndarray]:
    """The weights in a leased row, without padding."""
    found = {}
    for key, array in lease.arrays.items():
        part = array[lease.rows[name]]
        kept = part[tuple(slice(int(index.max()) + 1 if index.size else 0) for index in np.nonzero(part))]
        if kept.size:
            found[key] = kept
    return found


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[key], expected[key]) for key in expected
    )


def bank(rows: int | None = None, dtype: Any = np.float32) -> Bank:
    return Bank(SLOTS, np.dtype(dtype), rows)


def test_an_empty_bank_is_the_identity() -> None:
    with bank().lease([]) as lease:
        assert lease.rows == {}
        assert all(not array.any() for array in lease.arrays.values())
        assert lease.arrays["s.lora_A"].shape[1:] == (3, 0)


def test_rows_hold_what_was_put() -> None:
    made = bank()
    made.put("a", adapter(1, rank=2))
    made.put("b", adapter(2, rank=9, sites="s"))
    with made.lease(["a", "b"]) as lease:
        assert same(content(lease, "a"), adapter(1, rank=2))
        assert same(content(lease, "b"), adapter(2, rank=9, sites="s"))
        assert sorted(lease.rows.values()) == [1, 2]
        assert lease.arrays["s.lora_A"].shape[2] == 16  # the rank, in steps of eight
        assert lease.arrays["t.lora_A"].shape[2] == 8
        assert not any(array[0].any() for array in lease.arrays.values())


def test_a_narrow_type_is_kept() -> None:
    made = bank(dtype=np.float16)
    made.put("a", adapter(0.1))
    with made.lease(["a"]) as lease:
        assert {array.dtype for array in lease.arrays.values()} == {np.dtype(np.float16)}
        assert content(lease, "a")["s.lora_A"][0, 0] == np.float16(0.1)


def test_the_rank_shrinks_with_the_widest_adapter() -> None:
    made = bank()
    made.put("narrow", adapter(1, rank=3))
    made.put("wide", adapter(2, rank=60))
    assert made.nbytes > 0
    wide = made.nbytes
    made.drop("wide")
    assert made.nbytes < wide
    with made.lease(["narrow"]) as lease:
        assert lease.arrays["s.lora_A"].shape[2] == 8
        assert same(content(lease, "narrow"), adapter(1, rank=3))


def test_a_rebind_is_another_row_and_another_generation() -> None:
    made = bank()
    made.put("a", adapter(1))
    first = made.generations()["a"]
    with made.lease(["a"]) as old:
        made.put("a", adapter(2))
        assert made.generations()["a"] > first
        assert same(content(old, "a"), adapter(1))
        with made.lease(["a"]) as new:
            assert same(content(new, "a"), adapter(2))
            assert new.rows["a"] != old.rows["a"] or new.arrays is not old.arrays
        made.put("a", adapter(3))
        made.drop("a")
        assert same(content(old, "a"), adapter(1))


def test_rows_are_used_again() -> None:
    made = bank()
    for value in range(1, 200):
        made.put("a", adapter(value))
    assert made.capacity <= 4
    for value in range(100):
        made.put(f"n{value}", adapter(value + 1))
        made.drop(f"n{value}")
    assert made.capacity <= 8


def test_a_layout_changes_only_with_the_arrays() -> None:
    made = bank()
    for name in "abc":
        made.put(name, adapter(1))
    made.drop("c")
    with made.lease(["a"]) as before:
        pass
    made.put("b", adapter(2))
    with made.lease(["a"]) as after:
        pass
    assert after.arrays is before.arrays
    assert after.layout == before.layout
    assert after.revision > before.revision


def test_unknown_names_are_all_named() -> None:
    made = bank()
    made.put("a", adapter(1))
    with pytest.raises(UnknownAdapterError) as caught, made.lease(["x", "a", "y"]):
        pass
    assert [problem.subject for problem in caught.value.problems] == ["x", "y"]
    with pytest.raises(UnknownAdapterError):
        made.drop("x")
    with made.lease(["a"]):
        pass


class TestPaging:
    def test_more_adapters_than_rows(self) -> None:
        made = bank(rows=2)
        for value in range(1, 8):
            made.put(f"n{value}", adapter(value, rank=value))
        assert made.capacity == 2
        for value in (1, 7, 3, 5, 1, 2, 6, 4):
            with made.lease([f"n{value}"]) as lease:
                assert same(content(lease, f"n{value}"), adapter(value, rank=value))
        assert made.capacity == 2

    def test_the_least_recently_used_goes(self) -> None:
        loads: list[str] = []
        made = bank(rows=2)

        def load(name: str) -> Any:
            return lambda: loads.append(name) or Row(adapter(1))

        for name in "abc":
            made.put_lazily(name, load(name))
        for name in ("a", "b", "a", "c", "a", "b"):
            with made.lease([name]):
                pass
        assert loads == ["a", "b", "c"]  # b was read again from host memory, not from its file
        with made.lease(["a", "b"]) as lease:
            assert set(lease.rows) == {"a", "b"}

    def test_a_batch_that_does_not_fit(self) -> None:
        made = bank(rows=2)
        for name in "abc":
            made.put(name, adapter(1))
        with pytest.raises(BankFullError) as caught, made.lease("abc"):
            pass
        assert caught.value.codes == {Code.BANK_FULL}
        with made.lease("ab"):
            pass

    def test_a_paging_run_waits_for_rows(self) -> None:
        made = bank(rows=1)
        made.put("a", adapter(1))
        made.put("b", adapter(2))
        seen: list[bool] = []

        def other() -> None:
            with made.lease(["b"]) as lease:
                seen.append(same(content(lease, "b"), adapter(2)))

        with made.lease(["a"]) as lease:
            waiting = threading.Thread(target=other)
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive()
            assert same(content(lease, "a"), adapter(1))
        waiting.join(10)
        assert seen == [True]

    def test_a_failed_load_disturbs_nobody(self) -> None:
        made = bank(rows=2)
        made.put("a", adapter(1))

        def fail() -> Any:
            raise ValueError("damaged")

        made.put_lazily("bad", fail)
        for _ in range(3):
            with pytest.raises(ValueError, match="damaged"), made.lease(["a", "bad"]):
                pass
            with made.lease(["a"]) as lease:
                assert same(content(lease, "a"), adapter(1))
        made.drop("bad")
        made.put("b", adapter(2))
        with made.lease(["a", "b"]) as lease:
            assert same(content(lease, "b"), adapter(2))


class BankMachine(RuleBasedStateMachine):
    """A bank against a dictionary, with leases held across whatever happens meanwhile."""

    held = Names("held")

    def __init__(self) -> None:
        super().__init__()
        self.rows: int | None = None
        self.bank = bank()
        self.model: dict[str, dict[str, np.ndarray]] = {}
        self.leases = ExitStack()
        self.open: list[tuple[Lease, dict[str, dict[str, np.ndarray]], Any]] = []
        self.value = 0

    def next(self, rank: int, sites: str) -> dict[str, np.ndarray]:
        self.value += 1
        return adapter(self.value, rank, sites)

    @precondition(lambda self: not self.model and not self.open)
    @rule(rows=st.sampled_from([None, 2, 3]))
    def start_over(self, rows: int | None) -> None:
        self.rows, self.bank = rows, bank(rows)

    names = st.sampled_from("abcde")
    ranks = st.integers(1, 20)
    sites = st.sampled_from(["s", "t", "st"])

    @rule(name=names, rank=ranks, sites=sites)
    def put(self, name: str, rank: int, sites: str) -> None:
        self.model[name] = self.next(rank, sites)
        self.bank.put(name, self.model[name])

    @rule(name=names, rank=ranks, sites=sites)
    def put_lazily(self, name: str, rank: int, sites: str) -> None:
        tensors = self.model[name] = self.next(rank, sites)
        self.bank.put_lazily(name, lambda: Row(tensors))

    @rule(name=names)
    def drop(self, name: str) -> None:
        if name in self.model:
            self.bank.drop(name)
            del self.model[name]
        else:
            with pytest.raises(UnknownAdapterError):
                self.bank.drop(name)

    @rule(target=held, wanted=st.sets(names, max_size=3))
    def lease(self, wanted: set[str]) -> Any:
        if not wanted <= self.model.keys():
            with pytest.raises(UnknownAdapterError), self.bank.lease(wanted):
                pass
            return multiple()
        if self.rows is not None:
            if len(wanted) > self.rows:
                with pytest.raises(BankFullError), self.bank.lease(wanted):
                    pass
                return multiple()
            if self.open:
                return multiple()  # it might wait for a lease that this thread holds
        context = self.bank.lease(wanted)
        lease = context.__enter__()
        entry = (lease, {name: self.model[name] for name in wanted}, context)
        self.open.append(entry)
        return entry

    @rule(entry=consumes(held))
    def release(self, entry: Any) -> None:
        self.open = [kept for kept in self.open if kept is not entry]
        entry[2].__exit__(None, None, None)

    @invariant()
    def leased_rows_never_change(self) -> None:
        for lease, expected, _ in self.open:
            for name, tensors in expected.items():
                assert same(content(lease, name), tensors)
            for array in lease.arrays.values():
                assert not array[0].any()

    @invariant()
    def the_names_are_those_of_the_model(self) -> None:
        assert self.bank.generations().keys() == self.model.keys()
        if self.rows is not None:
            assert self.bank.capacity == self.rows

    def teardown(self) -> None:
        for _, _, context in self.open:
            context.__exit__(None, None, None)


BankMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBankMachine = BankMachine.TestCase
