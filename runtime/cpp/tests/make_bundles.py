"""Make the bundles that the tests of the C++ runtime run, and what the Python runtime computes with them.

    python runtime/cpp/tests/make_bundles.py FOLDER

FOLDER gets ``NAME.bundle`` with adapters bound into them, and ``cases/BUNDLE.CASE.safetensors``: inputs
as ``input.NAME``, outputs as ``output.NAME``, and in the metadata ``bundle``, ``adapters`` (a name, or
nothing for the base, for each row, with commas between them), ``labels`` (of each row, with ``|`` between
them and commas between rows) and the version of ``onnxruntime``. Cases of a generation have ``prompt.ROW``
and ``generated.ROW``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnxruntime
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from adexport.build import build_model, lower_again
from adexport.options import TOLERANCE, BuildOptions
from adexport_runtime import Bundle, Engine, bind_into_bundle

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
RANKS = {"a": 2, "b": 5, "c": 16}
LAYERS = ["query", "value", "intermediate.dense"]


def save_lora(model: Any, folder: Path, seed: int, **settings: Any) -> Path:
    """A random LoRA adapter, in which everything has its effect."""
    peft = get_peft_model(model, LoraConfig(lora_alpha=8, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    peft.save_pretrained(str(folder))
    return folder


def bind_ranked(bundle: Path, load: Callable[[], Any], scratch: Path, targets: list[str]) -> None:
    """Adapters of several ranks, bound into a bundle."""
    for seed, (name, rank) in enumerate(RANKS.items()):
        folder = scratch / bundle.stem / name
        bind_into_bundle(
            Bundle.open(bundle), save_lora(load(), folder, seed, r=rank, target_modules=targets), name
        )


def save_run(
    folder: Path, bundle: Path, case: str, inputs: Mapping[str, Any], rows: Sequence[str | None]
) -> None:
    """What the Python runtime computes for a batch."""
    with Engine.open(bundle, threads=1, kernels="none") as engine:
        outputs = engine.run(inputs, list(rows))
    tensors = {f"input.{name}": np.ascontiguousarray(array) for name, array in inputs.items()}
    tensors |= {f"output.{name}": np.ascontiguousarray(array) for name, array in outputs.items()}
    metadata = {
        "onnxruntime": onnxruntime.__version__,
        "bundle": bundle.name,
        "adapters": ",".join(row or "" for row in rows),
        "labels": ",".join("|".join(names) for names in outputs.labels),
    }
    save_file(tensors, folder / "cases" / f"{bundle.stem}.{case}.safetensors", metadata)


def ragged(batch: int, seq: int, seed: int = 0) -> dict[str, Any]:
    """Random ids, padded on the right."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, seq + 1, batch)
    lengths[0] = seq
    mask = (np.arange(seq)[None] < lengths[:, None]).astype(np.int64)
    return {"input_ids": random.integers(3, 97, (batch, seq)), "attention_mask": mask}


def save_runs(folder: Path, bundle: Path) -> None:
    """Cases for any bundle with the adapters a, b and c."""
    save_run(folder, bundle, "mixed", ragged(6, 9), ["a", None, "b", "c", "c", None])
    save_run(folder, bundle, "one", ragged(3, 7, 1), ["b"] * 3)
    save_run(folder, bundle, "base", ragged(2, 5, 2), [None] * 2)
    save_run(folder, bundle, "single", ragged(1, 1, 3), ["c"])


def make_encoder(folder: Path, scratch: Path) -> None:
    """A BERT, in float32, float16, quantized, and without slots."""
    torch.manual_seed(0)
    model = scratch / "bert"
    BertModel(BertConfig(**TINY)).save_pretrained(model)
    bundle = folder / "encoder.bundle"
    build_model(str(model), bundle, options=BuildOptions(max_rank=16))
    half = BuildOptions(dtype="fp16", tolerance=TOLERANCE["fp16"])
    dynamic = BuildOptions(quantize="int8", quantize_method="dynamic", min_cosine=0.5)
    brain = BuildOptions(dtype="bf16", tolerance=TOLERANCE["bf16"])
    lowered = {"half": half, "brain": brain, "dynamic": dynamic, "plain": BuildOptions(slots=())}
    for name, options in lowered.items():
        lower_again(bundle, folder / f"{name}.bundle", options=options)
    for name in ("encoder", "half", "dynamic"):
        target = folder / f"{name}.bundle"
        bind_ranked(
            target,
            lambda: AutoModel.from_pretrained(model),
            scratch,
            ["query", "value", "intermediate.dense"],
        )
        save_runs(folder, target)
    save_run(folder, folder / "plain.bundle", "base", ragged(2, 5, 2), [None] * 2)


