"""Graphs that generate: which inputs and outputs a KV cache brings, and whether a model can have one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from adexport_runtime.caches import Cache, Generation
from adexport_runtime.manifest import Input, Output

from .cached import CachedAttention
from .ops import PAST, PRESENT
from .rotary import steady_positions

_LENGTHS, _PAST_LENGTHS, _LOGITS_AT = "lengths", "past_lengths", "logits_at"


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


def make_generating(model: PreTrainedModel, positions: int | None) -> Generating | list[str]:
    """Survey a model that generates; the reasons why it cannot have a cache, if there are any.

    Args:
        model: a float32 causal language model in eval mode.
        positions: the longest text, in tokens.
    """
    limit = steady_positions(model.config, positions)
    if limit is None:
        return ["the model's config does not say how long a text may be"]
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return [f"{type(model).__name__} takes no position_ids"]
    attention = CachedAttention(limit)
    ids = torch.arange(1, 9).reshape(2, 4) % model.config.vocab_size
    reasons = attention.survey(
        model,
        lambda: model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.arange(4).expand(2, 4).contiguous(),
            use_cache=False,
        ),
    )
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
