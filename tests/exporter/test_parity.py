"""The main promise on a real model: a different adapter on every row, equal to PEFT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from adexport.build import build_model
from adexport.options import BuildOptions
from adexport.verify import verify_bundle
from adexport_runtime import BuildError, Code, Engine

from ..conftest import MakeLora

RANKS = (4, 6, 8, 12, 16, 20, 24, 32)
TEXT_LENGTHS = (17, 3, 40, 9, 28, 1, 33, 12, 5, 21, 40, 2)


@pytest.fixture(scope="module")
def adapters(minilm: Path, make_lora: MakeLora) -> dict[str, Path]:
    """Eight adapters of mixed ranks on different layers, with rsLoRA and patterns among them."""
    targets = (
        ["query", "value"],
        ["query", "key", "value", "attention.output.dense"],
        r"encoder\.layer\.[0-4]\..*(query|key|value|dense)",
        ["intermediate.dense", "output.dense"],
    )
    return {
        f"tenant{index}": make_lora(
            f"tenant{index}",
            model=minilm,
            seed=index,
            r=rank,
            lora_alpha=2 * rank,
            use_rslora=index == 3,
            rank_pattern={"layer.1.attention.self.query": 5} if index == 1 else {},
            alpha_pattern={"value": 3} if index == 4 else {},
            target_modules=targets[index % 4],
        )
        for index, rank in enumerate(RANKS)
    }


@pytest.mark.slow
def test_mixed_rows_equal_peft(
    minilm_bundle: Path, minilm: Path, adapters: dict[str, Path], make_lora: MakeLora
) -> None:
    rows = [None, *adapters, None, "tenant2", None]
    random = np.random.default_rng(0)
    width = max(TEXT_LENGTHS)
    ids = random.integers(1000, 30000, (len(rows), width))
    mask = (np.arange(width)[None] < np.array(TEXT_LENGTHS)[:, None]).astype(np.int64)

    model = None
    for name, folder in adapters.items():
        if model is None:
            model = PeftModel.from_pretrained(
                AutoModel.from_pretrained(minilm), folder, adapter_name=name
            ).eval()
        else:
            model.load_adapter(folder, adapter_name=name)
    assert model is not None
    with torch.no_grad():
        expected = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            adapter_names=["__base__" if name is None else name for name in rows],
        ).last_hidden_state.numpy()

    with Engine.open(minilm_bundle, threads=1) as engine:
        for name, folder in adapters.items():
            engine.bind(name, folder)
        mixed = engine.run({"input_ids": ids, "attention_mask": mask}, rows)["last_hidden_state"]
        for row, name in enumerate(rows):
            length = TEXT_LENGTHS[row]
            assert np.abs(mixed[row, :length] - expected[row, :length]).max() <= 1e-5, row
            alone = engine.run({"input_ids": ids[row : row + 1, :length]}, name)["last_hidden_state"]
            assert np.abs(mixed[row, :length] - alone[0]).max() <= 1e-6, row
        base = engine.run({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
        moved = [np.abs(mixed[row] - base[row])[mask[row] == 1].max() for row in range(len(rows))]
        assert all((size > 1e-3) == (name is not None) for size, name in zip(moved, rows, strict=True))


def test_all_linear_adapters_bind_where_like_made_their_slots(
    tiny_bert: Path, tmp_path: Path, make_lora: MakeLora
) -> None:
    everywhere = make_lora("everywhere", target_modules="all-linear")
    build_model(str(tiny_bert), tmp_path / "x.bundle", options=BuildOptions(like=(everywhere,)))
    report = verify_bundle(tmp_path / "x.bundle", [everywhere])
    assert report.worst <= 1e-6
    with Engine.open(tmp_path / "x.bundle") as engine:
        paths = [site.path for site in engine.bundle.manifest.sites]
        assert "pooler.dense" in paths
        engine.bind("a", everywhere)
        ids = {"input_ids": [[1, 2, 3]]}
        moved = engine.run(ids, "a")["pooler_output"] - engine.run(ids)["pooler_output"]
        assert np.abs(moved).max() > 1e-3


def test_verify_agrees(tiny_bundle: Path, make_lora: MakeLora) -> None:
    report = verify_bundle(tiny_bundle, [make_lora("one", r=3), make_lora("two", seed=1, use_rslora=True)])
    assert report.worst <= 1e-6
    assert {row.adapter for row in report.rows} == {None, "one", "two"}


def test_verify_makes_adapters_of_its_own(tiny_bundle: Path) -> None:
    assert len({row.adapter for row in verify_bundle(tiny_bundle).rows}) == 4


def test_verify_notices_a_difference(tiny_bundle: Path, make_lora: MakeLora) -> None:
    with pytest.raises(BuildError) as caught:
        verify_bundle(tiny_bundle, [make_lora("one", r=3)], tolerance=1e-12)
    assert caught.value.codes == {Code.PARITY}


def test_verify_notices_another_base(tiny_bundle: Path, tiny_classifier: Path, minilm: Path) -> None:
    with pytest.raises(BuildError) as caught:
        verify_bundle(tiny_bundle, model=str(minilm))
    assert caught.value.codes == {Code.WRONG_BASE}
