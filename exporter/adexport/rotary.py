"""Rotary position embeddings as tables: what a model's rotary functions do, seen once in plain torch.

Families share one form (arXiv:2104.09864, halves rotated): the first ``2 * half`` sizes of a head are
rotated by the angles of its position, which a table of ``[positions, half]`` cosines and sines holds. A
model whose functions do just that, as a survey checks call by call, can leave it to the attention.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from transformers import PretrainedConfig, PreTrainedModel

_FUNCTION = "apply_rotary_pos_emb"
_ARGUMENTS = ("query", "key", "cos", "sin")
_MODULE = "RotaryEmbedding"
#: kinds of tables that change with the length of the text, and the first length at which they do
_CHANGING = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}


def steady_positions(config: PretrainedConfig, positions: int | None) -> int | None:
    """How many positions have one rotary table, whatever the length of the text."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    for kind in kinds:
        name = _CHANGING.get(str(kind.get("rope_type")))
        limit = name and (kind.get(name) or getattr(config, name, None))
        if limit:
            positions = min(int(limit), positions or int(limit))
    return positions


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines, float32 ``[positions, half]``."""

    cos: torch.Tensor
    sin: torch.Tensor


class RotarySurvey:
    """Watches a model's rotary functions while it runs once."""

    def __init__(self, model: PreTrainedModel, positions: int) -> None:
        """``positions`` is how many the tables must hold."""
        self.faults: list[str] = []
        self.tables: list[RotaryTable] = []
        self._model = model
        self._positions = positions
        self._made: dict[int, tuple[Any, int]] = {}
        self._rotated: tuple[torch.Tensor, torch.Tensor, int] | None = None
        self._last: tuple[torch.Tensor, torch.Tensor, int] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block calls of the model's rotary functions and modules are seen."""
        handles = [
            module.register_forward_hook(self._keep_table, with_kwargs=True)
            for module in self._model.modules()
            if type(module).__name__.endswith(_MODULE)
        ]
        try:
            with _replaced(self._model, self._apply):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def taken(self, query: torch.Tensor, key: torch.Tensor) -> int | None:
        """The table with which the query and the key of an attention were rotated just before."""
        rotated, self._rotated = self._rotated, None
        if rotated is None:
            # some layers attend twice with what was rotated once
            again = self._last is not None and any(
                x is y for x, y in zip(self._last, (query, key), strict=False)
            )
            rotated = self._last if again else None
        if rotated is None:
            return None
        self._last = rotated
        if rotated[0] is not query or rotated[1] is not key:
            self.faults.append("something stands between rotary embedding and attention")
        return rotated[2]

    def _keep_table(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Ask a rotary module for all positions, as it was asked for a few."""
        if not (isinstance(output, tuple) and len(output) == 2):
            self.faults.append(f"{type(module).__name__} gives no cosines and sines")
            return
        forward: Callable[..., Any] = type(module).forward
        bound = inspect.signature(forward).bind(module, *args, **kwargs)
        if "position_ids" not in bound.arguments:
            self.faults.append(f"{type(module).__name__} takes no position_ids")
            return
        asked = bound.arguments["position_ids"]
        bound.arguments["position_ids"] = torch.arange(self._positions)[None]
        cos, sin = (values[0].float() for values in forward(*bound.args, **bound.kwargs))
        if not all(
            torch.equal(table[asked], values) for table, values in zip((cos, sin), output, strict=True)
        ):
            self.faults.append(f"{type(module).__name__} gives other values for longer texts")
        half = cos.shape[-1] // 2
        if not all(torch.equal(table[:, :half], table[:, half:]) for table in (cos, sin)):
            self.faults.append(f"{type(module).__name__} does not rotate halves")
        index = len(self.tables)
        self.tables.append(RotaryTable(cos[:, :half].contiguous(), sin[:, :half].contiguous()))
        self._made[id(output[0])] = (output, index)

    def _apply(self, original: Callable[..., Any], *args: Any, **named: Any) -> Any:
        rotated = original(*args, **named)
        if len(args) < len(_ARGUMENTS) or not isinstance(rotated, tuple):
            self.faults.append(f"{_FUNCTION} takes or gives other things than {', '.join(_ARGUMENTS)}")
            return rotated
        query, key, cos, sin = args[: len(_ARGUMENTS)]
        output, index = self._made.get(id(cos), ((None, None), -1))
        if output[0] is not cos or output[1] is not sin:
            self.faults.append(f"{_FUNCTION} takes cosines of another kind")
        elif not all(
            torch.allclose(got, _rotate(x, cos, sin), atol=1e-6)
            for got, x in zip(rotated, (query, key), strict=True)
        ):
            self.faults.append(f"{_FUNCTION} does not rotate halves")
        else:
            self._rotated = (*rotated, index)
        return rotated


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x cos + turn(x) sin`` on the first sizes of ``[batch, heads, seq, size]``."""
    size = cos.shape[-1]
    turned, kept = x[..., :size], x[..., size:]
    first, second = turned.chunk(2, dim=-1)
    half = torch.cat((-second, first), dim=-1)
    return torch.cat((turned * cos[:, None] + half * sin[:, None], kept), dim=-1)


@contextmanager
def without_rotary(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model's rotary functions and modules do nothing: the attention does it."""
    with ExitStack() as stack:
        stack.enter_context(_replaced(model, lambda _original, query, key, *_rest, **_named: (query, key)))
        for module in model.modules():
            if type(module).__name__.endswith(_MODULE):
                nothing = torch.zeros(1, 1, 2)
                stack.enter_context(
                    patch.object(module, "forward", lambda *_, nothing=nothing, **__: (nothing, nothing))
                )
        yield


@contextmanager
def _replaced(model: PreTrainedModel, substitute: Callable[..., Any]) -> Iterator[None]:
    """Let the modules' own ``apply_rotary_pos_emb`` be ``substitute(original, …)``."""
    names = {type(module).__module__ for module in model.modules()}
    with ExitStack() as stack:
        for namespace in (sys.modules[name] for name in sorted(names)):
            original = getattr(namespace, _FUNCTION, None)
            if original is not None:
                stack.enter_context(
                    patch.object(
                        namespace,
                        _FUNCTION,
                        lambda *args, original=original, **named: substitute(original, *args, **named),
                    )
                )
        yield
