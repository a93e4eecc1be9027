"""Slot inputs on a device: what is copied, when, and that nothing is freed or written under a run."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adexport_runtime import Code, RequestError
from adexport_runtime.backends.device import DeviceArray
from adexport_runtime.backends.device_bank import DeviceArrays, DeviceBank, DeviceRows
from adexport_runtime.bank import Bank
from adexport_runtime.batch_rows import BatchRows
from adexport_runtime.profiles import Profile, Range
from adexport_runtime.slots import SlotInput

from .simulated import SimulatedDevice

FLOAT = np.dtype(np.float32)
SLOTS = (
    SlotInput(name="A", shape=("rows", 3, "x.rank")),
    SlotInput(name="B", shape=("rows", "x.rank", 2)),
    SlotInput(name="scale", shape=("rows", 5), identity="ones"),
    SlotInput(name="code", shape=("rows",), dtype="int64"),
)
Row = dict[str, np.ndarray]


def made(rank: int, seed: int) -> Row:
    random = np.random.default_rng(seed)
    return {
        "A": random.standard_normal((3, rank)).astype(np.float32),
        "B": random.standard_normal((rank, 2)).astype(np.float32),
        "scale": random.standard_normal(5).astype(np.float32),
        "code": np.array(seed, np.int64),
    }


def profile(rank: tuple[int, int] = (1, 12), rows: tuple[int, int] = (1, 9)) -> Profile:
    return Profile(
        sizes={
            "rank": Range(min=rank[0], opt=rank[0], max=rank[1]),
            "rows": Range(min=rows[0], opt=rows[0], max=rows[1]),
        }
    )


def read(device: SimulatedDevice, array: DeviceArray) -> np.ndarray:
    return device.view(*array)


def check_row(device: SimulatedDevice, arrays: DeviceArrays, row: int, expected: Row | None) -> None:
    found = {name: read(device, array)[row] for name, array in arrays.items()}
    rank = expected["A"].shape[1] if expected else 0
    if expected:
        np.testing.assert_array_equal(found["A"][:, :rank], expected["A"])
        np.testing.assert_array_equal(found["B"][:rank], expected["B"])
    assert not found["A"][:, rank:].any()
    assert not found["B"][rank:].any()
    np.testing.assert_array_equal(found["scale"], expected["scale"] if expected else np.ones(5))
    assert found["code"] == (expected["code"] if expected else 0)


class TestDeviceBank:
    def test_an_adapter_is_copied_once_and_alone(self) -> None:
        device, bank = SimulatedDevice(), Bank(SLOTS, FLOAT, rows=4)
        resident = DeviceBank(device, SLOTS, FLOAT, profile())
        for seed, name in enumerate("ab"):
            bank.put(name, made(5, seed))
        with bank.lease({"a"}) as lease, resident.hold(lease) as arrays:
            check_row(device, arrays, lease.rows["a"], made(5, 0))
            check_row(device, arrays, 0, None)
        device.reset_counts()
        with bank.lease({"a"}) as lease, resident.hold(lease):
            assert not device.copies
        row_bytes = (3 * 8 + 8 * 2 + 5) * 4 + 8  # rank 5 lies in 8
        with bank.lease({"a", "b"}) as lease, resident.hold(lease) as arrays:
            assert device.copies == {"upload": 4}
            assert device.nbytes == {"upload": row_bytes}
            check_row(device, arrays, lease.rows["a"], made(5, 0))
            check_row(device, arrays, lease.rows["b"], made(5, 1))
        device.reset_counts()
        bank.put("a", made(6, 7))
        assert not device.copies  # not before a run asks for it
        with bank.lease({"a", "b"}) as lease, resident.hold(lease) as arrays:
            assert device.nbytes == {"upload": row_bytes}
            check_row(device, arrays, lease.rows["a"], made(6, 7))
        resident.close()
        assert (device.pieces, device.streams) == (0, 0)

    @pytest.mark.parametrize(
        ("rank", "wanted", "size"),
        [
            (0, (1, 12), 1),
            (3, (1, 12), 8),
            (9, (1, 12), 12),
            (12, (1, 12), 12),
            (2, (11, 12), 11),
            (1, (1, 1), 1),
        ],
    )
    def test_ranks_are_kept_within_the_profile(self, rank: int, wanted: tuple[int, int], size: int) -> None:
        device, bank = SimulatedDevice(), Bank(SLOTS, FLOAT, rows=4)
        resident = DeviceBank(device, SLOTS, FLOAT, profile(wanted))
        tensors = made(rank, 1) if rank else {"scale": made(1, 1)["scale"]}
        bank.put("a", tensors)
        with bank.lease({"a"}) as lease, resident.hold(lease) as arrays:
            assert arrays["A"].shape == (5, 3, size)
            check_row(device, arrays, lease.rows["a"], {**made(0, 0), **tensors})

    def test_what_would_be_cut_is_refused(self) -> None:
        device, bank = SimulatedDevice(), Bank(SLOTS, FLOAT, rows=4)
        resident = DeviceBank(device, SLOTS, FLOAT, profile())
        bank.put("small", made(2, 1))
        bank.put("large", made(13, 2))
        with bank.lease({"small", "large"}) as lease:
            holding = resident.hold(lease)
            with pytest.raises(RequestError) as caught:
                holding.__enter__()
        assert caught.value.codes == {Code.RANK_ABOVE_MAX}
        assert [problem.subject for problem in caught.value.problems] == ["large"]
        with bank.lease({"small"}) as lease, resident.hold(lease) as arrays:
            check_row(device, arrays, lease.rows["small"], made(2, 1))

    def test_runs_keep_the_memory_of_their_layout(self) -> None:
        device, bank = SimulatedDevice(), Bank(SLOTS, FLOAT)
        resident = DeviceBank(device, SLOTS, FLOAT)
        bank.put("a", made(3, 1))
        with bank.lease({"a"}) as old, resident.hold(old) as before:
            bank.put("b", made(20, 2))
            with bank.lease({"a", "b"}) as new, resident.hold(new) as after:
                assert after["A"].shape[2] == 24
                check_row(device, after, new.rows["a"], made(3, 1))
                check_row(device, after, new.rows["b"], made(20, 2))
                check_row(device, before, old.rows["a"], made(3, 1))
                assert device.pieces == 2
            check_row(device, before, old.rows["a"], made(3, 1))
        assert device.pieces == 1
        assert resident.nbytes == device.allocated

    def test_a_late_run_of_an_old_layout(self) -> None:
        device, bank = SimulatedDevice(), Bank(SLOTS, FLOAT)
        resident = DeviceBank(device, SLOTS, FLOAT)
        bank.put("a", made(3, 1))
        with bank.lease({"a"}) as old:
            bank.put("b", made(20, 2))
            with bank.lease({"b"}) as new, resident.hold(new):
                pass
            with resident.hold(old) as arrays:
                check_row(device, arrays, old.rows["a"], made(3, 1))
        with bank.lease({"b"}) as new, resident.hold(new) as arrays:
            check_row(device, arrays, new.rows["b"], made(20, 2))
        assert device.pieces == 1

    def test_no_memory(self) -> None:
        bank = Bank(SLOTS, FLOAT)
        bank.put("a", made(3, 1))
        device = SimulatedDevice(capacity=6000)
        resident = DeviceBank(device, SLOTS, FLOAT)
        with bank.lease({"a"}) as lease, resident.hold(lease):
            pass
        bank.put("b", made(200, 2))
        with bank.lease({"b"}) as lease, pytest.raises(MemoryError), resident.hold(lease):
            pass
        bank.drop("b")
        with bank.lease({"a"}) as lease, resident.hold(lease) as arrays:
            check_row(device, arrays, lease.rows["a"], made(3, 1))

    def test_many_threads_see_whole_generations(self) -> None:
        """Rows are rebound, evicted and paged while eight threads read them on the device."""
        device, bank = SimulatedDevice(), Bank(SLOTS, FLOAT, rows=5)
        resident = DeviceBank(device, SLOTS, FLOAT)
        names = [f"n{index}" for index in range(9)]
        for index, name in enumerate(names):
            bank.put(name, made(1 + index, index))
        errors: list[BaseException] = []
        ended = threading.Event()

        def work(worker: int) -> None:
            random = np.random.default_rng(worker)
            try:
                for _ in range(150):
                    wanted = set(random.choice(names, 2, replace=False).tolist())
                    with bank.lease(wanted) as lease, resident.hold(lease) as arrays:
                        for _ in range(2):
                            for name in wanted:
                                row = {k: read(device, a)[lease.rows[name]] for k, a in arrays.items()}
                                check_row(device, arrays, lease.rows[name], made_of(row, lease.sizes[name]))
            except BaseException as error:
                errors.append(error)

        def made_of(row: Row, sizes: Any) -> Row:
            return made(sizes["x.rank"], int(row["code"]))  # the seed that it was made from

        def rebind() -> None:
            turn = 0
            while not ended.is_set():
                bank.put(names[turn % 9], made(1 + turn % 17, 100 + turn))
                turn += 1

        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        binder = threading.Thread(target=rebind)
        for thread in (*threads, binder):
            thread.start()
        for thread in threads:
            thread.join()
        ended.set()
        binder.join()
        assert not errors, errors[0]
        resident.close()
        assert (device.pieces, device.streams) == (0, 0)


class TestDeviceRows:
    def test_only_rows_that_changed_are_copied(self) -> None:
        device, rows = SimulatedDevice(), BatchRows(SLOTS, FLOAT, 4)
        stream = device.open_stream()
        there = DeviceRows(device, SLOTS, FLOAT, profile())
        for row in range(3):
            rows.put(row, made(4, row))

        def bring(part: slice) -> DeviceArrays:
            arrays, kept = there.bring(rows, part, stream)
            device.synchronize(stream)
            del kept
            return arrays

        bring(slice(0, 2))
        assert device.copies == {"upload": 8}
        device.reset_counts()
        arrays = bring(slice(1, 3))
        assert device.copies == {"upload": 4}
        assert arrays["A"].shape == (2, 3, 8)
        check_row(device, arrays, 0, made(4, 1))
        check_row(device, arrays, 1, made(4, 2))
        device.reset_counts()
        rows.move(2, 0)
        arrays = bring(slice(0, 3))
        assert device.copies == {"upload": 8}  # the target, and the source that is the identity now
        check_row(device, arrays, 0, made(4, 2))
        check_row(device, arrays, 1, made(4, 1))
        check_row(device, arrays, 2, None)
        there.close()
        assert device.pieces == 0

    def test_one_row_for_all(self) -> None:
        device, rows = SimulatedDevice(), BatchRows(SLOTS, FLOAT, 1)
        stream = device.open_stream()
        there = DeviceRows(device, SLOTS, FLOAT, profile())
        rows.put(0, made(4, 7))
        for each, count in ((False, 1), (True, 3)):
            arrays, kept = there.bring(rows, slice(0, 3), stream, each=each)
            device.synchronize(stream)
            del kept
            assert arrays["A"].shape == (count, 3, 8)
            for row in range(count):
                check_row(device, arrays, row, made(4, 7))

    def test_a_row_that_would_be_cut_is_refused(self) -> None:
        device, rows = SimulatedDevice(), BatchRows(SLOTS, FLOAT, 2)
        there = DeviceRows(device, SLOTS, FLOAT, profile())
        rows.put(1, made(13, 1))
        with pytest.raises(RequestError) as caught:
            there.bring(rows, slice(0, 2), device.open_stream())
        assert caught.value.codes == {Code.RANK_ABOVE_MAX}

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["put", "clear", "move", "run"]),
                st.integers(0, 3),
                st.integers(0, 3),
                st.integers(1, 12),
            ),
            max_size=25,
        )
    )
    @settings(max_examples=150, deadline=None)
    def test_any_order_of_changes_and_runs(self, changes: list[tuple[str, int, int, int]]) -> None:
        device, rows = SimulatedDevice(), BatchRows(SLOTS, FLOAT, 4)
        stream = device.open_stream()
        there = DeviceRows(device, SLOTS, FLOAT, profile())
        expected: list[Row | None] = [None] * 4
        for turn, (what, one, other, rank) in enumerate([*changes, ("run", 0, 3, 1)]):
            if what == "put":
                expected[one] = made(rank, turn)
                rows.put(one, made(rank, turn))
            elif what == "clear":
                expected[one] = None
                rows.put(one, {})
            elif what == "move" and one != other:
                expected[other], expected[one] = expected[one], None
                rows.move(one, other)
            elif what == "run":
                start, stop = min(one, other), max(one, other) + 1
                arrays, kept = there.bring(rows, slice(start, stop), stream)
                device.synchronize(stream)
                del kept
                for row in range(start, stop):
                    check_row(device, arrays, row - start, expected[row])


def test_rows_of_device_arrays() -> None:
    array = DeviceArray(4096, (7, 3, 5), np.dtype(np.float16))
    assert array.row_bytes == 30
    assert array.rows(2, 5) == (4096 + 60, (3, 3, 5), np.float16)
    assert array.rows(2, 5).nbytes == 90
    assert (array.aligned, array.rows(1, 2).aligned) == (True, False)
