"""``without-kernels``: the runtime itself, with the slots inlined instead of the kernel library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adexport_runtime import Engine
from adexport_runtime.tensors import Array

from ..workload import Workload


class WithoutKernels:
    """A second engine with the same adapters."""

    adapted = True

    def __init__(self, engine: Engine, workload: Workload) -> None:
        """Keep an engine that has the workload's adapters."""
        self._engine = engine
        self._workload = workload

    def run(self) -> dict[str, Array]:
        """The batch, as a service runs it."""
        return self._engine.run(self._workload.feeds, self._workload.rows)


@contextmanager
def open_contender(workload: Workload) -> Iterator[WithoutKernels]:
    """Open the bundle once more."""
    root = workload.bundle.root
    with Engine.open(root, threads=workload.threads, spin=False, kernels="none") as engine:
        for name, folder in workload.adapters.items():
            engine.bind(name, folder)
        yield WithoutKernels(engine, workload)
