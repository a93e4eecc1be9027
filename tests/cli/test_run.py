"""`adexport run` where rows differ: heads of their own, no head at all, the next token of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from adexport.build import build_model
from adexport.options import BuildOptions
from adexport_runtime import Bundle, Code, bind_into_bundle
from tests.exporter.families import BARE, CAUSAL, FAMILIES, IMAGE, TEXT, TOKEN

from .support import run, run_json

LABELS = {0: "bad", 1: "fair", 2: "good"}
TEXTS = ("--text", "w5 w6 w7", "--text", "w9")


def add_tokenizer(folder: Path, **special: str) -> Path:
    """A tokenizer whose words are called by their ids, beside a model."""
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(97)}, unk_token="w3"))
    words.pre_tokenizer = WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w3", **special)
    fast.save_pretrained(folder)
    return folder


def adapter(folder: Path, auto: str, labels: int, path: Path) -> Path:
    """A random adapter with a head of its own."""
    model = getattr(transformers, auto).from_pretrained(
        folder, num_labels=labels, ignore_mismatched_sizes=True
    )
    task = "SEQ_CLS" if "Sequence" in auto else "TOKEN_CLS"
    torch.manual_seed(1)
    peft = get_peft_model(model, LoraConfig(task_type=task, target_modules=["query"]))
    for weight in peft.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3)
    peft.save_pretrained(str(path))
    return path


def classifier(task: str, checkpoint: str, tmp_path: Path, **settings: Any) -> Path:
    """A bundle with head slots, and an adapter ``five`` with five labels."""
    folder = add_tokenizer(
        FAMILIES["Bert"].save(checkpoint, tmp_path / "model", **settings), pad_token="w0"
    )
    build_model(
        str(folder), tmp_path / "b", task=task, options=BuildOptions(slots=("lora", "head"), max_rank=8)
    )
    auto = f"AutoModelFor{'Sequence' if task == TEXT else 'Token'}Classification"
    bind_into_bundle(Bundle.open(tmp_path / "b"), adapter(folder, auto, 5, tmp_path / "five"))
    return tmp_path / "b"


def test_every_row_has_its_own_labels(tmp_path: Path) -> None:
    bundle = classifier(TEXT, TEXT, tmp_path, id2label=LABELS)
    words = ("run", bundle, *TEXTS, "--adapter", "five", "--adapter", "-")
    own, base = run_json(*words)["rows"]
    assert list(own["scores"]) == [f"LABEL_{index}" for index in range(5)]
    assert list(base["scores"]) == ["bad", "fair", "good"]
    for row in (own, base):
        assert set(row) == {"text", "adapter", "tokens", "label", "scores"}
        assert row["label"] == max(row["scores"], key=row["scores"].get)
        assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)
    printed = run(*words).stdout
    assert f"{own['label']} ({own['scores'][own['label']]:.3f})" in printed
    assert f"{base['label']} ({base['scores'][base['label']]:.3f})" in printed


def test_a_row_without_labels_has_no_label(tmp_path: Path) -> None:
    bundle = classifier(TEXT, BARE, tmp_path)
    words = ("run", bundle, *TEXTS, "--adapter", "five", "--adapter", "-")
    own, base = run_json(*words)["rows"]
    assert len(own["scores"]) == 5
    assert set(base) == {"text", "adapter", "tokens", "embedding"}
    assert len(base["embedding"]) == 32
    assert run(*words).stdout.count("LABEL_") == 1


def test_every_token_has_a_label_of_its_row(tmp_path: Path) -> None:
    bundle = classifier(TOKEN, TOKEN, tmp_path, id2label=LABELS)
    own, base = run_json("run", bundle, *TEXTS, "--adapter", "five", "--adapter", "-")["rows"]
    assert (len(own["labels"]), len(base["labels"])) == (own["tokens"], base["tokens"]) == (3, 1)
    assert set(own["labels"]) <= {f"LABEL_{index}" for index in range(5)}
    assert set(base["labels"]) <= set(LABELS.values())


def test_the_next_token_of_a_prompt(tmp_path: Path) -> None:
    """The shorter row is padded with the token that ends a text, as the tokenizer has no other."""
    folder = add_tokenizer(
        FAMILIES["GPT2"].save(CAUSAL, tmp_path / "model", pad_token_id=None), eos_token="w2"
    )
    build_model(str(folder), tmp_path / "b")
    tokenizer = Bundle.open(tmp_path / "b").manifest.tokenizer
    assert tokenizer is not None
    assert (tokenizer.pad_id, tokenizer.pad_token) == (2, "w2")
    rows = run_json("run", tmp_path / "b", *TEXTS)["rows"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for row, ids in zip(rows, ([5, 6, 7], [9]), strict=True):
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, -1].softmax(-1).numpy()
        assert row["next_id"] == int(np.argmax(scores))
        assert row["next_token"] == f"w{row['next_id']}"
        assert row["score"] == pytest.approx(float(scores.max()), abs=1e-5)
    assert (
        f"'{rows[0]['next_token']}' ({rows[0]['score']:.3f})" in run("run", tmp_path / "b", *TEXTS).stdout
    )


def test_texts_are_padded_as_the_model_reads_them(tmp_path: Path) -> None:
    """A decoder's own head finds the last token by the model's padding id, not by the tokenizer's."""
    folder = add_tokenizer(FAMILIES["Llama"].save(TEXT, tmp_path / "model"), pad_token="w1")
    build_model(str(folder), tmp_path / "b")
    tokenizer = Bundle.open(tmp_path / "b").manifest.tokenizer
    assert tokenizer is not None
    assert (tokenizer.pad_id, tokenizer.pad_token) == (0, "w0")
    both = run_json("run", tmp_path / "b", *TEXTS)["rows"]
    alone = run_json("run", tmp_path / "b", *TEXTS[2:])["rows"]
    assert both[1]["scores"] == pytest.approx(alone[0]["scores"], abs=1e-6)


def test_images_are_refused(tmp_path: Path) -> None:
    folder = FAMILIES["ViT"].save(IMAGE, tmp_path / "model")
    build_model(str(folder), tmp_path / "b")
    facts = run_json("run", tmp_path / "b", "--text", "x", code=1)
    (problem,) = facts["problems"]
    assert problem["code"] == Code.UNSUPPORTED
    assert "pixel_values" in problem["got"]
    assert "engine.run" in problem["mend"]
