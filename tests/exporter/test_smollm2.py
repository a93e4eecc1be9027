"""SmolLM2: what many tenants are told in one batch is what PEFT tells each of them alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from adexport.build import build_model
from adexport.options import BuildOptions
from adexport_runtime import Engine

from .generators import Reference, Tenants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TEXTS = (
    "The capital of France is",
    "Water",
    "Once upon a time there was a fox who",
    "def add(a, b):\n    return",
    "List three colours:",
    "In the year 1969, two astronauts walked on the moon while a third stayed in orbit, and",
    "My favourite food is soup because it",
    "Q: What is the opposite of hot?\nA:",
)
ROWS = ("tenant0", None, "tenant1", "tenant2", "tenant3", None, "tenant0", "tenant1")
RANKS = (4, 8, 16, 8)
NEW = 64


@pytest.fixture(scope="module")
def tenants(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Tenants:
    """Four random LoRA adapters of several ranks that change what the model says."""
    folder = tmp_path_factory.mktemp("smollm2")
    adapters = {}
    for index, rank in enumerate(RANKS):
        torch.manual_seed(index)
        targets = ["q_proj", "v_proj", "o_proj", "down_proj"] if index % 2 else "all-linear"
        config = LoraConfig(r=rank, lora_alpha=16, target_modules=targets)
        peft = get_peft_model(AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32), config)
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        adapters[f"tenant{index}"] = folder / f"tenant{index}"
        peft.save_pretrained(str(adapters[f"tenant{index}"]))
    return Tenants(smollm2, adapters)


@pytest.fixture(scope="module")
def engine(tenants: Tenants, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    target = tmp_path_factory.mktemp("smollm2") / "bundle"
    build_model(str(tenants.model), target, options=BuildOptions(max_rank=16))
    with Engine.open(target) as opened:
        for name, folder in tenants.adapters.items():
            opened.bind(name, folder)
        yield opened


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.fixture(scope="module")
def together(engine: Engine, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return [result.ids for result in engine.generate(prompts, ROWS, max_new_tokens=NEW, eos=())]


def test_one_batch_says_what_peft_says(
    tenants: Tenants, prompts: list[list[int]], together: list[tuple[int, ...]]
) -> None:
    """Identical tokens, but where the reference's two best are closer than 1e-4."""
    reference = Reference(tenants)
    for prompt, row, ids in zip(prompts, ROWS, together, strict=True):
        reference.check(prompt, row, ids)
    print(f"undecided in {reference.close} of {len(ROWS)} rows")  # noqa: T201
    assert reference.close <= 2
    assert together[0] != together[6][: len(together[0])]


def test_continuous_batching_says_the_same(
    engine: Engine, prompts: list[list[int]], together: list[tuple[int, ...]], tenants: Tenants
) -> None:
    """Three rows for eight requests, long prompts in pieces."""
    reference = Reference(tenants)
    with engine.session(3, 128, prompt_tokens=16) as session:
        streams = [
            session.submit(prompt, row, max_new_tokens=NEW, eos=())
            for prompt, row in zip(prompts, ROWS, strict=True)
        ]
        found = [stream.result(300).ids for stream in streams]
    for prompt, row, ids, other in zip(prompts, ROWS, found, together, strict=True):
        if ids != other:
            reference.check(prompt, row, ids)


def test_texts_and_chat(engine: Engine, smollm2: Path) -> None:
    """The bundle's tokenizer and template give the prompts that transformers makes of them."""
    pieces: list[str] = []
    (said,) = engine.generate(TEXTS[0], max_new_tokens=8, on_text=lambda _row, piece: pieces.append(piece))
    assert said.text is not None
    assert said.text.startswith(" Paris")
    assert "".join(pieces) == said.text
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the capital of France?"}]
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert engine.generator.ids(messages) == list(expected)
    (answer,) = engine.generate([messages], max_new_tokens=40)
    assert answer.reason == "eos"
    assert answer.text == "The capital of France is Paris."
    (cut,) = engine.generate([messages], max_new_tokens=40, stop=[" France"])
    assert (cut.text, cut.reason) == ("The capital of", "stop")
