"""Every call to a device fails once, at every step: an error, and the next run is as if it had not been."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adexport_runtime import AdexportError, Code, Engine, ProviderError
from adexport_runtime.errors import Problem

from .host_device import HostDevice, open_simulated
from .simulated import SimulatedDevice
from .simulated_engine import Graph, Simulation, lowered_graph
from .support import hidden, ids
from .test_ort_gpu import put_decoder_adapters

CALLS = ("allocate", "upload", "download", "copy", "zero", "run", "open_stream", "synchronize")
#: the calls of a kind that fail, one in each run
TURNS = (0, 1, 2, 4, 7, 12, 25, 60)
PROMPTS = ([5, 9, 11], [7] * 12, [3, 4], [90, 1, 2, 50])

Answers = list[Any]


class Faults:
    """Calls of a device, one of which fails once; what is queued then is lost if it is ``synchronize``."""

    def __init__(self, device: Any) -> None:
        self._left: tuple[str, int] | None = None
        self.happened = False
        for name in CALLS:
            setattr(device, name, self._failing(device, name, getattr(device, name)))

    def _failing(self, device: Any, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            if self._left is not None and self._left[0] == name:
                turn = self._left[1]
                self._left = (name, turn - 1) if turn else None
                if not turn:
                    self.happened = True
                    if name == "allocate":
                        raise MemoryError("no memory left on the GPU")
                    if name == "synchronize":
                        device._streams[arguments[0]] = []
                    raise ProviderError("the GPU failed", Problem(Code.RUN_FAILED, name))
            return call(*arguments)

        return called

    @contextmanager
    def at(self, name: str, turn: int) -> Iterator[None]:
        """Let a call fail, and those alone that this library knows pass."""
        self._left, self.happened = (name, turn), False
        try:
            yield
        except AdexportError:
            assert self.happened
        finally:
            self._left = None


Opened = tuple[Engine, SimulatedDevice]


def native(root: Path, graph: Graph) -> Opened:
    simulation = Simulation(root, graph, (), "copied")
    return simulation.open(rows=2 if simulation.record.caches is None else None), simulation.device


def onnxruntime(root: Path, graph: Graph) -> Opened:
    device = HostDevice()
    return open_simulated(root, device), device


@pytest.fixture(scope="module")
def decoder_graph(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return lowered_graph(tiny_decoder, tmp_path_factory.mktemp("decoder"))


def fail_everywhere(
    opened: Opened, name: str, serve: Callable[[Engine], Answers], expected: Answers
) -> int:
    """Fail call after call in one engine; how many runs met a failure."""
    engine, device = opened
    faults, met = Faults(device), 0
    for turn in TURNS:
        with faults.at(name, turn):
            serve(engine)
        met += faults.happened
        for found, wanted in zip(serve(engine), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    engine.close()
    gc.collect()
    assert (device.pieces, device.streams) == (0, 0)
    return met


@pytest.mark.parametrize("open_it", [native, onnxruntime])
@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("copy", "zero")])
def test_runs(
    open_it: Callable[..., Opened],
    name: str,
    tiny_bundle: Path,
    native_graph: Graph,
    ranked: dict[str, Path],
) -> None:
    def serve(engine: Engine) -> Answers:
        """Arrays that widen and narrow, rows that are paged, an adapter that is bound again."""
        engine.bind("x", ranked["a"])
        engine.bind("y", ranked["b"])
        answers = [hidden(engine, ids(), ["x", None, "y"])]
        engine.bind("x", ranked["c"])
        engine.bind("z", ranked["a"])
        answers += [hidden(engine, ids(3, length), ["x", None, "z"]) for length in (4, 9)]
        engine.unbind("z")
        return answers

    with Engine.open(tiny_bundle, threads=1) as cpu:
        expected = serve(cpu)
    met = fail_everywhere(open_it(tiny_bundle, native_graph), name, serve, expected)
    assert met or (name in ("download", "run") and open_it is onnxruntime)  # those are ONNX Runtime's own


@pytest.mark.slow
@pytest.mark.parametrize("open_it", [native, onnxruntime])
@pytest.mark.parametrize("name", CALLS)
def test_generation(
    open_it: Callable[..., Opened], name: str, tiny_decoder: Path, decoder_graph: Graph
) -> None:
    def serve(engine: Engine) -> Answers:
        results = engine.generate(PROMPTS, ["t1", "t0", None, "t1"], max_batch=3, max_new_tokens=3, eos=())
        for result in results:
            if result.error is not None:
                raise result.error
        given = {"input_ids": np.array(PROMPTS[1:2] * 2)}
        logits = [engine.run(given, rows)["logits"] for rows in (["t0", None], "t1")]
        return [np.array([result.ids for result in results]), *logits]

    with Engine.open(tiny_decoder, threads=1) as cpu:
        put_decoder_adapters(cpu)
        expected = serve(cpu)
    opened = open_it(tiny_decoder, decoder_graph)
    put_decoder_adapters(opened[0])
    met = fail_everywhere(opened, name, serve, expected)
    assert met or (name in ("download", "run") and open_it is onnxruntime)
