"""``adexport generate``: prompts in one batch, each with its adapter, where torch is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from adexport.build import build_model
from adexport_runtime import Code, Engine
from tests.conftest import MakeLora
from tests.exporter.families import CAUSAL, FAMILIES

from .support import run, run_json, run_without
from .test_run import add_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] == 'user' and 'w5' or 'w6' }} {{ m['content'] }} {% endfor %}w7"
)
FEW = ("--max-new-tokens", "6", "--threads", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_lora: MakeLora) -> tuple[Path, Path]:
    """A bundle with a chat template, and an adapter for it."""
    folder = tmp_path_factory.mktemp("generate")
    model = add_tokenizer(FAMILIES["Llama"].save(CAUSAL, folder / "model"), pad_token="w0")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    build_model(str(model), folder / "bundle")
    lora = make_lora(
        "acme", model=model, auto=AutoModelForCausalLM, target_modules=["q_proj", "down_proj"], std=0.5
    )
    return folder / "bundle", lora


@pytest.fixture
def bundle(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy with the adapter bound."""
    shutil.copytree(made[0], tmp_path / "b")
    run("bind", made[1], "-b", tmp_path / "b", "--name", "acme")
    return tmp_path / "b"


def test_rows_are_those_of_the_engine(bundle: Path) -> None:
    words = ("--prompt", "w9 w11", "--adapter", "acme", "--prompt", "w3", "--adapter", "-")
    found = run_json("generate", bundle, *words, *FEW)["rows"]
    with Engine.open(bundle, threads=1) as engine:
        expected = engine.generate(["w9 w11", "w3"], ["acme", None], max_new_tokens=6)
    assert [row["ids"] for row in found] == [list(result.ids) for result in expected]
    assert [row["text"] for row in found] == [result.text for result in expected]
    assert [(row["adapter"], row["prompt_tokens"]) for row in found] == [("acme", 2), (None, 1)]
    shown = run("generate", bundle, *words, *FEW).stdout
    assert f"w9 w11\n[acme] {expected[0].text}\n" in shown
    assert f"w3\n[-] {expected[1].text}\n" in shown


def test_one_prompt_is_shown_alone(bundle: Path) -> None:
    with Engine.open(bundle, threads=1) as engine:
        (expected,) = engine.generate("w9 w11", "acme", max_new_tokens=6)
    words = ("--prompt", "w9 w11", "--adapter", "acme")
    assert run("generate", bundle, *words, *FEW).stdout == f"{expected.text}\n"


def test_chat(bundle: Path) -> None:
    words = ("--chat", "--system", "w20", "--prompt", "w9 w11")
    (row,) = run_json("generate", bundle, *words, *FEW)["rows"]
    with Engine.open(bundle, threads=1) as engine:
        (expected,) = engine.generate(["w6 w20 w5 w9 w11 w7"], max_new_tokens=6)
    assert row["ids"] == list(expected.ids)
    assert row["prompt_tokens"] == 6


def test_sampling_and_stops(bundle: Path) -> None:
    words = ("--prompt", "w9", "--temperature", "1", "--top-k", "20", "--top-p", "0.9", "--seed", "4")
    words = (*words, "--repetition-penalty", "1.1")
    first, again = (run_json("generate", bundle, *words, *FEW)["rows"][0] for _ in range(2))
    assert first == again
    stop = first["text"].split()[3]
    (row,) = run_json("generate", bundle, *words, "--stop", stop, *FEW)["rows"]
    assert row["reason"] == "stop"
    assert row["text"] == first["text"].partition(stop)[0]


def test_without_torch(bundle: Path) -> None:
    banned = ["torch", "transformers", "peft", "onnx", "onnx_ir"]
    done = run_without(banned, "generate", bundle, "--chat", "--prompt", "w9", "--json", *FEW)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["rows"]) == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--prompt", "w9", "--adapter", "nobody", *FEW), Code.UNKNOWN_ADAPTER),
        (("--prompt", "", *FEW), Code.BAD_INPUT),
        (("--prompt", "w9", "--temperature", "-1", *FEW), Code.BAD_INPUT),
        (("--prompt", "w9", "--max-new-tokens", "4000"), Code.BAD_INPUT),
        (("--prompt", "w9", "--max-batch", "0", *FEW), Code.BAD_INPUT),
    ],
)
def test_refusals(bundle: Path, words: tuple[str, ...], code: Code) -> None:
    facts = run_json("generate", bundle, *words, code=1)
    assert {problem["code"] for problem in facts["problems"]} == {code}


def test_wrong_usage_and_other_bundles(bundle: Path, tiny_bundle: Path) -> None:
    assert run("generate", bundle).exit_code == 2
    assert run("generate", bundle, "--prompt", "w1", "--system", "w2").exit_code == 2
    words = ("--prompt", "w1", "--prompt", "w2", "--prompt", "w3", "--adapter", "acme", "--adapter", "-")
    assert run("generate", bundle, *words).exit_code == 2
    facts = run_json("generate", tiny_bundle, "--prompt", "w1", code=1)
    assert facts["problems"][0]["code"] == Code.UNSUPPORTED