def make_deep(folder: Path, scratch: Path) -> None:
    """A BERT with as many slot inputs as MiniLM has, 72, and next to nothing to compute."""
    torch.manual_seed(0)
    model = scratch / "deep"
    BertModel(BertConfig(**{**TINY, "num_hidden_layers": 6})).save_pretrained(model)
    bundle = folder / "deep.bundle"
    build_model(str(model), bundle, options=BuildOptions(max_rank=16))
    bind_ranked(
        bundle, lambda: AutoModel.from_pretrained(model), scratch, ["query", "value", "intermediate.dense"]
    )
    save_run(folder, bundle, "mixed", ragged(4, 6), ["a", None, "b", "c"])


def make_classifier(folder: Path, scratch: Path) -> None:
    """A BERT with slots for heads: adapters with heads of their own, wider and narrower."""
    torch.manual_seed(0)
    model = scratch / "classifier"
    config = BertConfig(**TINY, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"})
    BertForSequenceClassification(config).save_pretrained(model)
    bundle = folder / "classifier.bundle"
    build_model(str(model), bundle, options=BuildOptions(max_rank=16, slots=("lora", "head")))
    for seed, (name, labels) in enumerate({"wide": 5, "narrow": 2, "same": 0}.items()):
        settings: dict[str, Any] = {"num_labels": labels, "ignore_mismatched_sizes": True} if labels else {}
        base = AutoModelForSequenceClassification.from_pretrained(model, **settings)
        kept = {"modules_to_save": ["classifier"]} if labels else {"target_modules": ["query", "value"]}
        chosen = {"target_modules": ["query"], **kept}
        source = save_lora(base, scratch / "heads" / name, seed, r=4, **chosen)
        names = [f"{name}{index}" for index in range(labels)] if labels else None
        bind_into_bundle(Bundle.open(bundle), source, name, labels=names)
    save_run(folder, bundle, "mixed", ragged(5, 8), ["wide", None, "narrow", "same", "wide"])
    save_run(folder, bundle, "narrow", ragged(3, 4, 1), ["narrow"] * 3)
    save_run(folder, bundle, "base", ragged(2, 5, 2), [None] * 2)


def make_decoder(folder: Path, scratch: Path) -> None:
    """A Llama that generates, in float32 and float16."""
    torch.manual_seed(0)
    model = scratch / "llama"
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
    LlamaForCausalLM(config).save_pretrained(model)
    bundle = folder / "decoder.bundle"
    build_model(str(model), bundle, options=BuildOptions(max_rank=16))
    half = BuildOptions(dtype="fp16", tolerance=TOLERANCE["fp16"])
    lower_again(bundle, folder / "decoder-half.bundle", options=half)
    for target in (bundle, folder / "decoder-half.bundle"):
        bind_ranked(
            target,
            lambda: AutoModelForCausalLM.from_pretrained(model),
            scratch,
            ["q_proj", "v_proj", "up_proj"],
        )
        save_runs(folder, target)
    save_generation(folder, bundle, "greedy", 5)
    save_generation(folder, bundle, "sampled", 5, temperature=0.9, top_k=20, top_p=0.9, seed=7)


def save_generation(folder: Path, bundle: Path, case: str, count: int, **settings: Any) -> None:
    """What the Python runtime generates; the same tokens are to come from C++."""
    random = np.random.default_rng(5)
    prompts = [[int(token) for token in random.integers(3, 97, 2 + 3 * row)] for row in range(count)]
    rows = [["a", None, "b", "c"][row % 4] for row in range(count)]
    with Engine.open(bundle, threads=1, kernels="none") as engine:
        generated = engine.generate(prompts, rows, max_batch=3, max_new_tokens=12, **settings)
    tensors = {f"prompt.{row}": np.array(prompt, np.int64) for row, prompt in enumerate(prompts)}
    tensors |= {f"generated.{row}": np.array(made.ids, np.int64) for row, made in enumerate(generated)}
    metadata = {
        "onnxruntime": onnxruntime.__version__,
        "bundle": bundle.name,
        "adapters": ",".join(row or "" for row in rows),
        "reasons": ",".join(made.reason for made in generated),
        **{name: str(value) for name, value in settings.items()},
    }
    save_file(tensors, folder / "cases" / f"{bundle.stem}.{case}.safetensors", metadata)


def main() -> int:
    """Make them, unless they are there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    ready = folder / "ready"
    if ready.exists():
        return 0
    torch.set_num_threads(1)
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for make in (make_encoder, make_deep, make_classifier, make_decoder):
            make(folder, Path(scratch))
    ready.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
