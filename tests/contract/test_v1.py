"""Bundles and bound adapters of format version 1: served as ever, lowered again as far as they can be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from adexport.build import lower_again
from adexport.options import BuildOptions
from adexport_runtime import AdapterError, BuildError, Bundle, Code, Engine

from .golden import GOLDEN

V1 = GOLDEN / "v1"
VALUE = "encoder.layer.0.attention.self.value"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(V1 / "golden.bundle", tmp_path / "golden.bundle"))


@pytest.fixture
def ia3(tmp_path: Path) -> Path:
    """A PEFT IA3 on the value of its only block."""
    (tmp_path / "ia3").mkdir()
    config = {"peft_type": "IA3", "target_modules": ["value"], "feedforward_modules": []}
    (tmp_path / "ia3" / "adapter_config.json").write_text(json.dumps(config))
    scale = np.linspace(5, 20, 8, dtype=np.float32)[:, None]
    name = f"base_model.model.{VALUE}.ia3_l"
    save_file({name: scale}, tmp_path / "ia3" / "adapter_model.safetensors", {"format": "pt"})
    return tmp_path / "ia3"


def dora(tmp_path: Path) -> Path:
    """The golden LoRA, made a DoRA."""
    folder = Path(shutil.copytree(V1 / "peft" / "query-value", tmp_path / "dora"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in [name for name in tensors if "lora_B" in name]:
        magnitude = name.replace("lora_B.weight", "lora_magnitude_vector")
        tensors[magnitude] = np.ones(tensors[name].shape[0], np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def check(bundle: Path) -> None:
    """Its bound adapters on mixed, ragged rows, against PEFT."""
    with safe_open(V1 / "expected.safetensors", "np") as file:
        rows = json.loads(file.metadata()["rows"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = tensors.pop("last_hidden_state")
    with Engine.open(bundle, threads=1) as engine:
        got = engine.run(tensors, rows)["last_hidden_state"]
    there = tensors["attention_mask"].astype(bool)
    assert np.abs(got - expected)[there].max() <= 2e-6


def test_served(bundle: Path) -> None:
    assert Bundle.open(bundle).manifest.format_version == 1
    check(bundle)


def test_lowered_again(bundle: Path, ia3: Path) -> None:
    with Engine.open(bundle) as engine, pytest.raises(AdapterError) as caught:
        engine.bind("ia3", ia3)
    assert "--slots lora,scale" in str(caught.value)
    again = lower_again(bundle, options=BuildOptions(slots=("lora", "scale")))
    assert again.bundle.manifest.format_version == 4
    check(bundle)
    ids = {"input_ids": [[1, 2, 3]]}
    with Engine.open(bundle, threads=1) as engine:
        engine.bind("ia3", ia3)
        base, scaled = (engine.run(ids, name)["last_hidden_state"] for name in (None, "ia3"))
    assert np.abs(base - scaled).max() > 1e-3


@pytest.mark.parametrize("lowered", [False, True])
def test_what_its_trace_lacks(bundle: Path, tmp_path: Path, lowered: bool) -> None:
    """No places for bottlenecks and heads, no table of weights: the mend is another build."""
    if lowered:
        lower_again(bundle, options=BuildOptions(slots=("lora", "scale")))
    for kind in ("bottleneck", "head"):
        with pytest.raises(BuildError) as refused:
            lower_again(bundle, options=BuildOptions(slots=("lora", kind)))
        assert refused.value.codes == {Code.VERSION}
        assert "build the bundle again" in str(refused.value)
    with Engine.open(bundle) as engine:
        with pytest.raises(AdapterError) as caught:
            engine.bind("dora", dora(tmp_path))
        assert "build the bundle again" in str(caught.value)
        assert engine.adapters() == ["patterns", "query-value"]
