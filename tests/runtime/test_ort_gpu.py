"""The backend for GPUs, with a session on the CPU that is bound to a simulated device."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adexport_runtime import AdapterError, Code, Engine, RequestError
from adexport_runtime.backends.ort_gpu.kv_caches import DeviceCaches
from adexport_runtime.batch_rows import BatchRows
from tests.conftest import MakeLora

from .host_device import HostDevice, open_simulated
from .support import hidden, ids


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture
def engine(tiny_bundle: Path, device: HostDevice) -> Iterator[Engine]:
    with open_simulated(tiny_bundle, device) as opened:
        yield opened


def bind(engine: Engine, make_lora: MakeLora, **ranks: int) -> None:
    for seed, (name, rank) in enumerate(ranks.items()):
        engine.bind(name, make_lora(name, seed=seed, r=rank, std=0.2))


def test_a_bind_copies_one_row(tiny_bundle: Path, device: HostDevice, make_lora: MakeLora) -> None:
    with open_simulated(tiny_bundle, device, rows=8) as engine:
        bind(engine, make_lora, a=4, b=4, c=4)
        hidden(engine, ids(), ["a", "b", None])
        slots = engine.bundle.manifest.slot_inputs
        device.reset_counts()
        hidden(engine, ids(), ["b", None, "a"])
        assert not device.copies["upload"]
        engine.bind("a", make_lora("a", seed=9, r=4, std=0.2))
        hidden(engine, ids(), ["b", None, "a"])
        assert device.copies["upload"] == len(slots)
        hidden(engine, ids(), "c")
        assert device.copies["upload"] == 2 * len(slots)


def test_rows_are_those_of_the_cpu(
    engine: Engine, tiny_bundle: Path, device: HostDevice, make_lora: MakeLora
) -> None:
    """Also when arrays are replaced by wider and by narrower ones, under bindings that are used again."""
    with Engine.open(tiny_bundle, threads=1) as cpu:
        for step, (name, rank) in enumerate((("a", 2), ("b", 16), ("c", 9), ("b", 1), ("d", 5), ("e", 3))):
            for each in (engine, cpu):
                each.bind(name, make_lora(name, seed=step, r=rank, std=0.2))
            rows = [name, None, "a", name]
            for given, adapters in ((ids(4, 7), rows), (ids(1, 3), name), (ids(2, 5), None)):
                found = hidden(engine, given, adapters)
                np.testing.assert_allclose(found, hidden(cpu, given, adapters), rtol=0, atol=1e-6)
    assert device.pieces <= 2


def test_nothing_stays_on_the_device(tiny_bundle: Path, device: HostDevice, make_lora: MakeLora) -> None:
    with open_simulated(tiny_bundle, device) as engine:
        bind(engine, make_lora, a=4)
        hidden(engine, ids(), "a")
        assert device.pieces
    assert device.pieces == device.streams == 0
    with pytest.raises(RequestError) as caught:
        hidden(engine, ids(), "a")
    assert caught.value.codes == {Code.CLOSED}


def test_closing_waits_for_the_runs_under_way(
    tiny_bundle: Path, device: HostDevice, make_lora: MakeLora, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they read must not be freed under them."""
    engine = open_simulated(tiny_bundle, device)
    bind(engine, make_lora, a=4)
    expected = hidden(engine, ids(), "a")
    session = engine._backend._session  # type: ignore[union-attr]
    run, started, allowed = session.run_with_iobinding, threading.Event(), threading.Event()

    def slow(io: Any, options: Any) -> None:
        started.set()
        assert allowed.wait(60)
        run(io, options)

    monkeypatch.setattr(session, "run_with_iobinding", slow)
    found: list[np.ndarray] = []
    runner = threading.Thread(target=lambda: found.append(hidden(engine, ids(), "a")))
    closer = threading.Thread(target=engine.close)
    runner.start()
    assert started.wait(60)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    assert device.pieces
    allowed.set()
    runner.join()
    closer.join()
    assert device.pieces == 0
    np.testing.assert_array_equal(found[0], expected)


