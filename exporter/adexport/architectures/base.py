"""The rules that most transformer families follow."""

from __future__ import annotations

import inspect
from typing import Any

from adexport_runtime.manifest import Input, Output

#: output of a task -> its symbolic shape
_OUTPUTS = {
    "feature-extraction": "last_hidden_state",
    "text-classification": "logits",
    "token-classification": "logits",
}


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

    def outputs(self, task: str) -> tuple[Output, ...]:
        """The outputs of the exported graph: always float32."""
        labels = int(getattr(self.config, "num_labels", 0) or 0)
        shape: tuple[str | int, ...] = {
            "feature-extraction": ("batch", "seq", int(self.config.hidden_size)),
            "text-classification": ("batch", labels),
            "token-classification": ("batch", "seq", labels),
        }[task]
        return (Output(name=_OUTPUTS[task], dtype="fp32", shape=shape),)
