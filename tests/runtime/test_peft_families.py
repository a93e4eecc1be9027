"""Every PEFT family at the layer: the slot's equation against PEFT's own module, on golden adapters."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import BdLoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.pytorch_utils import Conv1D

from adexport_runtime import AdapterError
from adexport_runtime.adapters import FrozenLinear, LinearUpdate, LinearWeights, read_adapter

from .support import GOLDEN_PEFT

INDEX: list[dict[str, Any]] = json.loads((GOLDEN_PEFT / "index.json").read_text())
AUTO = {
    "FEATURE_EXTRACTION": AutoModel,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
}
UNMATCHED = "ignore:The following rank_pattern keys did not match:RuntimeWarning"
FACTORS = {"lora_A": "lora", "lora_B": "lora", "bias": "bias", "scale_in": "scale", "scale_out": "scale"}


def named(kind: str) -> list[Any]:
    return [
        pytest.param(entry, id=f"{entry['base']}-{entry['case']}")
        for entry in INDEX
        if entry["kind"] == kind
    ]


def slot(base: FrozenLinear, weights: LinearWeights, x: np.ndarray) -> np.ndarray:
    """The linear slot's equation in float64; ``x`` ``[rows, in]``."""
    given = {key: value.astype(np.float64) for key, value in weights.factors.items()}
    y = (x * given.get("scale_in", 1.0)) @ base.weight.T.astype(np.float64)
    y = y + (0.0 if base.bias is None else base.bias)
    if "lora_A" in given:
        y = y + x @ given["lora_A"] @ given["lora_B"]
    return y * given.get("scale_out", 1.0) + given.get("bias", 0.0)


def frozen(module: torch.nn.Module) -> FrozenLinear:
    """A copy of a layer, before PEFT can change it."""
    weight = module.weight.detach().numpy().copy()
    bias = None if module.bias is None else module.bias.detach().numpy().copy()
    transposed = isinstance(module, Conv1D)
    return FrozenLinear(weight.T if transposed else weight, bias, transposed)


def linears(model: torch.nn.Module) -> dict[str, FrozenLinear]:
    return {
        name: frozen(module)
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }


def load(entry: Mapping[str, Any]) -> tuple[dict[str, FrozenLinear], Any]:
    """The base's layers, and the base with the adapter as PEFT loads it."""
    labels = {"num_labels": entry["labels"], "ignore_mismatched_sizes": True} if "labels" in entry else {}
    base = AUTO[entry["task"]].from_pretrained(GOLDEN_PEFT / "bases" / entry["base"], **labels)
    layers = linears(base)
    return layers, PeftModel.from_pretrained(base, GOLDEN_PEFT / entry["base"] / entry["case"]).eval()


def limit_of(name: str) -> float:
    """The difference allowed: PEFT decomposes weights in float32, and each CPU rounds that in its way."""
    return 2e-5 if "pissa" in name.lower() or "olora" in name.lower() else 2e-6


