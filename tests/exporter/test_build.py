"""`build` as a whole: what it writes, what it refuses, and that nothing appears half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from adexport import check
from adexport.build import build_model, lower_again
from adexport.options import BuildOptions
from adexport_runtime import AdapterError, BuildError, Bundle, Code, Engine, bind_into_bundle
from adexport_runtime.tensors import Array

from ..conftest import TINY, MakeLora


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_bundle_is_what_the_manifest_says(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    bundle.check_files()
    manifest = bundle.manifest
    written = {str(p.relative_to(tiny_bundle)) for p in tiny_bundle.rglob("*") if p.is_file()}
    assert written == {entry.path for entry in manifest.files} | {"manifest.json"}
    assert manifest.base.architecture == "BertModel"
    assert manifest.base.task == "feature-extraction"
    assert manifest.limits.max_rank == 16
    assert [spec.name for spec in manifest.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert len(manifest.sites) == 12
    assert [spec.name for spec in manifest.outputs] == ["last_hidden_state", "pooler_output"]
    assert "pooler.dense" in manifest.modules  # a site only if --targets or --like ask for it


def test_classifier_labels_and_logits(tiny_classifier: Path, tmp_path: Path) -> None:
    result = build_model(str(tiny_classifier), tmp_path / "c.bundle")
    manifest = result.bundle.manifest
    assert manifest.base.task == "text-classification"
    assert manifest.base.labels == ("bad", "fair", "good")
    assert "classifier" in manifest.modules
    with Engine.open(tmp_path / "c.bundle") as engine:
        assert engine.run({"input_ids": [[1, 2]]})["logits"].shape == (1, 3)


def test_a_site_whose_input_has_no_tokens(
    tiny_classifier: Path, tmp_path: Path, make_lora: MakeLora
) -> None:
    """Pooler and classifier see ``[batch, hidden]``: the build's own check covers them by --targets."""
    result = build_model(
        str(tiny_classifier), tmp_path / "c.bundle", options=BuildOptions(targets=["dense", "classifier"])
    )
    paths = [site.path for site in result.bundle.manifest.sites]
    assert {"bert.pooler.dense", "classifier"} <= set(paths)


def test_a_random_head_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        build_model(str(tiny_bert), tmp_path / "c.bundle", task="text-classification")
    assert {p.subject for p in caught.value.problems} == {"classifier.weight", "classifier.bias"}
    assert not list(tmp_path.iterdir())


def test_a_label_with_a_nul(tiny_classifier: Path, tmp_path: Path) -> None:
    """No reader would take such a bundle."""
    shutil.copytree(tiny_classifier, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["id2label"]["1"] = "f\0ir"
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BuildError) as caught:
        build_model(str(tmp_path / "m"), tmp_path / "x.bundle")
    assert {(p.code, p.subject) for p in caught.value.problems} == {(Code.BAD_CONFIG, "id2label")}
    assert not (tmp_path / "x.bundle").exists()


