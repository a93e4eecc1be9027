"""The truth that an export is held to: the float32 torch model, with adapters by plain hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from .reference import RANKS, Case, reference_bottleneck, reference_factors

Banks = dict[str, dict[str, torch.Tensor]]


def with_outputs(
    model: PreTrainedModel,
    cases: Mapping[str, Case],
    outputs: list[str],
    layers: Mapping[str, tuple[int, int]],
    bottlenecks: Mapping[str, int],
) -> dict[str, Case]:
    """Run the reference batches through torch.

    Args:
        model: float32, in eval mode.
        cases: without outputs.
        outputs: fields of the model's output to keep.
        layers: all linear layers that can be sites, as ``(in, out)``.
        bottlenecks: the layers behind which bottlenecks go, with their features.
    """
    done = {}
    for name, case in cases.items():
        feeds = {key: torch.from_numpy(value) for key, value in case.inputs.items()}
        banks = _banks(name, layers, bottlenecks)
        with torch.no_grad(), _adapters(model, banks, torch.from_numpy(case.adapters)):
            result = model(**feeds, return_dict=True)
        kept = {key: result[key].to(torch.float32).numpy() for key in outputs if key in result}
        done[name] = Case(case.inputs, case.adapters, kept)
    return done


def _banks(case: str, layers: Mapping[str, tuple[int, int]], bottlenecks: Mapping[str, int]) -> Banks:
    """Reference adapters by layer and factor, with the rows in front; row 0 is the identity."""
    banks: Banks = {}
    indices = range(1, len(RANKS) + 1)
    for path, (into, out) in layers.items():
        banks[path] = _stacked([reference_factors(index, path, into, out, case) for index in indices])
    for path, features in bottlenecks.items():
        rows = [reference_bottleneck(index, path, features, case) for index in indices]
        banks[path] = banks.get(path, {}) | _stacked(rows)
    return {path: factors for path, factors in banks.items() if factors}


def _stacked(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    stacked = {}
    for factor in rows[0]:
        shape = [max(sizes) for sizes in zip(*(row[factor].shape for row in rows), strict=True)]
        bank = torch.zeros(len(rows) + 1, *shape)
        if factor.startswith("scale"):
            bank[0] = 1
        for index, row in enumerate(rows, start=1):
            tensor = torch.from_numpy(row[factor])
            bank[index][tuple(slice(size) for size in tensor.shape)] = tensor
        stacked[factor] = bank
    return stacked


@contextmanager
def _adapters(model: PreTrainedModel, banks: Banks, ids: torch.Tensor) -> Iterator[None]:
    """Within the block every layer has the adapter of its row."""
    handles: list[Any] = []
    for path, bank in banks.items():
        rows = {factor: tensor[ids] for factor, tensor in bank.items()}
        module = model.get_submodule(path)
        before, after = _hooks(rows)
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(rows: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    """The factors of a linear slot, then a bottleneck, around one layer."""
    given: list[torch.Tensor] = []

    def before(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        given[:] = [args[0]]
        if "scale_in" not in rows:
            return args
        return (_by_row(args[0], lambda x: x * rows["scale_in"][:, None]), *args[1:])

    def after(_: torch.nn.Module, __: Any, y: torch.Tensor) -> torch.Tensor:
        x = given.pop()
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        if "lora_A" in rows:
            y = _by_row(y, lambda value: value + (flat @ rows["lora_A"]) @ rows["lora_B"])
        if "scale_out" in rows:
            y = _by_row(y, lambda value: value * rows["scale_out"][:, None] + rows["bias"][:, None])
        if "down" in rows:
            y = _by_row(y, lambda value: value + _bottleneck(value, rows))
        return y

    return before, after


def _bottleneck(h: torch.Tensor, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    down = torch.relu(h @ rows["down"] + rows["down_bias"][:, None])
    return down @ rows["up"] + rows["up_bias"][:, None]


def _by_row(x: torch.Tensor, change: Any) -> torch.Tensor:
    """``change`` on ``[batch, tokens, features]``, whatever the shape of ``x``."""
    changed: torch.Tensor = change(x.reshape(x.shape[0], -1, x.shape[-1])).reshape(x.shape)
    return changed
