"""``ort-adapter``: ONNX Runtime's own LoRA adapters, which take one adapter for a whole run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from adexport_runtime.backends.onnxruntime import import_onnxruntime, open_session
from adexport_runtime.bind import load_adapter
from adexport_runtime.bundle import TRACE_FILE, Bundle
from adexport_runtime.tensors import Array

from ...lower import ADAPTER_IDS, LowerOptions, lora_at, lower
from ...ops import DOMAIN, LORA_ADD
from ..workload import Workload


class OrtAdapter:
    """One run for each adapter, over the rows that ask for it."""

    adapted = True

    def __init__(
        self, session: Any, runs: list[tuple[list[int], dict[str, Array], Any]], batch: int
    ) -> None:
        """``runs`` are the rows, their inputs, and the run options with their adapter."""
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        self._runs = runs
        self._batch = batch

    def run(self) -> dict[str, Array]:
        """All runs, their rows put back in order."""
        results: dict[str, Array] = {}
        for rows, feeds, options in self._runs:
            for name, value in zip(
                self._names, self._session.run(self._names, feeds, options), strict=True
            ):
                if name not in results:
                    results[name] = np.empty((self._batch, *value.shape[1:]), value.dtype)
                results[name][rows] = value
        return results


@contextmanager
def open_contender(workload: Workload) -> Iterator[OrtAdapter]:
    """Lower for a single adapter, and write the adapters in ONNX Runtime's format."""
    ort = import_onnxruntime()
    session = open_session(
        _single_adapter_graph(workload), threads=workload.threads, spin=False, integers=workload.integers
    )
    runs = []
    kept = []  # ONNX Runtime reads them during the runs
    for name, folder in workload.adapters.items():
        rows = [row for row, wanted in enumerate(workload.rows) if wanted == name]
        if not rows:
            continue
        adapter = ort.LoraAdapter()
        adapter.Load(str(_write_adapter(ort, name, folder, workload.bundle, workload.scratch)))
        options = ort.RunOptions()
        options.add_active_adapter(adapter)
        kept.append(adapter)
        runs.append((rows, {key: value[rows] for key, value in workload.feeds.items()}, options))
    yield OrtAdapter(session, runs, len(workload.rows))
    kept.clear()


def _single_adapter_graph(workload: Workload) -> Path:
    """The bundle's graph with plain ``y + (x A) B`` at its sites, A and B optional inputs."""
    bundle = workload.bundle
    manifest = bundle.manifest
    sites = lora_at(site.path for site in manifest.sites)
    lowered = lower(
        ir.load(bundle.root / TRACE_FILE),
        LowerOptions(
            sites, dtype=manifest.base.dtype, guarded=False, quantization=manifest.base.quantization
        ),
    )
    model, graph = lowered.graph, lowered.graph.graph
    for key in [key for key in model.functions if key[:2] == (DOMAIN, LORA_ADD)]:
        model.functions[key] = _plain_lora_add(key, graph.opset_imports[""])
    ids = next(value for value in graph.inputs if value.name == ADAPTER_IDS)
    for node in [node for node in graph if node.op_type == LORA_ADD]:
        node.replace_input_with(4, None)
    graph.inputs.remove(ids)
    factors = (slot for site in lowered.slots.sites for slot in site.linear.factors.values())
    halves = {slot.name: slot.shape[1:] for slot in factors}
    for value in graph.inputs:
        if value.name in halves and value.dtype is not None:
            shape = halves[value.name]
            value.shape = ir.Shape(shape)
            empty = np.zeros([size if isinstance(size, int) else 0 for size in shape], value.dtype.numpy())
            value.const_value = ir.Tensor(empty, dtype=value.dtype, name=value.name)
            graph.register_initializer(value)  # an input with a value is one that may be left out
    path = workload.scratch / "ort_adapter" / "single.onnx"
    path.parent.mkdir(exist_ok=True)
    ir.save(model, path, external_data="single.weights")
    return path


def _plain_lora_add(key: tuple[str, str, str], opset: int) -> ir.Function:
    y, x, a, b, ids = (ir.Value(name=name) for name in ("y", "x", "A", "B", "ids"))
    down = ir.node("MatMul", [x, a])
    up = ir.node("MatMul", [down.outputs[0], b])
    total = ir.node("Add", [y, up.outputs[0]])
    graph = ir.Graph([y, x, a, b, ids], total.outputs, nodes=[down, up, total], opset_imports={"": opset})
    return ir.Function(*key, graph=graph, attributes=[])


def _write_adapter(ort: Any, name: str, folder: Path, bundle: Bundle, scratch: Path) -> Path:
    tensors: Mapping[str, Array] = load_adapter(name, folder, bundle).tensors
    file = ort.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters({key: ort.OrtValue.ortvalue_from_numpy(value) for key, value in tensors.items()})
    path = scratch / f"{name}.onnx_adapter"
    file.export_adapter(str(path))
    return path
