"""Every family of models that is supported, as small as it can be and random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from adexport.architectures import architecture_of
from adexport.build import BuildResult, build_model
from adexport.model import load_model
from adexport.options import BuildOptions

BARE, CAUSAL = "feature-extraction", "text-generation"
TEXT, TOKEN, IMAGE = "text-classification", "token-classification", "image-classification"
LABELS = 3

FORMS = ("double_seq_bn", "seq_bn", "par_bn", "adapter_plus")

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {**_SIZES, **_IDS}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_TWO = {"num_hidden_layers": 2}
_DISTIL = {"vocab_size": 97, "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 48}
_T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 40, **_IDS}
_DEBERTA = {**_SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_VIT = {key: _SIZES[key] for key in _SIZES if key not in ("vocab_size", "max_position_embeddings")}
_VIT |= {"image_size": 12, "patch_size": 4, "num_channels": 3}


@dataclass(frozen=True)
class Family:
    """A family: its config and its settings, and what is known of it.

    ``opaque``: its attention stays one op without a cache too. ``bottlenecks``: how many places there are
    for them. ``targets`` are the layers that can be sites.
    """

    config: str
    settings: dict[str, Any]
    bottlenecks: int = 2
    opaque: bool = True
    targets: str = r".*"
    decoder: bool = False

    def save(self, task: str, folder: Path, **settings: Any) -> Path:
        """A random model of the family, as transformers saves it; every weight has its effect."""
        torch.manual_seed(0)
        labels = {"num_labels": LABELS} if task in (TEXT, TOKEN, IMAGE) else {}
        config = getattr(transformers, self.config)(**{**self.settings, **labels, **settings})
        loader = {
            BARE: "AutoModel",
            CAUSAL: "AutoModelForCausalLM",
            TEXT: "AutoModelForSequenceClassification",
            TOKEN: "AutoModelForTokenClassification",
            IMAGE: "AutoModelForImageClassification",
        }[task]
        if task == BARE and architecture_of(config).bare_loader:
            model = getattr(transformers, str(architecture_of(config).bare_loader))(config)
        else:
            model = getattr(transformers, loader).from_config(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim == 1:
                    weight.add_(0.1 * torch.randn(weight.shape))
                elif not name.startswith(f"{model.base_model_prefix}."):
                    weight.normal_(std=0.2)
        model.save_pretrained(folder)
        return folder


FAMILIES = {
    "Bert": Family("BertConfig", _SMALL),
    "Roberta": Family("RobertaConfig", _SIZES),
    "XLMRoberta": Family("XLMRobertaConfig", _SIZES),
    "DistilBert": Family("DistilBertConfig", _DISTIL),
    # its one block runs twice
    "Albert": Family("AlbertConfig", {**_SMALL, **_TWO, "embedding_size": 16}),
    "Electra": Family("ElectraConfig", {**_SMALL, "embedding_size": 16}),
    "DebertaV2": Family("DebertaV2Config", _DEBERTA, opaque=False, targets=r"^(?!.*pos_\w+_proj$).*"),
    "MPNet": Family("MPNetConfig", _SIZES, bottlenecks=0, opaque=False),
    # the second block has a window
    "ModernBert": Family("ModernBertConfig", {**_SMALL, **_TWO, "local_attention": 6}, bottlenecks=4),
    "ViT": Family("ViTConfig", _VIT),
    # the second block takes the first one's relative positions
    "T5": Family("T5Config", _T5, bottlenecks=4, opaque=False),
    "Llama": Family("LlamaConfig", _GROUPED, decoder=True),
    "Mistral": Family("MistralConfig", {**_GROUPED, "sliding_window": 4}, decoder=True),
    "Qwen2": Family("Qwen2Config", _GROUPED, decoder=True),
    "Qwen3": Family("Qwen3Config", {**_GROUPED, "head_dim": 8}, decoder=True),
    "Gemma2": Family(
        "Gemma2Config",
        {**_GROUPED, **_TWO, "head_dim": 8, "sliding_window": 4},
        bottlenecks=0,
        opaque=False,
        decoder=True,
    ),
    "Gemma3": Family(
        "Gemma3TextConfig",
        {**_GROUPED, **_TWO, "head_dim": 8, "sliding_window": 4, "_sliding_window_pattern": 2},
        bottlenecks=0,
        decoder=True,
    ),
    "Phi3": Family("Phi3Config", _GROUPED, decoder=True),
    "GPT2": Family("GPT2Config", _GPT2, decoder=True),
}

#: families and tasks whose own head a head slot can take the place of
HEADS = [
    ("Bert", TEXT),
    ("Bert", TOKEN),
    ("Roberta", TEXT),
    ("XLMRoberta", TEXT),
    ("DistilBert", TEXT),
    ("Albert", TEXT),
    ("Electra", TEXT),
    ("DebertaV2", TEXT),
    ("ViT", IMAGE),
    ("Llama", TEXT),
    ("Llama", TOKEN),
    ("GPT2", TEXT),
    ("GPT2", TOKEN),
]


@dataclass(frozen=True)
class Built:
    """A model's folder, and its bundle with every slot that it can have."""

    model: Path
    result: BuildResult


def build_family(name: str, task: str, folder: Path) -> Built:
    """Build a family's model with slots of all kinds on all its linear layers."""
    family = FAMILIES[name]
    model = family.save(task, folder / "model")
    slots = ["lora", "bias", "scale", *(["bottleneck"] if family.bottlenecks else [])]
    slots += ["head"] if task in (TEXT, TOKEN, IMAGE) else []
    options = BuildOptions(
        slots=tuple(slots),
        targets=family.targets,
        bottlenecks=FORMS if family.bottlenecks else None,
        max_rank=8,
    )
    return Built(model, build_model(str(model), folder / "bundle", options=options))


def torch_model(built: Built, **settings: Any) -> Any:
    """The model in torch, of the class that the bundle was built from."""
    manifest = built.result.bundle.manifest
    if not settings:
        return load_model(str(built.model), manifest.base.task).model
    loaded = getattr(transformers, manifest.base.architecture).from_pretrained(
        built.model, ignore_mismatched_sizes=True, **settings
    )
    return loaded.eval()
