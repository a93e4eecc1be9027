"""Rows, leases and paging: a row belongs to one generation, and a leased row never changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
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
    SlotInput(name="t.scale_out", shape=("rows", 4), identity="ones"),
    SlotInput(name="t.bottleneck.down", shape=("rows", 4, "t.width")),
    SlotInput(name="t.bottleneck.up", shape=("rows", "t.width", 4)),
    SlotInput(name="t.bottleneck.code", shape=("rows",), dtype="int64"),
    SlotInput(name="head.dense", shape=("rows", 4, "head.mid")),
    SlotInput(name="head.deep", shape=("rows", "head.mid", "head.labels")),
    SlotInput(name="head.out", shape=("rows", 4, "head.labels")),
    SlotInput(name="head.code", shape=("rows",), dtype="int64"),
)
IDENTITY = {slot.name: int(slot.identity == "ones") for slot in SLOTS}


def adapter(value: float, rank: int = 2, sites: str = "st") -> dict[str, np.ndarray]:
    """A LoRA whose entries are all ``value``; ``sites`` are those that it touches."""
    shapes = {"s": ((3, rank), (rank, 2)), "t": ((2, rank), (rank, 4))}
    tensors = {}
    for site in sites:
        for half, shape in zip("AB", shapes[site], strict=True):
            tensors[f"{site}.lora_{half}"] = np.full(shape, value, np.float32)
    return tensors


def scale(value: float, size: int = 0) -> dict[str, np.ndarray]:
    """An adapter that brings scales only; no size of it is ragged."""
    del size
    return {"t.scale_out": np.full(4, value, np.float32)}


def bottleneck(value: float, width: int = 2) -> dict[str, np.ndarray]:
    """An adapter that brings a bottleneck, and a code for its form."""
    return {
        "t.bottleneck.down": np.full((4, width), value, np.float32),
        "t.bottleneck.up": np.full((width, 4), value, np.float32),
        "t.bottleneck.code": np.array(value, np.int64),
    }


def head(value: float, labels: int = 2) -> dict[str, np.ndarray]:
    """An adapter that brings a head: of two layers where the number of labels is even, else of one."""
    layers = {"head.out": (4, labels)}
    if labels % 2 == 0:
        layers = {"head.dense": (4, labels + 1), "head.deep": (labels + 1, labels)}
    tensors = {name: np.full(shape, value, np.float32) for name, shape in layers.items()}
    return {**tensors, "head.code": np.array(value, np.int64)}


#: every kind of adapter, by its value and a size; together, as a head beside a bottleneck
FAMILIES: tuple[Callable[[float, int], dict[str, np.ndarray]], ...] = (
    adapter,
    lambda value, rank: adapter(value, rank, "s"),
    lambda value, rank: adapter(value, rank, "t"),
    scale,
    bottleneck,
    head,
    lambda value, size: {**bottleneck(value, size), **head(value, 21 - size), **scale(value)},
)


def holds(lease: Lease, name: str, expected: dict[str, np.ndarray]) -> bool:
    """Whether a leased row has these tensors, and the identity in all else."""
    return all(
        np.array_equal(array[lease.rows[name]], padded(expected.get(key), array.shape[1:], IDENTITY[key]))
        for key, array in lease.arrays.items()
    )


def padded(tensor: np.ndarray | None, shape: tuple[int, ...], identity: int) -> np.ndarray:
    made = np.full(shape, identity, np.float64)
    if tensor is not None:
        made[tuple(slice(size) for size in tensor.shape)] = tensor
    return made


def neutral(lease: Lease) -> bool:
    """Whether row 0 is the identity."""
    return all((array[0] == IDENTITY[key]).all() for key, array in lease.arrays.items())


def bank(rows: int | None = None, dtype: Any = np.float32, most: int | None = None) -> Bank:
    return Bank(SLOTS, np.dtype(dtype), rows, most)


def test_an_empty_bank_is_the_identity() -> None:
    with bank().lease([]) as lease:
        assert lease.rows == {}
        assert neutral(lease)
        assert lease.arrays["s.lora_A"].shape[1:] == (3, 0)


def test_rows_hold_what_was_put() -> None:
    made = bank()
    made.put("a", adapter(1, rank=2))
    made.put("b", adapter(2, rank=9, sites="s"))
    with made.lease(["a", "b"]) as lease:
        assert holds(lease, "a", adapter(1, rank=2))
        assert holds(lease, "b", adapter(2, rank=9, sites="s"))
        assert sorted(lease.rows.values()) == [1, 2]
        assert lease.arrays["s.lora_A"].shape[2] == 16  # the rank, in steps of eight
        assert lease.arrays["t.lora_A"].shape[2] == 8
        assert neutral(lease)


def test_a_narrow_type_is_kept() -> None:
    made = bank(dtype=np.float16)
    made.put("a", adapter(0.1))
    with made.lease(["a"]) as lease:
        assert {array.dtype for key, array in lease.arrays.items() if "code" not in key} == {
            np.dtype(np.float16)
        }
        assert {array.dtype for key, array in lease.arrays.items() if "code" in key} == {np.dtype(np.int64)}
        assert lease.arrays["s.lora_A"][lease.rows["a"], 0, 0] == np.float16(0.1)


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
        assert holds(lease, "narrow", adapter(1, rank=3))


def test_a_rebind_is_another_row_and_another_generation() -> None:
    made = bank()
    made.put("a", adapter(1))
    first = made.generations()["a"]
    with made.lease(["a"]) as old:
        made.put("a", adapter(2))
        assert made.generations()["a"] > first
        assert holds(old, "a", adapter(1))
        with made.lease(["a"]) as new:
            assert holds(new, "a", adapter(2))
            assert new.rows["a"] != old.rows["a"] or new.arrays is not old.arrays
        made.put("a", adapter(3))
        made.drop("a")
        assert holds(old, "a", adapter(1))


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
                assert holds(lease, f"n{value}", adapter(value, rank=value))
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
                seen.append(holds(lease, "b", adapter(2)))

        with made.lease(["a"]) as lease:
            waiting = threading.Thread(target=other)
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive()
            assert holds(lease, "a", adapter(1))
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
                assert holds(lease, "a", adapter(1))
        made.drop("bad")
        made.put("b", adapter(2))
        with made.lease(["a", "b"]) as lease:
            assert holds(lease, "b", adapter(2))


def widest(adapters: list[dict[str, np.ndarray]], symbol: str) -> int:
    """The largest size that adapters give to a symbol."""
    return max(
        (
            size
            for tensors in adapters
            for slot in SLOTS
            if slot.name in tensors
            for name, size in zip(slot.shape[1:], tensors[slot.name].shape, strict=True)
            if name == symbol
        ),
        default=0,
    )


def test_a_row_forgets_the_kind_that_it_held() -> None:
    """Scales of one, codes of zero and empty slots where another kind of adapter stood before."""
    made = bank(rows=1)
    for value in range(2, 30):
        family = FAMILIES[value % len(FAMILIES)]
        made.put("a", family(value, 1 + value % 9))
        with made.lease(["a"]) as lease:
            assert holds(lease, "a", family(value, 1 + value % 9))
            assert neutral(lease)


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

    def next(self, family: int, size: int) -> dict[str, np.ndarray]:
        self.value += 1
        return FAMILIES[family](self.value, size)

    @precondition(lambda self: not self.model and not self.open)
    @rule(rows=st.sampled_from([None, 2, 3]))
    def start_over(self, rows: int | None) -> None:
        self.rows, self.bank = rows, bank(rows)

    names = st.sampled_from("abcde")
    sizes = st.integers(1, 20)
    families = st.integers(0, len(FAMILIES) - 1)

    @rule(name=names, family=families, size=sizes)
    def put(self, name: str, family: int, size: int) -> None:
        self.model[name] = self.next(family, size)
        self.bank.put(name, self.model[name])

    @rule(name=names, family=families, size=sizes)
    def put_lazily(self, name: str, family: int, size: int) -> None:
        tensors = self.model[name] = self.next(family, size)
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
                assert holds(lease, name, tensors)
            assert neutral(lease)

    @invariant()
    def no_size_is_larger_than_needed(self) -> None:
        """What a tenant pays for is as wide as the widest of those that are there, in steps of eight."""
        if self.rows is not None:
            return  # who is resident is the bank's own affair
        waiting = {name for name, entry in self.bank._entries.items() if entry.row is None}
        there = [tensors for name, tensors in self.model.items() if name not in waiting]
        for slot in SLOTS:
            for axis, size in enumerate(slot.shape[1:]):
                if isinstance(size, str):
                    found = self.bank._arrays[slot.name].shape[1 + axis]
                    assert found == -(-widest(there, size) // 8) * 8

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
