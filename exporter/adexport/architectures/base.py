"""The rules that most transformer families follow."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from typing import Any, NamedTuple

from adexport_runtime.manifest import Input, Output
from adexport_runtime.slots import Activation, Feature, Location, OwnHead

TEXT_CLASSIFICATION = "text-classification"
TOKEN_CLASSIFICATION = "token-classification"
IMAGE_CLASSIFICATION = "image-classification"
TEXT_GENERATION = "text-generation"
CLASSIFICATION = (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, IMAGE_CLASSIFICATION)


class BottleneckRule(NamedTuple):
    """Behind which linear layers the blocks add a sub-block's output to its input.

    ``mh`` and ``output`` are regexes for the end of a path, with the block's number in the group
    ``layer``. ``normed``: a LayerNorm follows the addition (post-LN).
    """

    mh: str
    output: str
    normed: bool

    def find(self, path: str) -> tuple[int, Location] | None:
        """The block and the location of a linear layer; None if no bottleneck goes there."""
        places: tuple[tuple[str, Location], ...] = ((self.mh, "mh"), (self.output, "output"))
        for pattern, location in places:
            if found := re.search(rf"(?:^|\.){pattern}$", path):
                return int(found["layer"]), location
        return None


class Architecture:
    """What the exporter must know about a family that its config does not say.

    ``bottlenecks`` is None where no bottleneck slots are known; ``feature`` is what a head for a whole
    text reads; ``head`` names the layers of the family's own head of that kind: the last one, and the
    one before it with the activation between them, if there is one. ``token_head`` is the one layer of
    its own head on every token. ``main_input`` is the input that a batch cannot do without.
    """

    main_input: str = "input_ids"
    bottlenecks: BottleneckRule | None = None
    feature: Feature = "first"
    head: tuple[str] | tuple[str, Activation, str] | None = None
    token_head: str | None = "classifier"
    #: the loader of the bare model, where transformers' own choice has more than the encoder
    bare_loader: str | None = None

    def __init__(self, config: Any) -> None:
        """Keep the model's config."""
        self.config = config

    @property
    def max_positions(self) -> int | None:
        """The longest sequence, in tokens; None where there is no limit."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return int(limit) if limit and limit > 0 else None

    def own_head(self, task: str) -> OwnHead | None:
        """How the family's own head reads as a head slot; None where it is of another kind."""
        if task == TOKEN_CLASSIFICATION and self.token_head is not None:
            return OwnHead(feature="tokens", out=self.token_head)
        if task != TEXT_CLASSIFICATION or self.head is None:
            return None
        if len(self.head) == 1:
            return OwnHead(feature=self.feature, out=self.head[0])
        dense, activation, out = self.head
        return OwnHead(feature=self.feature, out=out, dense=dense, activation=activation)

    def head_feature(self, task: str) -> Feature:
        """What heads read besides a pooled output, whether or not the family has one of its own."""
        if task == TOKEN_CLASSIFICATION:
            return "tokens"
        return "first" if self.feature == "pooler" else self.feature

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

        A bare model gives the pooled output too where the checkpoint has a trained pooler: without it,
        adapters on the pooler would act on nothing. A bare model for a classification task, whose heads
        all come with adapters, gives logits besides.
        """
        logits: dict[str, tuple[str | int, ...]] = {
            TEXT_CLASSIFICATION: ("batch",),
            IMAGE_CLASSIFICATION: ("batch",),
            TOKEN_CLASSIFICATION: ("batch", "seq"),
            TEXT_GENERATION: ("batch", "seq"),
        }
        if task in logits and not is_bare(model):
            size = self.config.vocab_size if task == TEXT_GENERATION else self.config.num_labels
            return (Output(name="logits", dtype="fp32", shape=(*logits[task], int(size))),)
        hidden = int(self.config.hidden_size)
        shape = ("batch", self.hidden_length(model), hidden)
        outputs = [Output(name="last_hidden_state", dtype="fp32", shape=shape)]
        if has_pooler(model, untrained):
            outputs.append(Output(name="pooler_output", dtype="fp32", shape=("batch", hidden)))
        if task in CLASSIFICATION:
            outputs.append(Output(name="logits", dtype="fp32", shape=(*logits[task], "labels")))
        return tuple(outputs)

    def hidden_length(self, model: Any) -> str | int:
        """The size of the sequence behind the blocks."""
        del model
        return "seq"


def is_bare(model: Any) -> bool:
    """Whether a model is the base itself, without a task's head."""
    return model.base_model is model


def has_pooler(model: Any, untrained: Collection[str] = ()) -> bool:
    """Whether the base has a pooler that is trained."""
    prefix = "" if is_bare(model) else f"{model.base_model_prefix}."
    pooler = [name for name, _ in model.named_parameters() if name.startswith(f"{prefix}pooler.")]
    return bool(pooler) and not set(pooler) & set(untrained)
