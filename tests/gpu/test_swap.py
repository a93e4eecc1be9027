"""Adapters come, change and go while others run: nothing is built anew, nobody waits for a quiet moment."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from adexport_runtime import Engine, UnknownAdapterError
from tests.conftest import MakeLora
from tests.runtime.support import hidden, ids

from .conftest import NEAR, Open, bind_all, far

SECONDS = 2.0


@pytest.fixture(scope="session")
def versions(make_lora: MakeLora) -> list[Path]:
    """Adapters far from each other, of several ranks."""
    return [make_lora(f"v{seed}", seed=seed, r=2 + 4 * seed, std=0.3) for seed in range(4)]


def test_after_the_first_run(serve: Open, tiny_bundle: Path, tenants: dict[str, Path]) -> None:
    """A new adapter, one bound anew, one gone."""
    given = ids(3, 6)
    with Engine.open(tiny_bundle, threads=1) as cpu:
        bind_all(cpu, tenants)
        engine = serve(tiny_bundle)
        assert far(hidden(engine, given), hidden(cpu, given)) <= NEAR["fp32"]
        for name in ("r2", "r16", "r1"):
            engine.bind(name, tenants[name])
            rows = [name, None, "r2"]
            assert far(hidden(engine, given, rows), hidden(cpu, given, rows)) <= NEAR["fp32"]
        engine.bind("r2", tenants["r8"])
        assert far(hidden(engine, given, "r2"), hidden(cpu, given, "r8")) <= NEAR["fp32"]
        engine.unbind("r2")
        with pytest.raises(UnknownAdapterError):
            hidden(engine, given, "r2")
        assert far(hidden(engine, given, "r16"), hidden(cpu, given, "r16")) <= NEAR["fp32"]


def test_few_rows_serve_many_adapters(serve: Open, tiny_bundle: Path, tenants: dict[str, Path]) -> None:
    with Engine.open(tiny_bundle, threads=1) as cpu:
        engine = serve(tiny_bundle, resident=2)
        for each in (engine, cpu):
            bind_all(each, tenants)
        for rows in (["r1", "r16"], ["r2", "r5"], ["r8", None], ["r16", "r1"], ["r5", "r5"]):
            given = ids(2, 5)
            assert far(hidden(engine, given, rows), hidden(cpu, given, rows)) <= NEAR["fp32"]


def test_under_load(serve: Open, tiny_bundle: Path, versions: list[Path]) -> None:
    """Every row is some whole generation of its name; rows of one run with one name are the same one."""
    given = ids(1, 6)
    with Engine.open(tiny_bundle, threads=1) as cpu:
        truth = []
        for folder in versions:
            cpu.bind("one", folder)
            truth.append(hidden(cpu, given, "one")[0])
        truth.append(hidden(cpu, given)[0])
    whole = np.stack(truth)
    engine = serve(tiny_bundle)
    engine.bind("fixed", versions[0])
    engine.bind("moving", versions[1])
    ended = threading.Event()
    errors: list[BaseException] = []
    seen: set[int] = set()
    runs = [0] * 4

    def run(worker: int) -> None:
        rows = ["fixed", "moving", None, "moving"]
        batch = given.repeat(4, axis=0)
        try:
            while not ended.is_set():
                try:
                    outputs = hidden(engine, batch, rows)
                except UnknownAdapterError:
                    continue
                places = [int(np.abs(whole - row).max(axis=(1, 2)).argmin()) for row in outputs]
                for row, place in zip(outputs, places, strict=True):
                    assert far(row, whole[place]) <= NEAR["fp32"]
                assert places[0] == 0
                assert places[2] == len(versions)
                assert places[1] == places[3] < len(versions)
                seen.add(places[1])
                runs[worker] += 1
        except BaseException as error:
            errors.append(error)
            ended.set()

    workers = [threading.Thread(target=run, args=(index,)) for index in range(len(runs))]
    for worker in workers:
        worker.start()
    deadline, turn = time.monotonic() + SECONDS, 0
    while not ended.is_set() and (time.monotonic() < deadline or len(seen) < len(versions)):
        assert time.monotonic() < deadline + 120, f"seen in two minutes: {seen}"
        engine.bind("moving", versions[turn % len(versions)])
        engine.bind(f"other{turn % 5}", versions[(turn + 1) % len(versions)])
        if turn % 3 == 0:
            engine.unbind("moving")
            engine.bind("moving", versions[(turn + 2) % len(versions)])
        turn += 1
        time.sleep(0.01)
    ended.set()
    for worker in workers:
        worker.join()
    assert not errors, errors[0]
    assert min(runs) > 0
