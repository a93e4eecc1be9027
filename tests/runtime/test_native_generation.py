"""Generation on a native engine, simulated on the CPU: the same tokens as on ONNX Runtime."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from adexport.build import build_model
from adexport.options import BuildOptions
from adexport_runtime import Code, Engine, RequestError
from adexport_runtime.backends.device import DeviceArray
from adexport_runtime.backends.tensorrt.kv_caches import DeviceCaches
from adexport_runtime.bundle import Bundle
from adexport_runtime.caches import Cache, Generation
from adexport_runtime.engine_file import CacheForm

from .simulated import SimulatedDevice
from .simulated_engine import Graph, Simulation, failing, lowered_graph, onnx_graph
from .support import subjects
from .test_session import bind

MAX = 64
PROMPTS = [[5, 9, 11], [7] * 12, [3, 4], [90, 1, 2, 50, 60, 70], [8], [33, 34, 35, 36, 37]]
ROWS = [None, "t0", "t1", "t0", None, "t1"]
LIMITS = [3, 16, 9, 1, 12, 5]
FORMS: tuple[CacheForm, ...] = ("copied", "in-place")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("native-decoder")
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,  # rows of odd rooms lie where TensorRT takes no address
        intermediate_size=48,
        max_position_embeddings=MAX,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    build_model(str(folder / "model"), folder / "bundle", options=BuildOptions(max_rank=16))
    return folder / "bundle"


@pytest.fixture(scope="module")
def graph(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """As it is lowered for TensorRT: what it gives are other caches than it takes."""
    return lowered_graph(bundle, tmp_path_factory.mktemp("lowered"))


@pytest.fixture(scope="module")
def in_place(bundle: Path) -> Graph:
    """A graph that writes caches where it takes them, whatever their room: ONNX Runtime's own."""
    return guarded(Bundle.open(bundle), onnx_graph(bundle / "model.onnx"))


def guarded(bundle: Bundle, graph: Graph) -> Graph:
    """A graph with guards behind the inputs of one without."""
    guards = [] if bundle.manifest.guards is None else list(bundle.manifest.guards.factors.values())

    def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        some = {guard.name: np.ones(len(feeds["input_ids"]), np.int64) for guard in guards}
        return graph({**feeds, **some})

    return run


@pytest.fixture
def cpu(bundle: Path) -> Iterator[Engine]:
    with Engine.open(bundle, threads=1, kernels="none") as opened:
        yield two_tenants(opened)


def two_tenants(engine: Engine) -> Engine:
    for index, rank in enumerate((4, 12)):
        bind(engine, f"t{index}", seed=index, rank=rank)
    return engine


Open = Callable[..., tuple[Engine, Simulation]]


@pytest.fixture
def native(bundle: Path, graph: Graph, in_place: Graph) -> Iterator[Open]:
    opened: list[tuple[Engine, Simulation]] = []
    default = {"copied": graph, "in-place": in_place}

    def open_it(*profiles: str, caches: CacheForm = "copied", graph: Graph | None = None) -> Any:
        simulation = Simulation(bundle, graph or default[caches], profiles, caches)
        opened.append((two_tenants(simulation.open()), simulation))
        return opened[-1]

    yield open_it
    for engine, simulation in opened:
        engine.close()
        gc.collect()
        assert (simulation.device.pieces, simulation.device.streams) == (0, 0)


def said(engine: Engine, **settings: Any) -> list[tuple[int, ...]]:
    chosen = {"eos": (), "max_new_tokens": 16, **settings}
    return [result.ids for result in engine.generate(PROMPTS, ROWS, **chosen)]


@pytest.mark.parametrize("caches", FORMS)
@pytest.mark.parametrize("max_batch", [1, 4, 8])
def test_greedy_tokens_of_a_mixed_batch(
    native: Open, cpu: Engine, caches: CacheForm, max_batch: int
) -> None:
    engine, _ = native(caches=caches)
    assert said(engine, max_batch=max_batch) == said(cpu, max_batch=max_batch)


@pytest.mark.parametrize("caches", FORMS)
@pytest.mark.parametrize("max_tokens", [MAX, 29])
def test_requests_join_and_leave(native: Open, cpu: Engine, caches: CacheForm, max_tokens: int) -> None:
    """Prompts by pieces, gaps that close, rows that wait for a seat; rooms whose rows lie unaligned."""
    expected = [ids[:limit] for ids, limit in zip(said(cpu), LIMITS, strict=True)]
    engine, simulation = native(caches=caches)
    with engine.session(3, max_tokens, prompt_tokens=5) as session:
        streams = [
            session.submit(prompt, row, max_new_tokens=limit, eos=())
            for prompt, row, limit in zip(PROMPTS, ROWS, LIMITS, strict=True)
        ]
        assert [stream.result(60).ids for stream in streams] == expected
    assert simulation.device.copies["copy"] > 0


