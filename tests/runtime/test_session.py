"""Continuous batching: requests come, end, fail and are cancelled, and no other request sees it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adexport.build import build_model
from adexport.options import BuildOptions
from adexport_runtime import Code, Engine, RequestError, UnknownAdapterError
from adexport_runtime.backends.kv_caches import KvCaches
from adexport_runtime.generation import Generated

MAX = 64
PROMPTS = [[5, 9, 11], [7] * 12, [3, 4], [90, 1, 2, 50, 60, 70], [8], [33, 34, 35, 36, 37]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("session")
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=MAX,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    build_model(str(folder / "model"), folder / "bundle", options=BuildOptions(max_rank=16))
    return folder / "bundle"


@pytest.fixture
def engine(bundle: Path) -> Iterator[Engine]:
    with Engine.open(bundle, threads=1) as opened:
        for index, rank in enumerate((4, 12)):
            bind(opened, f"t{index}", seed=index, rank=rank)
        yield opened


def bind(engine: Engine, name: str, seed: int, rank: int = 4, size: float = 0.3) -> None:
    """An adapter that changes what the model says, put into the bank as a bound one is."""
    random = np.random.default_rng(seed)
    tensors = {}
    for site in engine.bundle.manifest.sites:
        a, b = site.linear.lora_A, site.linear.lora_B
        assert a is not None
        assert b is not None
        tensors[a.name] = random.standard_normal((site.in_features, rank)).astype(np.float32)
        tensors[b.name] = (random.standard_normal((rank, site.out_features)) * size).astype(np.float32)
    engine._bank.put(name, tensors)


def paced(engine: Engine, steps: int) -> threading.Semaphore:
    """Let the engine's graph run so many times, and then once for every release."""
    allowed, step = threading.Semaphore(steps), engine._running.step

    def wait(*args: Any) -> Any:
        assert allowed.acquire(timeout=60)
        return step(*args)

    engine._running.step = wait  # type: ignore[method-assign]
    return allowed


ROWS = [None, "t0", "t1", "t0", None, "t1"]


def alone(engine: Engine, prompt: list[int], name: str | None, **settings: Any) -> Generated:
    (result,) = engine.generate([prompt], name, **{"eos": (), "max_new_tokens": 16, **settings})
    return result


def all_alone(engine: Engine, **settings: Any) -> list[tuple[int, ...]]:
    return [alone(engine, p, row, **settings).ids for p, row in zip(PROMPTS, ROWS, strict=True)]


def test_adapters_change_what_is_said(engine: Engine) -> None:
    assert len({alone(engine, PROMPTS[0], name).ids for name in (None, "t0", "t1")}) == 3


