"""``graph``: the bundle's graph with everything bound already; what lies above it is the cost of a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from adexport_runtime import dtypes
from adexport_runtime.backends.kernels import find_kernels
from adexport_runtime.backends.onnxruntime import open_session, ort_value
from adexport_runtime.bank import Bank, Lease
from adexport_runtime.bind import load_adapter
from adexport_runtime.tensors import Array

from ..workload import Workload


class Graph:
    """A session of the bundle's graph, and an IOBinding that stays as it is."""

    adapted = True

    def __init__(self, session: Any, workload: Workload, lease: Lease) -> None:
        """Bind the workload's inputs, and the arrays of a lease of its adapters."""
        manifest = workload.bundle.manifest
        ids = [lease.rows[name] for name in workload.rows]
        if len(set(ids)) == 1:
            ids = ids[:1]
        feeds = dict(workload.feeds)
        if manifest.adapter_ids is not None:
            feeds[manifest.adapter_ids] = np.array(ids, np.int64)
        self._session = session
        self._io = session.io_binding()
        for name, array in feeds.items():
            self._io.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, array in lease.arrays.items():
            self._io.bind_ortvalue_input(name, ort_value(array))
        self._names = [output.name for output in manifest.outputs]
        for name in self._names:
            self._io.bind_output(name, "cpu")

    def run(self) -> dict[str, Array]:
        """Run what is bound; the outputs are copied."""
        self._session.run_with_iobinding(self._io)
        return dict(zip(self._names, self._io.copy_outputs_to_cpu(), strict=True))


@contextmanager
def open_contender(workload: Workload) -> Iterator[Graph]:
    """Open the graph, and put the adapters into a bank of its own."""
    bundle, manifest = workload.bundle, workload.bundle.manifest
    session = open_session(
        bundle.model_path,
        threads=workload.threads,
        spin=False,
        integers=workload.integers,
        kernels=find_kernels(),
    )
    bank = Bank(manifest.slot_inputs, dtypes.NUMPY[manifest.base.dtype])
    for name, folder in workload.adapters.items():
        bank.put(name, load_adapter(name, folder, bundle).rows(manifest))
    with bank.lease(workload.adapters) as lease:
        yield Graph(session, workload, lease)
