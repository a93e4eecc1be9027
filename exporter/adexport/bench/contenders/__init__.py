"""What the runtime is measured against: one file for each contender, and a line in ``CONTENDERS``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Protocol

from adexport_runtime.tensors import Array

from ..workload import Workload

#: name -> (module, the packages that it needs and the extra that brings them)
CONTENDERS: dict[str, tuple[str, dict[str, str]]] = {
    "base": (".base", {"onnx_ir": "lower"}),
    "peft": (".peft", {"torch": "verify", "transformers": "verify", "peft": "verify"}),
    "ort-adapter": (".ort_adapter", {"onnx_ir": "lower"}),
    "without-kernels": (".without_kernels", {}),
    "graph": (".graph", {}),
}

#: other ways to serve the batch; what is not here are parts of the runtime itself
OTHERS = ("base", "peft", "ort-adapter")


class Contender(Protocol):
    """Another way to run the workload."""

    #: whether its rows take their adapters (else all rows are the base's)
    adapted: bool

    def run(self) -> Mapping[str, Array]:
        """Run the batch once; outputs by name."""
        ...


def open_contender(name: str, workload: Workload) -> AbstractContextManager[Contender]:
    """Prepare a contender; imports its packages."""
    module, _ = CONTENDERS[name]
    opened: AbstractContextManager[Contender] = import_module(module, __name__).open_contender(workload)
    return opened
