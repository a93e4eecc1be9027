"""The rules that most transformer families follow."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from adexport_runtime.manifest import Input, Output


class Architecture:
    """What the exporter must know about a family that its config does not say."""

    def __init__(self, config: Any) -> None:
        """Keep the model's config."""
        self.config = config

    @property
    def max_positions(self) -> int | None:
        """The longest sequence, in tokens; None where there is no limit."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return int(limit) if limit and limit > 0 else None

    def inputs(self, model: Any) -> tuple[Input, ...]:
        """The inputs of the exported graph, ids first."""
        accepted = inspect.signature(model.forward).parameters
        shape = ("batch", "seq")
        inputs = [
            Input(
                name="input_ids",
                dtype="int64",
                shape=shape,
                low=0,
                high=model.get_input_embeddings().num_embeddings - 1,
            ),
            Input(name="attention_mask", dtype="int64", shape=shape, low=0, high=1, fill=1),
        ]
        types = getattr(self.config, "type_vocab_size", 0) or 0
        if types > 1 and "token_type_ids" in accepted:
            inputs.append(
                Input(name="token_type_ids", dtype="int64", shape=shape, low=0, high=types - 1, fill=0)
            )
        return tuple(inputs)

    def outputs(self, model: Any, task: str, untrained: Collection[str] = ()) -> tuple[Output, ...]:
        """The outputs of the exported graph: always float32.

        Feature extraction gives the pooled output too where the checkpoint has a trained pooler:
        without it, adapters on the pooler would act on nothing.
        """
        labels = int(getattr(self.config, "num_labels", 0) or 0)
        if task == "text-classification":
            return (Output(name="logits", dtype="fp32", shape=("batch", labels)),)
        if task == "token-classification":
            return (Output(name="logits", dtype="fp32", shape=("batch", "seq", labels)),)
        hidden = int(self.config.hidden_size)
        outputs = [Output(name="last_hidden_state", dtype="fp32", shape=("batch", "seq", hidden))]
        pooler = [name for name, _ in model.named_parameters() if name.startswith("pooler.")]
        if pooler and not set(pooler) & set(untrained):
            outputs.append(Output(name="pooler_output", dtype="fp32", shape=("batch", hidden)))
        return tuple(outputs)
