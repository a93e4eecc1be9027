"""Real models: MiniLM, and SmolLM2 with many tenants in one batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from adexport.build import build_model
from adexport.options import BuildOptions
from tests.conftest import MakeLora
from tests.exporter.generators import Reference, Tenants

from .backends import Gpu
from .conftest import NEAR, Open, bind_all, far

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LENGTHS = (17, 3, 40, 9, 28, 1)
TEXTS = (
    "The capital of France is",
    "Once upon a time there was a fox who",
    "def add(a, b):\n    return",
    "Water",
)
NEW = 24


def test_minilm(serve: Open, minilm: Path, minilm_bundle: Path, make_lora: MakeLora) -> None:
    adapters = {
        f"tenant{rank}": make_lora(f"tenant{rank}", model=minilm, seed=rank, r=rank, lora_alpha=2 * rank)
        for rank in (4, 16, 32)
    }
    rows = [*adapters, None, "tenant4", "tenant32"]
    mask = (np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids = np.random.default_rng(0).integers(1000, 30000, mask.shape)
    model = None
    for name, folder in adapters.items():
        if model is None:
            base = AutoModel.from_pretrained(minilm)
            model = PeftModel.from_pretrained(base, folder, adapter_name=name).eval()
        else:
            model.load_adapter(folder, adapter_name=name)
    assert model is not None
    with torch.no_grad():
        wanted = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            adapter_names=[name or "__base__" for name in rows],
        ).last_hidden_state.numpy()
    engine = bind_all(serve(minilm_bundle, seq=(1, 32, 128)), adapters)
    found = engine.run({"input_ids": ids, "attention_mask": mask}, rows)["last_hidden_state"]
    assert far(found[mask.astype(bool)], wanted[mask.astype(bool)]) <= NEAR["fp32"]


@pytest.fixture(scope="session")
def smollm2_tenants(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Tenants:
    folder = tmp_path_factory.mktemp("smollm2-tenants")
    adapters = {}
    for index, rank in enumerate((4, 16)):
        torch.manual_seed(index)
        base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
        peft = get_peft_model(base, LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        adapters[f"tenant{index}"] = folder / f"tenant{index}"
        peft.save_pretrained(str(adapters[f"tenant{index}"]))
    return Tenants(smollm2, adapters)


@pytest.fixture(scope="session")
def smollm2_bundle(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("smollm2-bundle") / "smollm2.bundle"
    build_model(str(smollm2), target, options=BuildOptions(max_rank=16))
    return target


def test_smollm2(
    gpu: Gpu, serve: Open, smollm2: Path, smollm2_bundle: Path, smollm2_tenants: Tenants
) -> None:
    """Identical greedy tokens, but where the reference's two best are closer than 1e-4."""
    if not gpu.generates:
        pytest.skip(f"{gpu.name} takes no graph with ONNX Runtime's attention over caches")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    rows = ["tenant0", None, "tenant1", "tenant0"]
    engine = bind_all(
        serve(smollm2_bundle, batch=(1, 4, 8), seq=(1, 16, 64), room=(1, 64, 128)), smollm2_tenants.adapters
    )
    reference = Reference(smollm2_tenants)
    found = engine.generate(prompts, rows, max_new_tokens=NEW, eos=())
    for prompt, row, result in zip(prompts, rows, found, strict=True):
        reference.check(prompt, row, result.ids)
    assert reference.close <= 1