@pytest.mark.parametrize("movable", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_the_same_tokens_together_as_alone(
    engine: Engine, rows: int, movable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of different lengths join and leave, whether or not rows can be moved."""
    limits = [3, 16, 9, 1, 12, 5]
    expected = [ids[:limit] for ids, limit in zip(all_alone(engine), limits, strict=True)]
    monkeypatch.setattr(KvCaches, "movable", movable)
    with engine.session(rows, MAX, prompt_tokens=8) as session:
        streams = [
            session.submit(prompt, row, max_new_tokens=limit, eos=())
            for prompt, row, limit in zip(PROMPTS, ROWS, limits, strict=True)
        ]
        found = [stream.result(60) for stream in streams]
    assert [result.ids for result in found] == expected
    assert {result.reason for result in found} == {"length"}
    assert [result.prompt_tokens for result in found] == [len(prompt) for prompt in PROMPTS]


def test_a_request_that_comes_late_joins(engine: Engine) -> None:
    expected = all_alone(engine, max_new_tokens=40)
    with engine.session(4, MAX) as session:
        first = session.submit(PROMPTS[1], ROWS[1], max_new_tokens=40, eos=())
        tokens = first.tokens()
        begun = [next(tokens) for _ in range(3)]
        others = [session.submit(PROMPTS[i], ROWS[i], max_new_tokens=40, eos=()) for i in (2, 3)]
        assert (*begun, *tokens) == expected[1]
        assert [stream.result(60).ids for stream in others] == expected[2:4]


def test_what_is_bound_meanwhile_is_for_later_requests(engine: Engine) -> None:
    before = alone(engine, PROMPTS[0], "t0", max_new_tokens=50).ids
    with engine.session(2, MAX) as session:
        running = session.submit(PROMPTS[0], "t0", max_new_tokens=50, eos=())
        next(running.tokens())
        bind(engine, "t0", seed=77)
        later = session.submit(PROMPTS[0], "t0", max_new_tokens=50, eos=())
        assert running.result(60).ids == before
        rebound = later.result(60).ids
        assert rebound == alone(engine, PROMPTS[0], "t0", max_new_tokens=50).ids != before
        running = session.submit(PROMPTS[0], "t0", max_new_tokens=50, eos=())
        next(running.tokens())
        engine.unbind("t0")
        assert running.result(60).ids == rebound
        with pytest.raises(UnknownAdapterError):
            session.submit(PROMPTS[0], "t0")


def test_an_adapter_that_is_unbound_while_its_request_waits(engine: Engine) -> None:
    expected = alone(engine, PROMPTS[0], None, max_new_tokens=50).ids
    steps = paced(engine, 0)
    with engine.session(1, MAX) as session:
        running = session.submit(PROMPTS[0], None, max_new_tokens=50, eos=())
        waiting = session.submit(PROMPTS[1], "t0", max_new_tokens=50)
        last = session.submit(PROMPTS[0], None, max_new_tokens=50, eos=())
        engine.unbind("t0")
        steps.release(1000)
        assert running.result(60).ids == expected
        with pytest.raises(UnknownAdapterError):
            waiting.result(60)
        assert last.result(60).ids == expected


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3}])
def test_an_adapter_that_gives_nan_fails_its_own_request(engine: Engine, settings: dict[str, Any]) -> None:
    expected = all_alone(engine, **settings)
    bind(engine, "broken", seed=5, size=1e38)
    rows = list(ROWS)
    rows[2] = "broken"
    with engine.session(6, MAX) as session:
        streams = [
            session.submit(prompt, row, max_new_tokens=16, eos=(), **settings)
            for prompt, row in zip(PROMPTS, rows, strict=True)
        ]
        with pytest.raises(RequestError, match="no next token") as caught:
            streams[2].result(60)
        assert caught.value.codes == {Code.NOT_FINITE}
        found = [stream.result(60).ids for row, stream in enumerate(streams) if row != 2]
    assert found == expected[:2] + expected[3:]
    results = engine.generate(PROMPTS, rows, eos=(), max_new_tokens=16)
    assert [result.reason for result in results] == ["length"] * 2 + ["error"] + ["length"] * 3
    assert isinstance(results[2].error, RequestError)


def test_cancelling(engine: Engine) -> None:
    expected = all_alone(engine, max_new_tokens=40)
    steps = paced(engine, 0)
    with engine.session(3, MAX) as session:
        streams = [
            session.submit(prompt, row, max_new_tokens=40, eos=())
            for prompt, row in zip(PROMPTS, ROWS, strict=True)
        ]
        steps.release(3)  # the first prompt, a token of it, the second prompt
        next(streams[1].tokens())
        streams[1].cancel()
        streams[5].cancel()  # while it waits
        steps.release(1000)
        cancelled = streams[1].result(60)
        assert cancelled.reason == "cancelled"
        assert cancelled.ids == expected[1][: len(cancelled.ids)]
        assert streams[5].result(60).reason == "cancelled"
        streams[1].cancel()  # once more does nothing
        assert [streams[i].result(60).ids for i in (0, 2, 3, 4)] == [expected[i] for i in (0, 2, 3, 4)]


def test_a_full_session_refuses_if_asked_to(engine: Engine) -> None:
    steps = paced(engine, 0)
    with engine.session(1, MAX, when_full="refuse") as session:
        running = session.submit(PROMPTS[0], max_new_tokens=40, eos=())
        with pytest.raises(RequestError) as caught:
            session.submit(PROMPTS[1], max_new_tokens=2)
        assert caught.value.codes == {Code.SESSION_FULL}
        steps.release(42)
        running.result(60)
        session.submit(PROMPTS[1], max_new_tokens=2).result(60)  # there is room again


def test_closing_ends_what_runs(engine: Engine) -> None:
    session = engine.session(1, MAX)
    streams = [session.submit(prompt, max_new_tokens=30, eos=()) for prompt in PROMPTS]
    session.close()
    session.close()
    assert {stream.result(60).reason for stream in streams} <= {"cancelled", "length"}
    assert streams[-1].result().reason == "cancelled"
    assert session.open == 0
    with pytest.raises(RequestError) as caught:
        session.submit(PROMPTS[0], max_new_tokens=2)
    assert caught.value.codes == {Code.CLOSED}


def test_the_interpreter_ends_while_a_session_is_open(bundle: Path) -> None:
    """Most times: the thread is in the graph when the program is at its end."""
    program = f"""
from adexport_runtime import Engine
session = Engine.open({str(bundle)!r}, threads=1).session(2, {MAX})
streams = [session.submit([5, 9], max_new_tokens=60, eos=()) for _ in range(40)]
next(streams[0].tokens())
"""
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr


def test_closing_the_engine_fails_what_runs(bundle: Path) -> None:
    engine = Engine.open(bundle, threads=1)
    steps = paced(engine, 1)
    with engine.session(2, MAX) as session:
        stream = session.submit(PROMPTS[0], max_new_tokens=60, eos=())
        next(stream.tokens())
        engine.close()  # just before a step
        steps.release()
        with pytest.raises(RequestError) as caught:
            stream.result(60)
        assert caught.value.codes == {Code.CLOSED}


def test_a_batch_that_fails_leaves_later_requests_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(engine, PROMPTS[0], "t0").ids
    step = type(engine._running).step
    calls = iter(range(100))

    def fail(*args: Any) -> Any:
        if next(calls) == 4:
            raise ValueError("out of memory, say")
        return step(*args)

    monkeypatch.setattr(type(engine._running), "step", fail)
    with engine.session(2, MAX) as session:
        streams = [session.submit(PROMPTS[0], "t0", max_new_tokens=16, eos=()) for _ in range(2)]
        for stream in streams:
            with pytest.raises(RequestError, match="out of memory, say") as caught:
                stream.result(60)
            assert caught.value.codes == {Code.RUN_FAILED}
        again = session.submit(PROMPTS[0], "t0", max_new_tokens=16, eos=())
        assert again.result(60).ids == expected


def test_an_adapter_that_finds_no_memory_fails_its_own_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(engine, PROMPTS[0], "t0").ids
    lease = engine._bank.lease

    def fail(names: set[str]) -> Any:
        if "t1" in names:
            raise MemoryError("of a row")
        return lease(names)

    monkeypatch.setattr(engine._bank, "lease", fail)
    with engine.session(2, MAX) as session:
        running = session.submit(PROMPTS[0], "t0", max_new_tokens=16, eos=())
        with pytest.raises(RequestError, match="t1: got MemoryError: of a row") as caught:
            session.submit(PROMPTS[1], "t1", max_new_tokens=2).result(60)
        assert caught.value.codes == {Code.RUN_FAILED}
        assert running.result(60).ids == expected
        assert session.open == 0


@pytest.mark.parametrize(
    ("prompt", "adapter", "settings", "words"),
    [
        ([], None, {}, "empty prompt"),
        ([97], None, {}, "ids from 0 to 96"),
        ([-1, 5], None, {}, "ids from 0 to 96"),
        ([1.5], None, {}, "token ids"),
        ([True, False], None, {}, "token ids"),
        ([[1, 2]], None, {}, "token ids"),
        (b"ab", None, {}, "token ids"),
        (bytearray(b"ab"), None, {}, "token ids"),
        (memoryview(b"ab"), None, {}, "token ids"),
        ([1, True], None, {}, "token ids"),
        (np.array(5), None, {}, "token ids"),
        (np.array([]), None, {}, "empty prompt"),
        (None, None, {}, "token ids"),
        (7, None, {}, "token ids"),
        ([5] * 60, None, {"max_new_tokens": 5}, "at most 64 together"),
        ([5], None, {"max_new_tokens": 0}, "at least 1"),
        ([5], None, {"temperature": -1}, "temperature"),
        ([5], None, {"stop": ["x"], "max_new_tokens": 2}, "without a tokenizer"),
        ([5], 3, {"max_new_tokens": 2}, "one name"),
    ],
)
def test_bad_requests_are_refused_alone(
    engine: Engine, prompt: Any, adapter: Any, settings: dict[str, Any], words: str
) -> None:
    with engine.session(2, MAX) as session:
        running = session.submit(PROMPTS[0], "t0", max_new_tokens=16, eos=())
        with pytest.raises(RequestError, match=words) as caught:
            session.submit(prompt, adapter, **settings)
        assert caught.value.codes == {Code.BAD_INPUT}
        assert running.result(60).reason == "length"
    with pytest.raises(RequestError, match=words):
        engine.generate([prompt], [adapter], **settings)


@pytest.mark.parametrize(
    "prompts", [None, 5, b"ab", np.array(5), {"role": "user", "content": "hello"}, {"hello", "there"}]
)
def test_prompts_that_are_no_rows(engine: Engine, prompts: Any) -> None:
    """A message alone is not taken for the two texts that its keys are."""
    with pytest.raises(RequestError, match="a list of prompts") as caught:
        engine.generate(prompts)
    assert caught.value.codes == {Code.BAD_INPUT}


def test_unknown_adapters_and_settings(engine: Engine) -> None:
    with engine.session(2, MAX) as session, pytest.raises(UnknownAdapterError, match="nobody"):
        session.submit(PROMPTS[0], "nobody", max_new_tokens=2)
    with pytest.raises(UnknownAdapterError, match=r"nobody.*noone"):
        engine.generate(PROMPTS[:3], ["nobody", "t0", "noone"], max_new_tokens=2)
    with pytest.raises(TypeError, match="beams"):
        engine.generate(PROMPTS[:1], beams=3)
    with pytest.raises(RequestError, match="2 for 1 rows"):
        engine.generate(PROMPTS[:1], ["t0", "t1"])


@pytest.mark.parametrize(
    "make",
    [
        lambda engine: engine.session(0),
        lambda engine: engine.session(2, MAX + 1),
        lambda engine: engine.session(True),
        lambda engine: engine.session(10**13),  # no memory
        lambda engine: engine.session(2, when_full="drop"),
        lambda engine: engine.session(2, prompt_tokens=0),
        lambda engine: engine.generate(PROMPTS, max_batch=0),
    ],
)
def test_sizes_out_of_range(engine: Engine, make: Callable[[Engine], object]) -> None:
    with pytest.raises(RequestError) as caught:
        make(engine)
    assert caught.value.codes == {Code.BAD_INPUT}


def test_memory_is_what_was_said(engine: Engine) -> None:
    """Two layers of two KV heads of 16, keys and values, float32: 512 bytes for a token."""
    with engine.session(3, 40) as session:
        assert session.nbytes == 3 * 40 * 512
        steps = paced(engine, 1)
        running = session.submit(PROMPTS[0], "t1", max_new_tokens=30, eos=())
        next(running.tokens())
        assert session.nbytes > 3 * 40 * 512  # and the rows of the adapters
        steps.release(29)
        running.result(60)
        deadline = time.monotonic() + 30
        while session.nbytes > 3 * 40 * 512 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert session.nbytes == 3 * 40 * 512


def test_the_end_of_a_text(engine: Engine) -> None:
    ids = alone(engine, PROMPTS[0], "t0").ids
    at = next(i for i in range(2, 16) if ids[i] not in ids[:i])
    ended = alone(engine, PROMPTS[0], "t0", eos=[96, ids[at]])
    assert (ended.ids, ended.reason) == (ids[: at + 1], "eos")
    assert ended.text is None  # the bundle has no tokenizer


def test_rows_draw_with_seeds_of_their_own(engine: Engine) -> None:
    settings = {"temperature": 1.0, "seed": 11, "eos": (), "max_new_tokens": 16}
    first, second = engine.generate([PROMPTS[0]] * 2, **settings)
    assert first.ids != second.ids
    assert engine.generate([PROMPTS[0]] * 2, **settings) == [first, second]
    (alone_,) = engine.generate([PROMPTS[0]], **{**settings, "seed": 12})
    assert alone_.ids == second.ids


def test_many_threads_submit(engine: Engine) -> None:
    expected = all_alone(engine)
    failures: list[object] = []

    def work(session: Any, index: int) -> None:
        for _ in range(5):
            found = session.submit(PROMPTS[index], ROWS[index], max_new_tokens=16, eos=()).result(60).ids
            if found != expected[index]:
                failures.append((index, found))

    with engine.session(3, MAX) as session:
        threads = [threading.Thread(target=work, args=(session, i)) for i in range(6)]
        for thread in threads:
            thread.start()
        for turn in range(20):
            bind(engine, "other", seed=turn)
        for thread in threads:
            thread.join()
    assert not failures


def test_a_bounded_bank_serves_more_tenants_than_rows(bundle: Path) -> None:
    """The bank pages; a row of the batch has its own copy."""
    with Engine.open(bundle, threads=1, rows=1) as engine:
        for index in range(4):
            bind(engine, f"p{index}", seed=index)
        names = [f"p{index}" for index in range(4)]
        expected = [alone(engine, PROMPTS[0], name).ids for name in names]
        found = engine.generate([PROMPTS[0]] * 4, names, eos=(), max_new_tokens=16)
        assert [result.ids for result in found] == expected


@pytest.mark.slow
def test_memory_does_not_grow(engine: Engine) -> None:
    """A thousand requests of a session, and sessions that open and close, leave nothing behind."""

    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def serve(requests: int) -> None:
        with engine.session(4, MAX) as session:
            for start in range(0, requests, 50):
                streams = [
                    session.submit(PROMPTS[i % 6], ROWS[i % 6], max_new_tokens=6, eos=())
                    for i in range(start, start + 50)
                ]
                for stream in streams:
                    stream.result(60)

    for _ in range(4):
        serve(100)
    gc.collect()
    before = resident()
    for _ in range(10):
        serve(100)
    gc.collect()
    assert resident() - before < 2**20
