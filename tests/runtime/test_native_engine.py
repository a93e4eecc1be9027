"""The engine on a native TensorRT engine, simulated on the CPU: as on ONNX Runtime, row for row."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from adexport_runtime import (
    BankFullError,
    BundleError,
    Code,
    Engine,
    RequestError,
    UnknownAdapterError,
)
from adexport_runtime.backends.tensorrt.backend import TensorRTBackend
from adexport_runtime.backends.tensorrt.pool import MOST
from tests.conftest import MakeLora

from .simulated_engine import Graph, Simulation, failing, lowered_graph
from .support import GOLDEN_HUB, GOLDEN_PEFT, hidden, ids, subjects

ROWS = ["a", None, "b", "c", "c", "a", None]


def simulate(root: Path, graph: Graph, *profiles: str) -> Simulation:
    return Simulation(root, graph, profiles, "copied")


@pytest.fixture
def native(tiny_bundle: Path, native_graph: Graph) -> Simulation:
    return simulate(tiny_bundle, native_graph)


@pytest.fixture
def engine(native: Simulation, ranked: dict[str, Path]) -> Iterator[Engine]:
    with native.open() as opened:
        for name, folder in ranked.items():
            opened.bind(name, folder)
        yield opened
    assert (native.device.pieces, native.device.streams) == (0, 0)
    assert native.executable.closed


class TestRuns:
    def test_mixed_rows_are_those_of_the_cpu(self, engine: Engine, ranked_cpu: Engine) -> None:
        given = ids(7, 9, seed=3)
        mask = (np.arange(9)[None] < np.array([9, 1, 4, 7, 2, 9, 3])[:, None]).astype(np.int64)
        inputs = {"input_ids": given, "attention_mask": mask}
        for rows in (ROWS, None, "a", ["b"] * 7, ["c", *[None] * 6]):
            found, wanted = hidden(engine, inputs, rows), hidden(ranked_cpu, inputs, rows)
            assert np.abs(found - wanted)[mask.astype(bool)].max() <= 1e-5
        assert engine.provider == "a simulated TensorRT 0"

    def test_shapes_come_and_go(self, engine: Engine, ranked_cpu: Engine) -> None:
        """Buffers grow, and smaller runs in them are not disturbed by what is behind."""
        for batch, length in ((1, 1), (4, 30), (2, 3), (8, 40), (1, 7)):
            rows = ROWS[:batch] if batch < 8 else None
            given = ids(batch, length, seed=length)
            assert np.abs(hidden(engine, given, rows) - hidden(ranked_cpu, given, rows)).max() <= 1e-5

    def test_outputs_are_the_callers_own(self, engine: Engine) -> None:
        first = hidden(engine, ids(2, 4), "a")
        kept = first.copy()
        hidden(engine, ids(2, 4, seed=1), ["b", None])
        np.testing.assert_array_equal(first, kept)

    @pytest.mark.parametrize("poison", [np.nan, np.inf])
    def test_a_poisoned_adapter_leaves_other_rows_bit_equal(self, engine: Engine, poison: float) -> None:
        given = ids(6, 8)
        rows = ["a", "c", None, "c", "b", None]
        before = hidden(engine, given, rows)
        tensors = {
            slot.name: np.full(
                [s if isinstance(s, int) else 16 for s in slot.shape[1:]], poison, np.float32
            )
            for slot in engine.bundle.manifest.slot_inputs
            if slot.dtype == "float"
        }
        engine._bank.put("c", tensors)
        after = hidden(engine, given, rows)
        assert np.isnan(after[[1, 3]]).all()
        kept = [0, 2, 4, 5]
        np.testing.assert_array_equal(after[kept], before[kept])

    def test_a_rebind_is_for_later_runs(
        self, engine: Engine, ranked_cpu: Engine, make_lora: MakeLora
    ) -> None:
        given = ids(3, 5)
        hidden(engine, given, ["a", "b", None])
        folder = make_lora("a", seed=9, r=7, std=0.2)
        for opened in (engine, ranked_cpu):
            opened.bind("a", folder)
        found = hidden(engine, given, ["a", "b", None])
        assert np.abs(found - hidden(ranked_cpu, given, ["a", "b", None])).max() <= 1e-5
        engine.unbind("a")
        with pytest.raises(UnknownAdapterError):
            hidden(engine, given, "a")

    def test_few_rows_serve_many_adapters(
        self, native: Simulation, ranked_cpu: Engine, make_lora: MakeLora
    ) -> None:
        folders = {f"n{seed}": make_lora(f"n{seed}", seed=seed, r=1 + seed, std=0.2) for seed in range(6)}
        with native.open(rows=2) as paged:
            for name, folder in folders.items():
                paged.bind(name, folder)
                ranked_cpu.bind(name, folder)
            for rows in (
                ["n0", "n5", "n0"],
                ["n1", None, "n2"],
                ["n3", "n3", "n3"],
                ["n5", "n4", None],
            ) * 2:
                assert np.abs(hidden(paged, ids(), rows) - hidden(ranked_cpu, ids(), rows)).max() <= 1e-5
            with pytest.raises(BankFullError):
                hidden(paged, ids(), ["n0", "n1", "n2"])


class TestUploads:
    def test_binding_an_adapter_copies_its_row(self, native: Simulation, ranked: dict[str, Path]) -> None:
        slots = len(native.bundle.manifest.slot_inputs) - 1  # the guard is no input of the engine
        with native.open() as engine:
            engine.bind("b", ranked["b"])
            hidden(engine, ids(), "b")
            for _ in range(2):
                native.device.reset_counts()
                hidden(engine, ids(), "b")
                # three inputs and the ids up, two outputs down
                assert native.device.copies == {"upload": 4, "run": 1, "download": 2}
            inputs = native.device.nbytes["upload"]
            native.device.reset_counts()
            engine.bind("a", ranked["a"])  # not wider, and there is no free row: the bank doubles
            hidden(engine, ids(), ["a", "b", None])
            engine.bind("a", ranked["a"])  # and now there is one
            native.device.reset_counts()
            hidden(engine, ids(), ["a", None, "b"])

            ragged = [slot for slot in native.record.inputs if slot.shape[0] == "rows"]
            row = sum(
                4 * int(np.prod([size if isinstance(size, int) else 8 for size in slot.shape[1:]]))
                for slot in ragged
            )
            assert len(ragged) == slots
            assert native.device.copies["upload"] == 4 + slots
            assert native.device.nbytes["upload"] == inputs + row
            assert native.device.copies["copy"] == 0

    def test_shapes_are_set_once(self, engine: Engine, native: Simulation) -> None:
        hidden(engine, ids(3, 7), ["a", "b", None])
        (context,) = native.executable.contexts
        before = context.shapes_set
        hidden(engine, ids(3, 7, seed=2), ["b", "a", None])
        assert context.shapes_set == before
        hidden(engine, ids(3, 8), ["b", "a", None])
        assert context.shapes_set == before + 3  # ids, mask and types of tokens
        assert context.profiles == [0]


class TestFailures:
    def test_a_run_that_the_gpu_fails(self, tiny_bundle: Path, native_graph: Graph) -> None:
        native = simulate(
            tiny_bundle, failing(native_graph, lambda feeds: feeds["input_ids"].shape[1] == 5)
        )
        with native.open() as engine:
            before = hidden(engine, ids())
            with pytest.raises(RequestError) as caught:
                hidden(engine, ids(2, 5))
            assert caught.value.codes == {Code.RUN_FAILED}
            np.testing.assert_array_equal(hidden(engine, ids()), before)
            closed = [context.closed for context in native.executable.contexts]
            assert closed == [True, False]  # the one that failed is not used again, nor kept by the error

    def test_no_memory(self, native: Simulation, ranked: dict[str, Path]) -> None:
        with native.open() as engine:
            engine.bind("a", ranked["a"])
            before = hidden(engine, ids(), "a")
            native.device.capacity = native.device.allocated + 100
            with pytest.raises(RequestError) as caught:
                hidden(engine, ids(30, 40), "a")
            assert subjects(caught.value, Code.RUN_FAILED) == {"device memory"}
            engine.bind("c", ranked["c"])
            with pytest.raises(RequestError):
                hidden(engine, ids(), "c")
            engine.unbind("c")
            native.device.capacity = None
            np.testing.assert_array_equal(hidden(engine, ids(), "a"), before)

    def test_fewer_contexts_than_threads(self, engine: Engine, native: Simulation) -> None:
        native.executable.most_contexts = 2
        expected = hidden(engine, ids(), ["a", "b", None])
        errors: list[BaseException] = []

        def run() -> None:
            try:
                for _ in range(20):
                    np.testing.assert_array_equal(hidden(engine, ids(), ["a", "b", None]), expected)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors[0]
        assert len(native.executable.contexts) <= 2

    def test_closed(self, native: Simulation) -> None:
        engine = native.open()
        hidden(engine, ids())
        backend = engine._running
        engine.close()
        with pytest.raises(RequestError) as caught:
            hidden(engine, ids())
        assert caught.value.codes == {Code.CLOSED}
        assert isinstance(backend, TensorRTBackend)
        with pytest.raises(RequestError), backend._pool.worker():
            pass

    def test_an_engine_of_another_graph(self, native: Simulation) -> None:
        dropped = native.executable.inputs[-1]
        native.executable.inputs = (*native.executable.inputs[:-1], "strange")
        with pytest.raises(BundleError) as caught:
            native.backend()
        assert subjects(caught.value, Code.BAD_MANIFEST) == {dropped, "strange"}
        native.executable.inputs = (*native.executable.inputs[:-1], dropped)
        shaped = native.record.inputs[0].model_copy(update={"dtype": "int32"})
        native.record = native.record.model_copy(update={"inputs": (shaped, *native.record.inputs[1:])})
        with pytest.raises(BundleError) as caught:
            native.backend()
        assert subjects(caught.value, Code.BAD_MANIFEST) == {shaped.name}


def test_without_slots(plain_bundle: Path, tmp_path: Path, ranked_cpu: Engine) -> None:
    native = simulate(plain_bundle, lowered_graph(plain_bundle, tmp_path))
    with native.open() as engine:
        assert np.abs(hidden(engine, ids()) - hidden(ranked_cpu, ids())).max() <= 1e-5


@pytest.mark.slow
def test_every_kind_of_slot(every_slot: Path, tmp_path: Path) -> None:
    """Heads and bottlenecks beside one another; labels are cut to each row's own."""
    native = simulate(every_slot, lowered_graph(every_slot, tmp_path), "mid=1:32:64")
    with native.open() as engine, Engine.open(every_slot) as cpu:
        bound = {
            "lora": GOLDEN_PEFT / "bert" / "bdlora",
            "houlsby": GOLDEN_HUB / "bert" / "double_seq_bn",
            "head": GOLDEN_HUB / "bert" / "head-classification",
        }
        for name, source in bound.items():
            for opened in (engine, cpu):
                opened.bind(name, source)
        given = {"input_ids": ids(len(bound) + 1) % 40}
        found, wanted = engine.run(given, [*bound, None]), cpu.run(given, [*bound, None])
        assert found.labels == wanted.labels
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