def check_layers(folder: Path, layers: Mapping[str, FrozenLinear], model: Any, limit: float) -> set[str]:
    """Every layer of an adapter against PEFT's module, in float64; returns the factors that it has."""
    adapter = read_adapter(folder)
    assert adapter.problems == ()
    wrapped = {
        name: module
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    assert wrapped
    assert adapter.modules == wrapped.keys()
    assert adapter.covers is not None
    assert {name for name in layers if adapter.covers(name)} == wrapped.keys()
    random = np.random.default_rng(0)
    kinds: set[str] = set()
    for name, module in wrapped.items():
        base = layers[name]
        x = random.standard_normal((9, base.weight.shape[1]))
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        update: LinearUpdate = adapter.linears.get(name, LinearWeights({}, {}))
        weights = update.solve(lambda base=base: base)
        assert all(array.dtype == np.float32 for array in weights.factors.values())
        assert weights.kinds <= update.kinds
        assert weights.rank == update.rank
        assert weights.factors.keys() == weights.names.keys()
        kinds |= weights.kinds
        error = np.abs(slot(base, weights, x) - expected).max() / max(1.0, np.abs(expected).max())
        assert error <= limit, name
    return kinds


@pytest.mark.filterwarnings(UNMATCHED)
@pytest.mark.parametrize("entry", named("serve"))
def test_the_slot_computes_what_peft_computes(entry: dict[str, Any]) -> None:
    layers, model = load(entry)
    folder = GOLDEN_PEFT / entry["base"] / entry["case"]
    kinds = check_layers(folder, layers, model.double(), limit_of(entry["case"]))
    assert {FACTORS[kind] for kind in kinds} == set(entry["needs"]) - {"head"}


SOME = {"target_modules": ["query", "output.dense"]}
BANK = {"num_vectors": 7, "vector_length": 4}
LORA = {**SOME, "r": 2, "lora_alpha": 3}
BD = BdLoraConfig(target_modules_bd_a=["query"], target_modules_bd_b=["output.dense"], nblocks=2)
SCHEDULE = {"init_r": 3, "tinit": 1, "tfinal": 1, "total_step": 4}
TOGETHER: dict[str, peft.PeftConfig] = {
    "DoRA on PiSSA": LoraConfig(**LORA, use_dora=True, init_lora_weights="pissa"),
    "DoRA on OLoRA with biases": LoraConfig(
        **LORA, use_dora=True, init_lora_weights="OLoRA", bias="lora_only"
    ),
    "PiSSA, rsLoRA and biases": LoraConfig(
        **LORA, use_rslora=True, init_lora_weights="pissa", bias="lora_only"
    ),
    "PiSSA of the whole rank": LoraConfig(**{**LORA, "r": 16}, init_lora_weights="pissa"),
    "two biases": LoraConfig(**LORA, lora_bias=True, bias="lora_only"),
    "a negative alpha": LoraConfig(**{**LORA, "lora_alpha": -2}, init_lora_weights=False),
    "BD-LoRA with a bias behind B": LoraConfig(**LORA, use_bdlora=BD, lora_bias=True),
    "BD-LoRA on PiSSA": LoraConfig(**LORA, use_bdlora=BD, init_lora_weights="pissa"),
    "IA3 with a regex": peft.IA3Config(**SOME, feedforward_modules=r".*\.\d\.output\.dense"),
    "AdaLoRA without alpha": peft.AdaLoraConfig(**SOME, **SCHEDULE, lora_alpha=0, bias="lora_only"),
    "VeRA with d": peft.VeraConfig(**SOME, r=19, d_initial=0.7),
    "LoHa of a rank beyond the layer": peft.LoHaConfig(**SOME, r=5, alpha=2),
    "LoHa with patterns": peft.LoHaConfig(
        **SOME, r=2, rank_pattern={"query": 1}, alpha_pattern={"output.dense": 3}
    ),
    "LoKr of a rank beyond a factor": peft.LoKrConfig(**SOME, r=5, decompose_factor=2),
    "LoKr of products with patterns": peft.LoKrConfig(
        **SOME, r=1, decompose_both=True, rank_pattern={"query": 7}, alpha_pattern={"query": 3}
    ),
    "MiSS at random": peft.MissConfig(**SOME, r=5, init_weights=False),
    "HRA of a rank beyond the layer": peft.HRAConfig(**SOME, r=20),
    "DeLoRA with patterns": peft.DeloraConfig(**SOME, r=2, rank_pattern={"query": 3}),
    "VB-LoRA of one vector": peft.VBLoRAConfig(**SOME, r=2, topk=1, **BANK),
    "VB-LoRA of one vector, by its number": peft.VBLoRAConfig(
        **SOME, r=2, topk=1, **BANK, save_only_topk_weights=True
    ),
    "VB-LoRA of all vectors": peft.VBLoRAConfig(**SOME, r=2, topk=7, **BANK),
}


@pytest.mark.filterwarnings(UNMATCHED)
@pytest.mark.parametrize("name", TOGETHER)
def test_settings_together(name: str, tmp_path: Path) -> None:
    torch.manual_seed(len(name))
    base = AutoModel.from_pretrained(GOLDEN_PEFT / "bases" / "bert")
    layers = linears(base)
    model = peft.get_peft_model(base, copy.deepcopy(TOGETHER[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(GOLDEN_PEFT / "bases" / "bert"), tmp_path)
    check_layers(tmp_path, layers, again.eval().double(), limit_of(name))


@pytest.mark.parametrize("entry", [param for param in named("serve") if "head" in param.values[0]["needs"]])
def test_heads_are_what_peft_puts_in_their_place(entry: dict[str, Any]) -> None:
    adapter = read_adapter(GOLDEN_PEFT / entry["base"] / entry["case"])
    _, model = load(entry)
    expected = {
        f"{name}.{inner}".removesuffix("."): frozen(module)
        for name, wrapper in model.base_model.model.named_modules()
        if isinstance(wrapper, ModulesToSaveWrapper)
        for inner, module in wrapper.modules_to_save["default"].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert adapter.replaced.keys() == expected.keys()
    assert bool(expected) != (entry["case"] == "lora-on-head")
    for name, layer in expected.items():
        np.testing.assert_array_equal(adapter.replaced[name].weight, layer.weight)
        np.testing.assert_array_equal(adapter.replaced[name].bias, layer.bias)


@pytest.mark.parametrize("entry", named("refuse"))
def test_refused_with_its_reason(entry: dict[str, Any]) -> None:
    try:
        problems = read_adapter(GOLDEN_PEFT / entry["base"] / entry["case"]).problems
    except AdapterError as error:
        problems = error.problems
    assert problems
    assert any(problem.cause and problem.mend for problem in problems)
