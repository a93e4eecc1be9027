"""``base``: the bundle's model lowered without slots, quantized as it is, with the best settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from adexport_runtime.backends.onnxruntime import open_session
from adexport_runtime.bundle import TRACE_FILE
from adexport_runtime.tensors import Array

from ...lower import LowerOptions, lower
from ..workload import Workload


class Base:
    """A session of the plain base; every row is the base's."""

    adapted = False

    def __init__(self, session: Any, feeds: Mapping[str, Array]) -> None:
        """Keep a session and the inputs that it takes."""
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        self._feeds = dict(feeds)

    def run(self) -> dict[str, Array]:
        """One plain run."""
        return dict(zip(self._names, self._session.run(self._names, self._feeds), strict=True))


def plain_graph(workload: Workload) -> Path:
    """The bundle's trace lowered without slots."""
    path = workload.scratch / "base" / "base.onnx"
    if not path.exists():
        path.parent.mkdir()
        base = workload.bundle.manifest.base
        trace = ir.load(workload.bundle.root / TRACE_FILE)
        lowered = lower(trace, LowerOptions(dtype=base.dtype, quantization=base.quantization))
        ir.save(lowered.graph, path, external_data="base.weights")
    return path


@contextmanager
def open_contender(workload: Workload) -> Iterator[Base]:
    """Lower and open the plain base."""
    session = open_session(
        plain_graph(workload), threads=workload.threads, spin=False, integers=workload.integers
    )
    yield Base(session, workload.feeds)
