"""Engines without a GPU: the graph runs in ONNX Runtime on the CPU, behind the interface of an engine.

What TensorRT asks for is asked for: shapes within the profile, the same size wherever a name stands,
aligned addresses that are not null, a profile before shapes, one run of a context at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from adexport.lower import lower
from adexport.options import BuildOptions
from adexport.slots.again import plan_again
from adexport_runtime import Engine, RequestError, dtypes
from adexport_runtime.backends import open as providers
from adexport_runtime.backends.device import ALIGNMENT
from adexport_runtime.backends.tensorrt.backend import TensorRTBackend
from adexport_runtime.bundle import TRACE_FILE, Bundle
from adexport_runtime.engine_file import CacheForm, EngineRecord, bundle_digest
from adexport_runtime.errors import Code, Problem
from adexport_runtime.graph_io import Tensor, engine_inputs, graph_outputs, kind_of
from adexport_runtime.manifest import File
from adexport_runtime.profiles import Profile, parse_profiles

from .simulated import SimulatedDevice

Shape = tuple[int, ...]
#: arrays by name to arrays by name
Graph = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def lowered_graph(root: Path, folder: Path) -> Graph:
    """The graph of a bundle as it is lowered for TensorRT."""
    bundle = Bundle.open(root)
    base = bundle.manifest.base
    options = replace(
        plan_again(bundle, BuildOptions()).lowering(base.dtype), quantization=base.quantization
    )
    graph = lower(ir.load(root / TRACE_FILE), options, target="tensorrt").graph
    ir.save(graph, folder / "model.onnx", external_data="model.bin")
    return onnx_graph(folder / "model.onnx")


def onnx_graph(path: Path) -> Graph:
    """An ONNX file as a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def record_of(bundle: Bundle, profiles: Sequence[str] = (), caches: CacheForm = "copied") -> EngineRecord:
    """The record of an engine that nobody built."""
    manifest = bundle.manifest
    return EngineRecord(
        target="tensorrt-rtx",
        tool_version="0",
        bundle=bundle_digest(bundle.root),
        fingerprint=manifest.base.fingerprint,
        plan=File(path="model.plan", bytes=0, sha256="0" * 64),
        compute_capabilities=(),
        profiles=parse_profiles(profiles, manifest),
        inputs=engine_inputs(manifest),
        outputs=graph_outputs(manifest),
        caches=None if manifest.generation is None else caches,
        tf32=False,
        layers=1,
        seconds=0.0,
        peak_bytes=0,
    )


class SimulatedExecutable:
    """See :class:`~adexport_runtime.backends.tensorrt.engines.Executable`."""

    name = "a simulated TensorRT 0"

    def __init__(self, graph: Graph, record: EngineRecord, device: SimulatedDevice) -> None:
        self.graph, self.record, self.device = graph, record, device
        self.inputs = tuple(tensor.name for tensor in record.inputs)
        self.outputs = tuple(tensor.name for tensor in record.outputs)
        self.contexts: list[SimulatedContext] = []
        self.most_contexts: int | None = None
        self.closed = False

    def context(self) -> SimulatedContext:
        if self.most_contexts is not None and len(self.contexts) >= self.most_contexts:
            raise MemoryError("no context of the engine")
        self.contexts.append(SimulatedContext(self))
        return self.contexts[-1]

    def close(self) -> None:
        assert not self.closed
        assert all(context.closed for context in self.contexts)
        self.closed = True


