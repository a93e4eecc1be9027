"""``peft``: PEFT on torch, its own mixed batch (``adapter_names``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel

from adexport_runtime.tensors import Array

from ...model import load_model
from ..workload import Workload


class Peft:
    """A PEFT model with all adapters loaded."""

    adapted = True

    def __init__(self, model: Any, workload: Workload) -> None:
        """Keep the model and the batch as tensors."""
        self._model = model
        self._outputs = [output.name for output in workload.bundle.manifest.outputs]
        self._feeds = {name: torch.from_numpy(value) for name, value in workload.feeds.items()}
        self._rows = list(workload.rows)

    def run(self) -> dict[str, Array]:
        """One mixed batch."""
        with torch.inference_mode():
            result = self._model(**self._feeds, adapter_names=self._rows, return_dict=True)
        return {name: result[name].numpy() for name in self._outputs}


@contextmanager
def open_contender(workload: Workload) -> Iterator[Peft]:
    """Load the base and all adapters; torch gets the same number of threads."""
    base = workload.bundle.manifest.base
    model: Any = load_model(base.source, base.task).model
    for name, folder in workload.adapters.items():
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    before = torch.get_num_threads()
    if workload.threads:
        torch.set_num_threads(workload.threads)
    try:
        yield Peft(model.eval(), workload)
    finally:
        torch.set_num_threads(before)