def test_nothing_is_copied_while_the_same_rows_decode(native: Open) -> None:
    engine, simulation = native()
    engine.generate(PROMPTS[:1] * 4, ["t0"] * 4, eos=(), max_new_tokens=40)
    steps = sum(context.runs for context in simulation.executable.contexts)
    assert steps == 1 + 39
    assert simulation.device.copies["copy"] == 0
    manifest = simulation.bundle.manifest
    slots = {slot.name for slot in manifest.slot_inputs} & set(simulation.executable.inputs)
    # every row's adapter once; then four inputs a step
    assert simulation.device.copies["upload"] == 4 * len(slots) + 4 * steps
    assert simulation.device.copies["download"] == steps


def test_steps_and_prompts_have_profiles_of_their_own(native: Open) -> None:
    engine, simulation = native()
    engine.generate(PROMPTS[:1] * 4, eos=(), max_new_tokens=9)
    assert simulation.runs == [1, 0]


def test_runs_without_generation(native: Open, cpu: Engine) -> None:
    engine, _ = native()
    inputs = {"input_ids": np.arange(1, 25).reshape(3, 8)}
    for rows in (["t0", None, "t1"], "t1", None):
        np.testing.assert_allclose(
            engine.run(inputs, rows)["logits"], cpu.run(inputs, rows)["logits"], atol=1e-5
        )