class SimulatedContext:
    """See :class:`~adexport_runtime.backends.tensorrt.engines.Context`."""

    def __init__(self, executable: SimulatedExecutable) -> None:
        self._of = executable
        self._inputs = {tensor.name: tensor for tensor in executable.record.inputs}
        self._outputs = {tensor.name: tensor for tensor in executable.record.outputs}
        self._profile: Profile | None = None
        self.profiles: list[int] = []
        self.shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._one = threading.Lock()
        self.shapes_set = 0
        self.runs = 0
        self.closed = False

    def set_profile(self, index: int, stream: int) -> None:
        self._profile = self._of.record.profiles[index]
        self.profiles.append(index)
        self.shapes.clear()
        self._addresses.clear()

    def set_shape(self, name: str, shape: Shape) -> None:
        assert self._profile is not None, "a shape before a profile"
        assert not self._profile.misfits(self._inputs[name], shape), f"{name} {shape} is out of the profile"
        self.shapes[name] = shape
        self.shapes_set += 1

    def output_shape(self, name: str) -> Shape:
        sizes = self._sizes()
        return tuple(
            size if isinstance(size, int) else sizes[kind_of(size)] for size in self._outputs[name].shape
        )

    def set_address(self, name: str, address: int) -> None:
        assert name in self._inputs or name in self._outputs
        assert address, f"{name} has a null address"
        assert address % ALIGNMENT == 0, f"{name} lies unaligned"
        self._addresses[name] = address

    def execute(self, stream: int) -> None:
        assert not self._of.closed
        assert not self.closed
        inputs = {name: self._array(tensor, self.shapes[name]) for name, tensor in self._inputs.items()}
        outputs = {
            name: self._array(tensor, self.output_shape(name)) for name, tensor in self._outputs.items()
        }

        def work() -> None:
            assert self._one.acquire(blocking=False), "a context runs twice at once"
            try:
                device = self._of.device
                feeds = {name: device.view(*at).copy() for name, at in inputs.items()}
                if self._of.record.caches != "in-place":
                    for at in outputs.values():
                        device.view(*at).view(np.uint8)[...] = 0xFF  # may be written before all is read
                given = self._of.graph(feeds)
                assert given.keys() == outputs.keys()
                for name, at in outputs.items():
                    assert given[name].dtype == at[2], name
                    device.view(*at)[...] = given[name]
            finally:
                self._one.release()

        self._of.device.run(stream, work)
        self.runs += 1

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    def _array(self, tensor: Tensor, shape: Shape) -> tuple[int, Shape, np.dtype[Any]]:
        return self._addresses[tensor.name], shape, dtypes.NUMPY[tensor.dtype]

    def _sizes(self) -> dict[str, int]:
        """The sizes by kind; where a name stands twice, both are the same."""
        found: dict[str, int] = {}
        for name, tensor in self._inputs.items():
            for symbol, size in zip(tensor.shape, self.shapes[name], strict=True):
                if isinstance(symbol, str):
                    kind = kind_of(symbol)
                    assert found.setdefault(kind, size) == size, f"{symbol} is {found[kind]} and {size}"
        return found


class Simulation:
    """A bundle's engine, simulated: what ``Engine.open(root, provider="tensorrt")`` would run."""

    def __init__(self, root: Path, graph: Graph, profiles: Sequence[str], caches: CacheForm) -> None:
        self.bundle = Bundle.open(root)
        self.record = record_of(self.bundle, profiles, caches)
        self.device = SimulatedDevice()
        self.executable = SimulatedExecutable(graph, self.record, self.device)

    def backend(self) -> TensorRTBackend:
        return TensorRTBackend(self.bundle, self.record, self.executable, self.device)

    def open(self, **settings: Any) -> Engine:
        before = providers.OPENERS["tensorrt"]
        providers.OPENERS["tensorrt"] = lambda bundle, chosen: self.backend()
        try:
            return Engine.open(self.bundle.root, provider="tensorrt", **settings)
        finally:
            providers.OPENERS["tensorrt"] = before

    @property
    def runs(self) -> list[int]:
        """The profiles that the contexts were set to, in order."""
        return [index for context in self.executable.contexts for index in context.profiles]


def failing(graph: Graph, when: Callable[[Mapping[str, np.ndarray]], bool]) -> Graph:
    """A graph that fails for some feeds, as a GPU does: not before it is waited for."""

    def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if when(feeds):
            raise RequestError("the GPU failed", Problem(Code.RUN_FAILED, "a kernel"))
        return graph(feeds)

    return run
