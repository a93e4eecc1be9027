"""Adapters in 16 bits under a float32 base: rounded once, and then as exact as any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from adexport.build import build_model, lower_again
from adexport.options import TOLERANCE, BuildOptions
from adexport.tensorrt.builder import build_engine
from adexport.verify import verify_bundle
from adexport_runtime import AdapterError, BuildError, Bundle, Code, Engine, bind_into_bundle, dtypes
from tests.conftest import GOLDEN, MakeLora

from .support import edit_tensors, hidden, ids, subjects

NARROW = ("fp16", "bf16")


def rounded(source: Path, dtype: str, target: Path) -> Path:
    """A bound adapter with values that the type holds as they are."""
    target.write_bytes(source.read_bytes())

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "adapter_head" not in name:
                tensors[name] = tensor.astype(dtypes.NUMPY[dtype]).astype(np.float32)

    return edit_tensors(target, edit)


@pytest.mark.parametrize("dtype", NARROW)
def test_lora(tiny_bundle: Path, tmp_path: Path, make_lora: MakeLora, dtype: str) -> None:
    lower_again(tiny_bundle, tmp_path / "narrow", options=BuildOptions(bank_dtype=dtype))
    bundle = Bundle.open(tmp_path / "narrow")
    assert bundle.manifest.bank_dtype == dtype
    with (
        Engine.open(tmp_path / "narrow", threads=1, kernels="none") as narrow,
        Engine.open(tiny_bundle, threads=1, kernels="none") as wide,
    ):
        for seed, rank in enumerate((1, 7)):
            source = make_lora(r=rank, seed=seed, std=0.3)
            bind_into_bundle(bundle, source, f"t{rank}")
            narrow.bind(f"t{rank}")
            stored = bundle.adapter_path(f"t{rank}")
            wide.bind(f"t{rank}", rounded(stored, dtype, tmp_path / f"t{rank}.safetensors"))
            wide.bind(f"exact{rank}", source)
        rows = ["t1", None, "t7"]
        found = hidden(narrow, ids(), rows)
        assert np.abs(found - hidden(wide, ids(), rows)).max() <= 1e-6
        exact = np.abs(found - hidden(wide, ids(), ["exact1", None, "exact7"])).max(axis=(1, 2))
        assert exact[1] <= 1e-6
        assert 0 < exact[0] < 0.05 * np.abs(found).max()
        assert narrow._bank.nbytes < 0.6 * wide._bank.nbytes
    assert load_file(stored)[f"{'encoder.layer.0.attention.self.query'}.lora_A"].dtype == np.float32


@pytest.mark.parametrize("dtype", NARROW)
def test_every_kind_of_slot(every_slot: Path, tmp_path: Path, dtype: str) -> None:
    lower_again(every_slot, tmp_path / "narrow", options=BuildOptions(bank_dtype=dtype))
    bundle = Bundle.open(tmp_path / "narrow")
    cases = ["dora", "ia3", "ln_after", "houlsby", "compacter"]
    there = [case for case in cases if (GOLDEN / "adapterhub" / "bert" / case).exists()]
    assert len(there) > 2
    with (
        Engine.open(tmp_path / "narrow", threads=1, kernels="none") as narrow,
        Engine.open(every_slot, threads=1, kernels="none") as wide,
    ):
        bound = []
        for case in there:
            try:
                bind_into_bundle(bundle, GOLDEN / "adapterhub" / "bert" / case, case)
            except AdapterError:
                continue
            bound.append(case)
            narrow.bind(case)
            file = rounded(bundle.adapter_path(case), dtype, tmp_path / f"{case}.safetensors")
            wide.bind(case, file)
        assert "ln_after" in bound
        tokens = {"input_ids": ids(len(bound) + 1) % 30 + 1}
        for name, array in wide.run(tokens, [None, *bound]).items():
            found = narrow.run(tokens, [None, *bound])[name]
            finite = np.isfinite(array)
            assert (np.isfinite(found) == finite).all()
            assert np.abs(found - array)[finite].max(initial=0) <= 1e-5 * max(
                1, np.abs(array[finite]).max(initial=0)
            )


@pytest.mark.parametrize("dtype", NARROW)
def test_a_decoder(
    tiny_decoder: Path, tiny_llama: Path, tmp_path: Path, make_lora: MakeLora, dtype: str
) -> None:
    lower_again(tiny_decoder, tmp_path / "narrow", options=BuildOptions(bank_dtype=dtype))
    bundle = Bundle.open(tmp_path / "narrow")
    targets = ["q_proj", "down_proj"]
    source = make_lora(model=tiny_llama, auto=AutoModelForCausalLM, target_modules=targets, std=0.4, r=5)
    bind_into_bundle(bundle, source, "a")
    with (
        Engine.open(tmp_path / "narrow", threads=1, kernels="none") as narrow,
        Engine.open(tiny_decoder, threads=1, kernels="none") as wide,
    ):
        narrow.bind("a")
        wide.bind("a", rounded(bundle.adapter_path("a"), dtype, tmp_path / "a.safetensors"))
        prompts = [[1, 5, 9], [7], [3, 3]]
        results = [
            [text.ids for text in engine.generate(prompts, ["a", None, "a"], max_new_tokens=12, eos=())]
            for engine in (narrow, wide)
        ]
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", NARROW)
def test_verified_as_near_as_the_type_allows(
    tiny_bundle: Path, tmp_path: Path, make_lora: MakeLora, dtype: str
) -> None:
    target = tmp_path / "narrow"
    lower_again(tiny_bundle, target, options=BuildOptions(bank_dtype=dtype))
    report = verify_bundle(target, [make_lora(std=0.4)])
    assert report.tolerance == TOLERANCE[dtype]
    assert 1e-5 < report.worst <= report.tolerance


def test_lowered_again(tiny_bundle: Path, tmp_path: Path) -> None:
    """The type stays, until another is asked for."""
    target = tmp_path / "narrow"
    lower_again(tiny_bundle, target, options=BuildOptions(bank_dtype="bf16"))
    lower_again(target, options=BuildOptions(max_rank=4))
    assert Bundle.open(target).manifest.bank_dtype == "bf16"
    lower_again(target, options=BuildOptions(bank_dtype="fp32"))
    assert Bundle.open(target).manifest.bank_dtype is None


def test_what_the_type_cannot_hold(tiny_bundle: Path, tmp_path: Path, make_lora: MakeLora) -> None:
    lower_again(tiny_bundle, tmp_path / "narrow", options=BuildOptions(bank_dtype="fp16"))
    bundle = Bundle.open(tmp_path / "narrow")
    bind_into_bundle(bundle, make_lora(), "a")
    path = bundle.adapter_path("a").rename(tmp_path / "a.safetensors")
    key = "encoder.layer.0.attention.self.query.lora_B"

    def grow(tensors: dict[str, Any]) -> None:
        tensors[key][0, 0] = 70000

    edit_tensors(path, grow)
    with pytest.raises(AdapterError, match="--bank-dtype bf16") as caught:
        bind_into_bundle(bundle, path, "a")
    assert subjects(caught.value, Code.OVERFLOW) == {key}


class TestRefused:
    @pytest.mark.parametrize(
        "options",
        [
            BuildOptions(bank_dtype="fp16", dtype="fp16"),
            BuildOptions(bank_dtype="fp16", slots=()),
            BuildOptions(bank_dtype="fp8"),
        ],
        ids=["half base", "no slots", "no type"],
    )
    def test_build(self, tiny_bundle: Path, tmp_path: Path, options: BuildOptions) -> None:
        with pytest.raises(BuildError, match="--bank-dtype") as caught:
            lower_again(tiny_bundle, tmp_path / "narrow", options=options)
        assert caught.value.codes == {Code.UNSUPPORTED}
        assert not (tmp_path / "narrow").exists()

    def test_build_from_a_model(self, tiny_bert: Path, tmp_path: Path) -> None:
        with pytest.raises(BuildError, match="--bank-dtype"):
            build_model(
                str(tiny_bert), tmp_path / "x", options=BuildOptions(bank_dtype="bf16", dtype="bf16")
            )

    def test_another_base_dtype(self, tiny_bundle: Path, tmp_path: Path) -> None:
        lower_again(tiny_bundle, tmp_path / "narrow", options=BuildOptions(bank_dtype="bf16"))
        with pytest.raises(BuildError, match="--bank-dtype fp32"):
            lower_again(tmp_path / "narrow", options=BuildOptions(dtype="fp16"))

    def test_an_engine(self, tiny_bundle: Path, tmp_path: Path) -> None:
        lower_again(tiny_bundle, tmp_path / "narrow", options=BuildOptions(bank_dtype="bf16"))
        with pytest.raises(BuildError, match="--bank-dtype fp32"):
            build_engine(Bundle.open(tmp_path / "narrow"))


def test_the_manifest_says_it_by_slot(tiny_bundle: Path, tmp_path: Path) -> None:
    lower_again(tiny_bundle, tmp_path / "narrow", options=BuildOptions(bank_dtype="bf16"))
    data = json.loads((tmp_path / "narrow" / "manifest.json").read_text())
    dtypes_of = {slot["dtype"] for site in data["sites"] for slot in site["linear"].values() if slot}
    assert dtypes_of == {"bf16"}
    assert data["guards"]["linear"]["dtype"] == "int64"