def test_threads_see_whole_generations(
    native: Simulation, make_lora: MakeLora, ranked: dict[str, Path]
) -> None:
    """Six threads run while another binds and unbinds, with rows that are paged."""
    versions = [make_lora(f"v{seed}", seed=seed, r=2 + 3 * seed, std=0.3) for seed in range(4)]
    given = ids(1, 6)
    engine = native.open(rows=4)
    expected = []
    for folder in versions:
        engine.bind("fixed", folder)
        expected.append(hidden(engine, given, "fixed")[0])
    truth = np.stack([*expected, hidden(engine, given)[0]])
    engine.bind("fixed", versions[0])
    engine.bind("moving", versions[1])
    ended = threading.Event()
    errors: list[BaseException] = []
    seen: set[int] = set()

    def run() -> None:
        try:
            for _ in range(25):
                outputs = hidden(engine, given.repeat(4, axis=0), ["fixed", "moving", None, "moving"])
                found = [int(np.abs(truth - row).max(axis=(1, 2)).argmin()) for row in outputs]
                for row, index in zip(outputs, found, strict=True):
                    assert np.abs(truth[index] - row).max() <= 1e-5
                assert (found[0], found[2]) == (0, len(versions))
                assert found[1] == found[3] < len(versions)
                seen.add(found[1])
        except BaseException as error:
            errors.append(error)

    def bind() -> None:
        turn = 0
        while not ended.is_set():
            engine.bind("moving", versions[turn % len(versions)])
            engine.bind(f"other{turn % 5}", versions[(turn + 1) % len(versions)])
            turn += 1

    workers = [threading.Thread(target=run) for _ in range(6)]
    binder = threading.Thread(target=bind)
    for thread in (*workers, binder):
        thread.start()
    for worker in workers:
        worker.join()
    ended.set()
    binder.join()
    assert not errors, errors[0]
    assert len(seen) > 1
    assert len(native.executable.contexts) <= MOST
    engine.close()
    assert (native.device.pieces, native.device.streams) == (0, 0)
