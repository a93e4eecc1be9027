"""The base model: loaded from a folder or a hub id with transformers' ordinary loaders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.manifest import Task
from adexport_runtime.slots import OwnHead
from adexport_runtime.tensors import Array

from .architectures import CLASSIFICATION, architecture_of
from .fingerprint import fingerprint
from .own_head import seen_own_head
from .supported import check_supported

_BARE = "AutoModel"
_LOADERS = {
    "feature-extraction": _BARE,
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "text-generation": "AutoModelForCausalLM",
}
_ENDINGS: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True)
class LoadedModel:
    """A frozen float32 model in eval mode, its tokenizer (if any) and what it is for.

    ``untrained`` names the weights that the checkpoint does not have (they are random). ``own_head`` is
    how the head of the model's class reads, None where that is not a head slot's way.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    task: Task
    name: str
    source: str
    untrained: frozenset[str]
    own_head: OwnHead | None = None

    @property
    def config(self) -> PretrainedConfig:
        """The model's config."""
        return self.model.config

    @property
    def pad_id(self) -> int | None:
        """What stands at padding, if the model's config says it."""
        pad = getattr(self.config, "pad_token_id", None)
        return None if pad is None or pad < 0 else int(pad)

    @property
    def padding(self) -> tuple[int, str] | None:
        """The id and the token to pad texts with: the model's, else the tokenizer's.

        Many decoders have none: any token will do where the mask hides it, so they take the one that
        ends a text.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            return None
        for found in (self.pad_id, tokenizer.pad_token_id, tokenizer.eos_token_id):
            if found is not None:
                return int(found), str(tokenizer.convert_ids_to_tokens(int(found)) or "")
        return None


def load_model(source: str, task: str = "auto", *, headless: bool = False) -> LoadedModel:
    """Load a base model.

    Args:
        source: a local folder, or a hub id that transformers' loader resolves.
        task: one of :data:`TASKS`, or ``auto``: what the config's architecture says.
        headless: a classification task may do without a trained head: adapters bring theirs. The
            model is then the bare base.

    Raises:
        BuildError: the model does not load, or no bundle can hold it.
    """
    model, info, chosen = load_torch(source, task)
    classifies = chosen in CLASSIFICATION
    bare = headless and classifies and _lacks_head(model, info)
    if not bare:
        check_supported(model, chosen, source)
    own = seen_own_head(model, chosen) if classifies else None
    if bare:
        model, info, _ = load_torch(source, "feature-extraction")
        check_supported(model, chosen, source)
    return LoadedModel(
        model=model,
        tokenizer=_tokenizer(source),
        task=chosen,
        name=_name(source),
        source=source,
        untrained=frozenset(info["missing_keys"]),
        own_head=own,
    )


def load_torch(
    source: str, task: str, labels: int | None = None
) -> tuple[PreTrainedModel, dict[str, Any], Task]:
    """The model, frozen and in eval mode, what its checkpoint lacked, and its task.

    Float32 whatever the checkpoint holds: precision is a choice of the lowering. ``labels`` makes a
    head of that many, random where the checkpoint's has others.

    Raises:
        BuildError: the model does not load.
    """
    try:
        config = AutoConfig.from_pretrained(source, **({"num_labels": labels} if labels else {}))
        chosen = _task_of(config) if task == "auto" else cast(Task, task)
        loader = _LOADERS[chosen]
        if loader == _BARE:
            loader = architecture_of(config).bare_loader or loader
        model, info = getattr(transformers, loader).from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=labels is not None,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BuildError(
            f"{source} cannot be built",
            Problem(
                Code.ABSENT,
                source,
                got=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
                expected="a transformers model",
                mend="check the path; a hub id needs the network",
            ),
        ) from error
    return model.eval().requires_grad_(False), info, chosen


def _lacks_head(model: PreTrainedModel, info: dict[str, Any]) -> bool:
    prefix = f"{model.base_model_prefix}."
    return any(not name.startswith(prefix) for name in info["missing_keys"])


def _task_of(config: PretrainedConfig) -> Task:
    architecture = (config.architectures or [""])[0]
    for ending, task in _ENDINGS.items():
        if architecture.endswith(ending):
            return task
    return "feature-extraction"


def _name(source: str) -> str:
    path = Path(source)
    return path.resolve().name if path.exists() else source.rpartition("/")[2]


def _tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the model, as a fast one; None where there is none.

    transformers makes an empty tokenizer where a model has no vocabulary: that is none.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError, TypeError):
        return None
    if not getattr(tokenizer, "is_fast", False):
        return None
    files = tokenizer.vocab_files_names.values()
    found = (
        cached_file(source, name, _raise_exceptions_for_missing_entries=False) is not None for name in files
    )
    return tokenizer if any(found) else None


def frozen_weights(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Array]:
    """The named parameters of a model as float32, in the checkpoint's orientation."""
    state = dict(model.named_parameters())
    return {name: state[name].detach().to(torch.float32).numpy() for name in names}


def model_fingerprint(model: PreTrainedModel, names: Iterable[str]) -> str:
    """The fingerprint of a loaded model over the named weights."""
    prefix = f"{model.base_model_prefix}."
    weights = frozen_weights(model, names)
    return fingerprint({name.removeprefix(prefix): weight for name, weight in weights.items()})
