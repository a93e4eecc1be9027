"""The truth that an export is held to: the float32 torch model, with adapters by plain hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from adexport_runtime.tensors import Array

from .reference import RANKS, Case, reference_adapter


def with_outputs(
    model: PreTrainedModel,
    cases: Mapping[str, Case],
    outputs: list[str],
    sites: Mapping[str, tuple[int, int]],
) -> dict[str, Case]:
    """Run the reference batches through torch; ``sites`` are all linear layers as ``(in, out)``."""
    banks = _banks(sites)
    done = {}
    for name, case in cases.items():
        feeds = {key: torch.from_numpy(value) for key, value in case.inputs.items()}
        with torch.no_grad(), _adapters(model, banks, torch.from_numpy(case.adapters)):
            result = model(**feeds, return_dict=True)
        done[name] = Case(
            case.inputs, case.adapters, {key: result[key].to(torch.float32).numpy() for key in outputs}
        )
    return done


def _banks(sites: Mapping[str, tuple[int, int]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Reference adapters by site: A ``[rows, in, r]``, B ``[rows, r, out]``, row 0 the identity."""
    rows = [reference_adapter(index, sites) for index in range(1, len(RANKS) + 1)]
    banks = {}
    for path, (into, out) in sites.items():
        a = torch.zeros(len(rows) + 1, into, max(RANKS))
        b = torch.zeros(len(rows) + 1, max(RANKS), out)
        for row, adapter in enumerate(rows, start=1):
            half_a, half_b = (_tensor(half) for half in adapter[path])
            a[row, :, : half_a.shape[1]] = half_a
            b[row, : half_b.shape[0]] = half_b
        banks[path] = (a, b)
    return banks


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(array)


@contextmanager
def _adapters(
    model: PreTrainedModel, banks: Mapping[str, tuple[torch.Tensor, torch.Tensor]], ids: torch.Tensor
) -> Iterator[None]:
    """Within the block every site adds ``B(Ax)`` of its row's adapter."""

    def hook(path: str) -> Any:
        def add(_: torch.nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
            a, b = banks[path]
            x = args[0]
            flat = x.reshape(x.shape[0], -1, x.shape[-1])
            return y + ((flat @ a[ids]) @ b[ids]).reshape(y.shape)

        return add

    handles = [model.get_submodule(path).register_forward_hook(hook(path)) for path in banks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