class TestProfiles:
    SMALL = "batch=1:2:4,seq=1:4:8,rank=1:2:4,rows=1:2:3"

    def test_inside(self, tiny_bundle: Path, device: HostDevice, make_lora: MakeLora) -> None:
        with open_simulated(tiny_bundle, device, self.SMALL) as engine, Engine.open(tiny_bundle) as cpu:
            for each in (engine, cpu):
                bind(each, make_lora, a=4, b=2)
            given = ids(4, 8)
            found = hidden(engine, given, ["a", "b", None, "a"])
            expected = hidden(cpu, given, ["a", "b", None, "a"])
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)

    def test_outside(self, tiny_bundle: Path, device: HostDevice, make_lora: MakeLora) -> None:
        with open_simulated(tiny_bundle, device, self.SMALL) as engine:
            bind(engine, make_lora, a=4, b=1, c=2)  # more than there are rows
            with pytest.raises(AdapterError) as refused:
                bind(engine, make_lora, wide=5)
            assert refused.value.codes == {Code.RANK_ABOVE_MAX}
            before = hidden(engine, ids(1, 2), "a")
            with pytest.raises(RequestError) as caught:
                hidden(engine, ids(5, 9), "a")
            assert {problem.subject for problem in caught.value.problems} == {"batch", "seq"}
            hidden(engine, ids(3, 2), ["b", "c", None])
            np.testing.assert_array_equal(hidden(engine, ids(1, 2), "a"), before)

    def test_a_run_names_its_profile_to_tensorrt_for_rtx(
        self, tiny_bundle: Path, device: HostDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open_simulated(tiny_bundle, device, "batch=1,seq=1:4:8", "batch=2:4:8") as engine:
            named: list[str] = []
            session = engine._backend._session  # type: ignore[union-attr]
            run = session.run_with_iobinding

            def spy(io: Any, options: Any) -> None:
                named.append(options.get_run_config_entry("nv_profile_index"))
                run(io, options)

            monkeypatch.setattr(session, "run_with_iobinding", spy)
            for rows, length in ((1, 8), (2, 3), (1, 1)):
                hidden(engine, ids(rows, length))
            assert named == ["0", "1", "0"]
            with pytest.raises(RequestError) as caught:
                hidden(engine, ids(1, 9))
            assert {problem.subject for problem in caught.value.problems} == {"batch", "seq"}


class TestGeneration:
    """A decoder's caches and rows."""

    PROMPTS = ([5, 9, 11], [7] * 12, [3, 4], [90, 1, 2, 50, 60, 70], [8])

    @pytest.fixture
    def pair(self, tiny_decoder: Path, device: HostDevice) -> Iterator[tuple[Engine, Engine]]:
        with open_simulated(tiny_decoder, device) as engine, Engine.open(tiny_decoder, threads=1) as cpu:
            for each in (engine, cpu):
                put_decoder_adapters(each)
            yield engine, cpu

    def test_tokens_are_those_of_the_cpu(self, pair: tuple[Engine, Engine]) -> None:
        rows = [None, "t0", "t1", "t0", "t1"]
        found, expected = (
            each.generate(self.PROMPTS, rows, max_batch=3, max_new_tokens=12, eos=()) for each in pair
        )
        assert [result.ids for result in found] == [result.ids for result in expected]
        given = np.array(self.PROMPTS[1:2] * 3)
        logits, truth = (each.run({"input_ids": given}, rows[:3])["logits"] for each in pair)
        np.testing.assert_allclose(logits, truth, rtol=0, atol=1e-5)

    def test_rows_that_move_take_their_caches_along(self, pair: tuple[Engine, Engine]) -> None:
        limits = [1, 14, 3, 9, 6]
        rows = ["t1", "t0", None, "t1", "t0"]
        found = []
        for each in pair:
            with each.session(4, 48, prompt_tokens=8) as session:
                streams = [
                    session.submit(prompt, row, max_new_tokens=limit, eos=())
                    for prompt, row, limit in zip(self.PROMPTS, rows, limits, strict=True)
                ]
                found.append([stream.result(60).ids for stream in streams])
        assert found[0] == found[1]

    def test_a_row_that_begins_anew_is_empty(self, pair: tuple[Engine, Engine], device: HostDevice) -> None:
        engine, _ = pair
        generation = engine.bundle.manifest.generation
        assert generation is not None
        caches = engine._running.caches(3, 8)
        assert isinstance(caches, DeviceCaches)
        slots = BatchRows(engine.bundle.manifest.slot_inputs, np.dtype(np.float32), 3)
        caches.ready(slice(0, 3), np.array([0, 4, 0]), slots)
        for name in generation.past:
            memory = device.view(*caches.array(name, slice(0, 3)))
            assert not memory[[0, 2]].any()
            assert np.isnan(memory[1]).all()  # as the device gave it: its past is left alone

    def test_memory_goes_back(self, pair: tuple[Engine, Engine], device: HostDevice) -> None:
        engine, _ = pair
        engine.generate(self.PROMPTS[:2], "t0", max_new_tokens=3)
        engine.close()
        gc.collect()
        assert device.pieces == device.streams == 0

    def test_too_little_memory(self, pair: tuple[Engine, Engine], device: HostDevice) -> None:
        engine, _ = pair
        streams = device.streams
        device.capacity = device.allocated + 1000
        with pytest.raises(RequestError, match="KV cache"):
            engine.session(4, 48)
        assert device.streams == streams
        device.capacity = None
        engine.generate([self.PROMPTS[0]], max_new_tokens=2)


def put_decoder_adapters(engine: Engine) -> None:
    """``t0`` and ``t1``, put into the bank as bound ones are."""
    for seed, rank in enumerate((4, 12)):
        random = np.random.default_rng(seed)
        tensors = {}
        for site in engine.bundle.manifest.sites:
            a, b = site.linear.lora_A, site.linear.lora_B
            assert a is not None
            assert b is not None
            tensors[a.name] = random.standard_normal((site.in_features, rank)).astype(np.float32)
            tensors[b.name] = (random.standard_normal((rank, site.out_features)) * 0.3).astype(np.float32)
        engine._bank.put(f"t{seed}", tensors)