def test_an_absent_model(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        build_model(str(tmp_path / "nothing"), tmp_path / "x.bundle")
    assert caught.value.codes == {Code.ABSENT}


def test_an_untrained_pooler_is_left_out(tmp_path: Path) -> None:
    BertModel(BertConfig(**TINY), add_pooling_layer=False).save_pretrained(tmp_path / "m")
    result = build_model(str(tmp_path / "m"), tmp_path / "x.bundle")
    assert [spec.name for spec in result.bundle.manifest.outputs] == ["last_hidden_state"]
    assert "pooler.dense" not in result.bundle.manifest.modules


@pytest.mark.parametrize("opset", [20, 24])
def test_other_opsets(tiny_bert: Path, tmp_path: Path, opset: int) -> None:
    result = build_model(str(tiny_bert), tmp_path / "x.bundle", opset=opset)
    assert result.bundle.manifest.opset == opset
    assert max(result.differences.values()) <= 1e-6


def test_an_opset_too_old(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError):
        build_model(str(tiny_bert), tmp_path / "x.bundle", opset=17)


def test_an_existing_target(tiny_bert: Path, bundle_copy: Path, tmp_path: Path) -> None:
    before = tree(bundle_copy)
    with pytest.raises(BuildError) as caught:
        build_model(str(tiny_bert), bundle_copy)
    assert caught.value.codes == {Code.EXISTS}
    assert tree(bundle_copy) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(BuildError):
        build_model(str(tiny_bert), tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"


def test_force_keeps_bound_adapters(tiny_bert: Path, bundle_copy: Path, make_lora: MakeLora) -> None:
    bind_into_bundle(Bundle.open(bundle_copy), make_lora("acme"))
    build_model(str(tiny_bert), bundle_copy, force=True)
    assert list(Bundle.open(bundle_copy).adapters()) == ["acme"]
    assert len(Bundle.open(bundle_copy).manifest.sites) == 12


def test_force_with_another_base_refuses_to_drop_adapters(
    bundle_copy: Path, make_lora: MakeLora, tmp_path: Path
) -> None:
    bind_into_bundle(Bundle.open(bundle_copy), make_lora("acme"))
    before = tree(bundle_copy)
    torch.manual_seed(7)
    BertModel(BertConfig(**TINY)).save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError) as caught:
        build_model(str(tmp_path / "other"), bundle_copy, force=True)
    assert caught.value.codes == {Code.WRONG_BASE}
    assert "acme" in caught.value.problems[0].subject
    assert tree(bundle_copy) == before


def test_a_wrong_lowering_is_not_published(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check must be able to fail: swap A for its negative in what torch is compared with."""
    original = check.reference_factors

    def negated(*where: Any) -> dict[str, Array]:
        factors = original(*where)
        return {name: -array if name == "lora_A" else array for name, array in factors.items()}

    monkeypatch.setattr(check, "reference_factors", negated)
    with pytest.raises(BuildError) as caught:
        build_model(str(tiny_bert), tmp_path / "x.bundle")
    assert caught.value.codes == {Code.PARITY}
    subjects = {problem.subject for problem in caught.value.problems}
    assert "torch mixed" in subjects
    assert "torch base" not in subjects
    assert not list(tmp_path.iterdir())


class TestLowerAgain:
    """Lowering a bundle anew, from its kept trace."""

    def test_other_sites(self, tiny_bundle: Path, tmp_path: Path) -> None:
        result = lower_again(
            tiny_bundle, tmp_path / "q.bundle", options=BuildOptions(targets=["query"], max_rank=4)
        )
        manifest = result.bundle.manifest
        assert len(manifest.sites) == 2
        assert manifest.limits.max_rank == 4
        assert manifest.base.fingerprint == Bundle.open(tiny_bundle).manifest.base.fingerprint
        back = lower_again(tmp_path / "q.bundle", options=BuildOptions(targets=["query", "value"]))
        assert len(back.bundle.manifest.sites) == 4
        assert back.bundle.manifest.limits.max_rank == 4

    def test_what_is_left_open_stays(self, tiny_bundle: Path, tmp_path: Path) -> None:
        lower_again(tiny_bundle, tmp_path / "q.bundle", options=BuildOptions(targets=["query"]))
        half = lower_again(tmp_path / "q.bundle", tmp_path / "h.bundle", options=BuildOptions(dtype="fp16"))
        assert [site.path for site in half.bundle.manifest.sites] == [
            "encoder.layer.0.attention.self.query",
            "encoder.layer.1.attention.self.query",
        ]
        assert half.bundle.manifest.base.dtype == "fp16"
        back = lower_again(tmp_path / "h.bundle", options=BuildOptions(dtype="fp32"))
        assert not (tmp_path / "h.bundle" / "weights" / "fp16.bin").exists()
        assert max(v for k, v in back.differences.items() if k.startswith("torch")) <= 1e-6

    def test_each_layer_keeps_its_factors(
        self, tiny_bundle: Path, make_lora: MakeLora, tmp_path: Path
    ) -> None:
        """DoRA scales outputs and adds a bias; a lowering that names no kinds adds no slots."""
        like = (make_lora(use_dora=True, target_modules=["query"]), make_lora(target_modules=["key"]))
        bundle = lower_again(tiny_bundle, tmp_path / "d.bundle", options=BuildOptions(like=like)).bundle
        lora, scaled = {"lora_A", "lora_B"}, {"lora_A", "lora_B", "bias", "scale_out"}
        every = {"lora_A", "lora_B", "scale_in", "scale_out"}
        for options, query, key in (
            (BuildOptions(), scaled, lora),
            (BuildOptions(dtype="fp16"), scaled, lora),
            (BuildOptions(slots=("lora", "scale")), every, every),
        ):
            bundle = lower_again(bundle.root, options=options).bundle
            sites = bundle.manifest.site_by_path
            assert sites["encoder.layer.0.attention.self.query"].linear.factors.keys() == query
            assert sites["encoder.layer.0.attention.self.key"].linear.factors.keys() == key
            assert len(sites) == 4

    def test_adapters_move_along(self, bundle_copy: Path, make_lora: MakeLora, tmp_path: Path) -> None:
        bind_into_bundle(Bundle.open(bundle_copy), make_lora("acme"))
        ids = {"input_ids": [[4, 5, 6]]}
        with Engine.open(bundle_copy) as engine:
            expected = engine.run(ids, "acme")["last_hidden_state"]
        lower_again(bundle_copy, tmp_path / "h.bundle", options=BuildOptions(dtype="fp16"))
        with Engine.open(tmp_path / "h.bundle") as engine:
            half = engine.run(ids, "acme")["last_hidden_state"]
        assert half.dtype == np.float32
        np.testing.assert_allclose(half, expected, atol=5e-3)

    def test_adapters_that_would_not_fit_stop_it(self, bundle_copy: Path, make_lora: MakeLora) -> None:
        bind_into_bundle(Bundle.open(bundle_copy), make_lora("acme", target_modules=["query", "value"]))
        before = tree(bundle_copy)
        with pytest.raises(AdapterError) as caught:
            lower_again(bundle_copy, options=BuildOptions(targets=["query"]))
        assert caught.value.codes == {Code.UNKNOWN_SITE}
        assert len(caught.value.problems) == 4  # value's A and B in two layers
        assert tree(bundle_copy) == before

    def test_no_slots(self, tiny_bundle: Path, tmp_path: Path) -> None:
        plain = lower_again(tiny_bundle, tmp_path / "p.bundle", options=BuildOptions(slots=()))
        assert plain.bundle.manifest.sites == ()
        again = lower_again(tmp_path / "p.bundle", options=BuildOptions(slots=("lora",)))
        assert len(again.bundle.manifest.sites) == 12


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_half_written(
    tiny_bert: Path, bundle_copy: Path, tmp_path: Path
) -> None:
    """Kill builds at many moments: the old bundle stays whole, or the new one stands whole."""
    code = (
        "import sys; from pathlib import Path; from adexport.build import lower_again;"
        "from adexport.options import BuildOptions; print('ready', flush=True);"
        "[lower_again(Path(sys.argv[1]), options=BuildOptions(max_rank=rank)) for rank in range(1, 50)]"
    )
    for delay in (0.02, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8):
        worker = subprocess.Popen([sys.executable, "-c", code, str(bundle_copy)], stdout=subprocess.PIPE)
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(delay)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        bundle = Bundle.open(bundle_copy)
        bundle.check_files()
        with Engine.open(bundle_copy) as engine:
            engine.run({"input_ids": [[1, 2, 3]]})
    leftovers = [path for path in bundle_copy.parent.iterdir() if path != bundle_copy]
    assert all(path.name.startswith(".") for path in leftovers)
    for path in leftovers:
        shutil.rmtree(path)