def test_a_seat_holds_nothing_of_the_text_before(native: Open, graph: Graph) -> None:
    """A NaN in the caches behind a row's past is there for no later text."""
    seen: list[bool] = []

    def watched(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        for name, array in feeds.items():
            if name.startswith("past") and array.ndim == 4:
                seen.extend(
                    np.isnan(array[row]).any()
                    for row in range(len(array))
                    if feeds["past_lengths"][row] == 0
                )
        return {
            name: np.full_like(array, np.nan) if array.ndim == 4 else array
            for name, array in graph(feeds).items()
        }

    engine, simulation = native(graph=watched)
    assert "past_lengths" in simulation.executable.inputs
    with engine.session(1, MAX) as session:
        for _ in range(3):
            session.submit([5, 6], max_new_tokens=1, eos=()).result(60)
    assert seen
    assert not any(seen)


def test_caches_of_a_fixed_room(native: Open, cpu: Engine) -> None:
    """As engines have them that write in place: shorter texts use a part of it."""
    engine, simulation = native("seq=1,room=40", "batch=1:1:8,seq=1:8:16,room=40", caches="in-place")
    with engine.session(2, 20) as session:
        stream = session.submit(PROMPTS[2], "t1", eos=(), max_new_tokens=16)
        assert stream.result(60).ids == said(cpu)[2]
        shapes = simulation.executable.contexts[0].shapes
        assert {shape[2] for shape in shapes.values() if len(shape) == 4} == {40}


class TestRefused:
    def test_a_batch_that_no_profile_takes(self, native: Open) -> None:
        engine, _ = native("batch=1:2:4,seq=1,room=1:16:32", "batch=1:1:4,seq=1:8:16,room=1:16:32")
        with pytest.raises(RequestError) as caught:
            engine.session(5, 33)
        assert subjects(caught.value, Code.BAD_INPUT) == {"max_batch", "max_tokens"}
        assert "--profile room=1:33:33" in str(caught.value)
        with pytest.raises(RequestError) as caught:
            engine.generate([[1] * 30], max_new_tokens=3)
        assert "32" in str(caught.value)

    def test_what_is_not_asked_for_is_as_the_profile_can(self, native: Open, cpu: Engine) -> None:
        """More prompts than rows wait; long prompts go in by pieces that the profile takes."""
        engine, _ = native("batch=1:2:2,seq=1,room=1:16:40", "batch=1:1:2,seq=1:4:5,room=1:16:40")
        assert said(engine) == said(cpu)
        with engine.session(2) as session:
            result = session.submit(PROMPTS[1], "t0", eos=(), max_new_tokens=16).result(60)
            assert result.ids == said(cpu)[1]
            with pytest.raises(RequestError):
                session.submit([1] * 30, max_new_tokens=11)

    def test_prompts_run_one_by_one_where_their_profile_takes_one(self, native: Open, cpu: Engine) -> None:
        engine, simulation = native("batch=1:4:8,seq=1", "batch=1,seq=1:16:32")
        found, wanted = (
            each.generate(PROMPTS[:1] * 4, ["t0", None, "t1", "t0"], eos=(), max_new_tokens=5)
            for each in (engine, cpu)
        )
        assert [result.error for result in found] == [None] * 4
        assert [result.ids for result in found] == [result.ids for result in wanted]
        assert set(simulation.runs) == {0, 1}

    def test_no_memory_for_caches(self, native: Open) -> None:
        engine, simulation = native()
        simulation.device.capacity = 4096
        with pytest.raises(RequestError) as caught:
            engine.session(8, MAX)
        assert "KV cache" in str(caught.value)
        simulation.device.capacity = None
        assert said(engine)

    def test_a_step_that_fails_ends_its_texts_alone(self, native: Open, graph: Graph, cpu: Engine) -> None:
        broken = failing(graph, lambda feeds: feeds["input_ids"].shape == (1, 12))
        engine, _ = native(graph=broken)
        results = engine.generate(PROMPTS, ROWS, eos=(), max_new_tokens=16, max_batch=4)
        expected = said(cpu)
        for index, (result, ids) in enumerate(zip(results, expected, strict=True)):
            if index == 1:
                assert result.reason == "error"
            else:
                assert result.ids == ids


HEADS, SIZE = 2, 3
GENERATION = Generation(
    lengths="lengths",
    past_lengths="past_lengths",
    logits_at="logits_at",
    caches=(
        Cache(
            past_key="past.k",
            past_value="past.v",
            present_key="present.k",
            present_value="present.v",
            kv_heads=HEADS,
            size=SIZE,
            window=None,
        ),
    ),
    eos_ids=(),
)


class TestCaches:
    """Rows of any spans in any order: each holds its own tokens, on whichever side."""

    @given(
        st.sampled_from(FORMS),
        st.integers(5, 9),
        st.lists(
            st.one_of(
                st.tuples(st.just("run"), st.integers(0, 3), st.integers(0, 3)),
                st.tuples(st.just("move"), st.integers(0, 3), st.integers(0, 3)),
                st.tuples(st.just("leave"), st.integers(0, 3), st.integers(0, 3)),
            ),
            max_size=30,
        ),
    )
    @settings(max_examples=200, deadline=None)
    def test_any_order(self, form: CacheForm, room: int, changes: list[tuple[str, int, int]]) -> None:
        device = SimulatedDevice()
        caches = DeviceCaches(device, GENERATION, form, np.dtype(np.float32), 4, room)
        stream = device.open_stream()
        past: list[list[float]] = [[] for _ in range(4)]  # the tokens in each row
        for turn, (what, one, other) in enumerate(changes):
            if what == "leave":
                past[one] = []
            elif what == "move" and one != other:
                caches.move(one, other, len(past[one]))
                past[other], past[one] = past[one], []
            elif what == "run":
                start, stop = min(one, other), max(one, other) + 1
                self.run(device, caches, past, start, stop, float(turn + 1), stream)
        device.close_stream(stream)
        del caches
        assert (device.pieces, device.streams) == (0, 0)

    @staticmethod
    def run(
        device: SimulatedDevice,
        caches: DeviceCaches,
        past: list[list[float]],
        start: int,
        stop: int,
        token: float,
        stream: int,
    ) -> None:
        """A graph that puts one token, a number of its own for each row, behind the past."""
        lengths = np.array([len(row) for row in past[start:stop]], np.int64)
        span = caches.span(slice(start, stop), lengths, stream)
        device.synchronize(stream)
        for name in ("k", "v"):
            taken, given = span.past[f"past.{name}"], span.present[f"present.{name}"]
            for array in (taken, given):
                assert array.aligned
                assert array.shape == (stop - start, HEADS, caches.room, SIZE)
            before = device.view(*taken).copy()
            for index, row in enumerate(past[start:stop]):
                for at, value in enumerate(row):
                    assert (before[index, :, at] == value).all()
            after = device.view(*given)
            if given.address != taken.address:
                after[...] = np.nan
                after[...] = before
            for index in range(stop - start):
                if lengths[index] < caches.room:
                    after[index, :, lengths[index]] = token + 100 * (start + index)
        for index in range(start, stop):
            if len(past[index]) < caches.room:
                past[index].append(token + 100 * index)
        for source, target in span.back:
            device.copy(target.address, source.address, source.nbytes, stream)
        device.synchronize(stream)
        caches.done(slice(start, stop))

    def test_bytes(self) -> None:
        device = SimulatedDevice()
        for form, sides in (("copied", 2), ("in-place", 1)):
            caches = DeviceCaches(device, GENERATION, form, np.dtype(np.float16), 4, 8)  # type: ignore[arg-type]
            assert caches.nbytes == sides * 2 * 4 * HEADS * 8 * SIZE * 2
        assert DeviceArray(0, (4, HEADS, 8, SIZE), np.dtype(np.float16)).nbytes == caches.nbytes // 2
