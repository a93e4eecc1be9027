"""Whether a model's own head reads as its family's rule says: shown by what torch computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from adexport_runtime.slots import OwnHead

from .architectures import architecture_of
from .marks import with_base_output
from .reference import sample_batches

#: a part of the largest logit; another layer, activation or token is far off
_TOLERANCE = 1e-4


def seen_own_head(model: Any, task: str) -> OwnHead | None:
    """How the model's own head reads, if it is what the family's rule says.

    The rule is followed in plain torch on a ragged batch and compared with the model's logits: an
    adapter's layer that took the place of another one would be wrong without a sign.

    Args:
        model: with a head, trained or not, in eval mode.
        task: a classification task.
    """
    architecture = architecture_of(model.config)
    own = architecture.own_head(task)
    if own is None:
        return None
    pad = getattr(model.config, "pad_token_id", None)
    cases = sample_batches(architecture.inputs(model), architecture.max_positions, pad)
    # a decoder that knows no padding takes one row at a time
    case = cases["one_row" if own.feature == "last" and pad is None else "mixed"]
    inputs = {name: torch.from_numpy(value) for name, value in case.inputs.items()}
    with torch.no_grad():
        result, base = with_base_output(model, inputs)
        padding = inputs.get("attention_mask")
        found = _logits(model, own, base, padding)
    if found is None or found.shape != result.logits.shape:
        return None
    kept = padding.bool() if padding is not None and own.feature == "tokens" else slice(None)
    expected = result.logits[kept]
    largest = float((found[kept] - expected).abs().max())
    if not largest <= _TOLERANCE * float(expected.abs().max()):
        return None
    return own.model_copy(update={"biased": model.get_submodule(own.out).bias is not None})


def _logits(model: Any, own: OwnHead, base: Any, padding: torch.Tensor | None) -> torch.Tensor | None:
    """The logits that the rule gives; None where a layer that it names is not there."""
    layers = dict(model.named_modules())
    out, dense = layers.get(own.out), layers.get(own.dense or "")
    if type(out) is not nn.Linear or (own.dense and type(dense) is not nn.Linear):
        return None
    x = _feature(own, base, padding)
    if own.dense and dense is not None:
        x = ACT2FN[own.activation or "linear"](dense(x))
    logits: torch.Tensor = out(x)
    return logits


def _feature(own: OwnHead, base: Any, padding: torch.Tensor | None) -> torch.Tensor:
    hidden: torch.Tensor = base.last_hidden_state
    if own.feature == "pooler":
        pooled: torch.Tensor = base.pooler_output
        return pooled
    if own.feature == "first":
        return hidden[:, 0]
    if own.feature == "last":
        assert padding is not None
        return hidden[torch.arange(hidden.shape[0]), padding.sum(1) - 1]
    return hidden
