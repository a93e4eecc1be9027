"""Graphs that generate: which inputs and outputs a KV cache brings, and whether a model can have one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from adexport_runtime.caches import Cache, Generation
from adexport_runtime.manifest import Input, Output

from .cached import CachedAttention
from .ops import PAST, PRESENT
from .rotary import steady_positions

_LENGTHS, _PAST_LENGTHS, _LOGITS_AT = "lengths", "past_lengths", "logits_at"

#: what a prompt can bring where there is a cache: positions and the kinds of tokens are the graph's
PROMPT_INPUTS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class Generating:
    """What a trace with a cache needs, and what the manifest says of it.

    ``positions`` is the longest text, in tokens: shorter than the model's where its rotary table
    changes with the length of a text.
    """

    attention: CachedAttention
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    generation: Generation
    positions: int


def make_generating(
    model: PreTrainedModel, positions: int | None, takes: Sequence[str] = PROMPT_INPUTS
) -> Generating | list[str]:
    """Survey a model that generates; the reasons why it cannot have a cache, if there are any.

    Args:
        model: a float32 causal language model in eval mode.
        positions: the longest text, in tokens.
        takes: the names of what a run of the model brings.
    """
    if others := [name for name in takes if name not in PROMPT_INPUTS]:
        return [f"{type(model).__name__} takes {', '.join(others)} with its prompts"]
    limit = steady_positions(model.config, positions)
    if limit is None:
        return ["the model's config does not say how long a text may be"]
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return [f"{type(model).__name__} takes no position_ids"]
    attention = CachedAttention(limit)
    ids = torch.arange(1, 9).reshape(2, 4) % model.config.vocab_size
    run = partial(model, attention_mask=torch.ones_like(ids), use_cache=False)
    placed = partial(run, position_ids=torch.arange(4).expand(2, 4).contiguous())
    reasons = attention.survey(model, partial(placed, input_ids=ids), lambda: _check(ids, run, placed))
    if reasons:
        return reasons
    generation = Generation(
        lengths=_LENGTHS,
        past_lengths=_PAST_LENGTHS,
        logits_at=_LOGITS_AT,
        caches=tuple(
            Cache(
                past_key=f"{PAST}{index}.key",
                past_value=f"{PAST}{index}.value",
                present_key=f"{PRESENT}{index}.key",
                present_value=f"{PRESENT}{index}.value",
                kv_heads=layer.kv_heads,
                size=layer.size,
                window=layer.window,
            )
            for index, layer in enumerate(attention.layers)
        ),
        eos_ids=_eos_ids(model),
    )
    vocabulary = model.get_input_embeddings().num_embeddings
    return Generating(attention, _inputs(generation, vocabulary, limit), _outputs(generation, model),
                      generation, limit)  # fmt: skip


def _check(ids: torch.Tensor, run: Callable[..., Any], placed: Callable[..., Any]) -> list[str]:
    """What a step would not know of, seen while attention gives zeros and no token hears of another."""
    before = ids.clone()
    before[:, :-1] = ids[:, 1:]
    with torch.no_grad():
        logits, changed = (placed(input_ids=given).logits for given in (ids, before))
        own = run(input_ids=ids).logits
    close = partial(torch.allclose, rtol=1e-4, atol=1e-5 * float(logits.abs().max()), equal_nan=True)
    reasons = []
    if not close(changed[:, -1], logits[:, -1]):
        reasons.append("tokens meet outside of the attention, in a state that no cache holds")
    if not close(own, logits):
        reasons.append("the model counts its positions otherwise than from 0")
    return reasons


def _inputs(generation: Generation, vocabulary: int, positions: int) -> tuple[Input, ...]:
    rows, last = ("batch",), positions - 1
    inputs = [
        Input(name="input_ids", dtype="int64", shape=("batch", "seq"), low=0, high=vocabulary - 1),
        Input(name=generation.lengths, dtype="int64", shape=rows, low=1, high=positions),
        Input(name=generation.past_lengths, dtype="int64", shape=rows, low=0, high=positions),
        Input(name=generation.logits_at, dtype="int64", shape=("batch", "wanted"), low=0, high=last),
    ]
    for cache in generation.caches:
        shape = ("batch", cache.kv_heads, "room", cache.size)
        inputs += [
            Input(name=cache.past_key, dtype="fp32", shape=shape),
            Input(name=cache.past_value, dtype="fp32", shape=shape),
        ]
    return tuple(inputs)


def _outputs(generation: Generation, model: PreTrainedModel) -> tuple[Output, ...]:
    size = int(model.config.vocab_size)
    outputs = [Output(name="logits", dtype="fp32", shape=("batch", "wanted", size))]
    for cache in generation.caches:
        shape = ("batch", cache.kv_heads, "room", cache.size)
        outputs += [
            Output(name=cache.present_key, dtype="fp32", shape=shape),
            Output(name=cache.present_value, dtype="fp32", shape=shape),
        ]
    return tuple(outputs)


def _eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The tokens that end a text, as ``generate`` of transformers takes them."""
    eos = getattr(model, "generation_config", model.config).eos_token_id
    if eos is None:
        return ()
    return tuple(int(token) for token in (eos if isinstance(eos, list | tuple) else [eos]))
