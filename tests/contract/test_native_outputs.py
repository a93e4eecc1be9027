"""What both runtimes compute: the same outputs, tokens and labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from adexport_runtime import Bundle, Engine, bind_into_bundle, load_adapter
from tests.conftest import MakeLora

from .capi import NativeError, needs_native, ort_library
from .kernels import kernel_library, needs_kernels
from .native import NativeEngine

pytestmark = needs_native

V1 = Path(__file__).parents[1] / "golden" / "v1"
#: between the two runtimes, whose graphs are one
SAME = 1e-6


def test_a_bundle_of_the_first_version() -> None:
    tensors = load_file(V1 / "expected.safetensors")
    with safe_open(V1 / "expected.safetensors", "np") as file:
        rows = json.loads(file.metadata()["rows"])
    truth = tensors.pop("last_hidden_state")
    tokens = tensors["attention_mask"].astype(bool)
    with NativeEngine(V1 / "golden.bundle") as engine:
        assert engine.adapters() == sorted(Bundle.open(V1 / "golden.bundle").adapters())
        assert engine.provider == "CPUExecutionProvider"
        found = engine.run(tensors, rows)["last_hidden_state"]
    assert np.abs(found - truth)[tokens].max() <= SAME


@pytest.mark.parametrize("kernels", ["", pytest.param(None, marks=needs_kernels)], ids=["plain", "kernels"])
def test_ragged_mixed_batches(tiny_bundle: Path, tmp_path: Path, make_lora: MakeLora, kernels: str) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "x.bundle")
    bundle = Bundle.open(tmp_path / "x.bundle")
    names = ["a", "b", "c"]
    for seed, (name, rank) in enumerate(zip(names, (1, 5, 16), strict=True)):
        bind_into_bundle(bundle, make_lora(name, r=rank, seed=seed, std=0.3), name)
    random = np.random.default_rng(0)
    library = kernels if kernels == "" else kernel_library()
    with (
        Engine.open(bundle.root, threads=1, kernels="none") as python,
        NativeEngine(bundle.root, kernels=library) as native,
    ):
        assert bool(native.kernels) == (library != "")
        for batch, seq in ((1, 1), (1, 40), (3, 7), (8, 16), (17, 5)):
            mask = np.arange(seq)[None] < random.integers(1, seq + 1, (batch, 1))
            inputs = {
                "input_ids": random.integers(1, 97, (batch, seq)),
                "attention_mask": mask.astype(np.int64),
            }
            for rows in (None, "b", [*random.choice([*names, None], batch)]):
                ours, theirs = python.run(inputs, rows), native.run(inputs, rows)
                assert theirs.keys() == ours.keys()
                for name, array in ours.items():
                    assert np.abs(theirs[name] - array).max() <= SAME, (name, rows)


def test_half_precision(fp16_bundle: Path, tmp_path: Path, make_lora: MakeLora) -> None:
    shutil.copytree(fp16_bundle, tmp_path / "x.bundle")
    bundle = Bundle.open(tmp_path / "x.bundle")
    bind_into_bundle(bundle, make_lora("a", std=0.2), "a")
    ids = {"input_ids": np.arange(1, 22).reshape(3, 7)}
    with Engine.open(bundle.root, kernels="none") as python, NativeEngine(bundle.root) as native:
        for name, array in python.run(ids, ["a", None, "a"]).items():
            np.testing.assert_array_equal(native.run(ids, ["a", None, "a"])[name], array)


def test_int32_ids_are_widened(tiny_bundle: Path) -> None:
    ids = np.arange(1, 7).reshape(2, 3)
    with NativeEngine(tiny_bundle) as engine:
        wide = engine.run({"input_ids": ids})["last_hidden_state"]
        narrow = engine.run({"input_ids": ids.astype(np.int32)})["last_hidden_state"]
    np.testing.assert_array_equal(narrow, wide)


def test_the_onnx_runtime_that_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    with NativeEngine(tiny_bundle, ort=ort_library()) as engine:
        assert ort_library().name.endswith(engine.ort_version)
    (tmp_path / "libonnxruntime.so").write_bytes(b"no library")
    for path in (tmp_path / "libonnxruntime.so", tmp_path / "absent.so"):
        with pytest.raises(NativeError) as caught:
            NativeEngine(tiny_bundle, ort=path)
        assert caught.value.kind == "DependencyError"
        assert caught.value.codes == {"package-missing"}
        assert str(path) in str(caught.value)


class TestGeneration:
    @pytest.fixture(scope="class")
    def engines(
        self,
        tiny_decoder: Path,
        tiny_llama: Path,
        make_lora: MakeLora,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[tuple[Engine, NativeEngine]]:
        folder = tmp_path_factory.mktemp("native")
        targets: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
        with Engine.open(tiny_decoder, kernels="none") as python, NativeEngine(tiny_decoder) as native:
            for seed, name in enumerate("abc"):
                adapter = make_lora(
                    name,
                    model=tiny_llama,
                    auto=AutoModelForCausalLM,
                    r=2 + 5 * seed,
                    seed=seed,
                    std=0.4,
                    **targets,
                )
                bound = load_adapter(name, adapter, python.bundle)
                bound.save(folder / f"{name}.safetensors")
                python.bind(name, adapter)
                native.bind(name, folder / f"{name}.safetensors")
            yield python, native

    PROMPTS = ([1, 5, 9], [7], [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3], [96, 1], [11, 12, 13, 14])
    ROWS = ("a", None, "b", "c", "a")

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"repetition_penalty": 1.3},
            {"temperature": 1.0, "seed": 3},
            {"temperature": 0.7, "seed": 2**64 - 2, "top_k": 5},
            {"temperature": 1.5, "seed": 0, "top_p": 0.8},
            {"temperature": 2.0, "seed": 11, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("max_batch", [1, 3, 8])
    def test_the_same_tokens(
        self, engines: tuple[Engine, NativeEngine], settings: dict[str, Any], max_batch: int
    ) -> None:
        python, native = engines
        limits: dict[str, Any] = {"max_new_tokens": 20, "max_batch": max_batch}
        ours = python.generate(self.PROMPTS, self.ROWS, **limits, **settings)
        theirs = native.generate(self.PROMPTS, self.ROWS, **limits, **settings)
        assert [(ids, reason) for ids, reason, _ in theirs] == [(list(r.ids), r.reason) for r in ours]
        assert len({ids[0] for ids, _, _ in theirs}) > 1

    def test_ends(self, engines: tuple[Engine, NativeEngine]) -> None:
        python, native = engines
        free = python.generate([[5, 6]], ["b"], max_new_tokens=12, eos=())[0].ids
        for eos in ([free[4]], [], None):
            ours = python.generate([[5, 6]], ["b"], max_new_tokens=12, eos=eos)[0]
            assert native.generate([[5, 6]], ["b"], max_new_tokens=12, eos=eos)[0][:2] == (
                list(ours.ids),
                ours.reason,
            )

    def test_told_and_cancelled(self, engines: tuple[Engine, NativeEngine]) -> None:
        told: list[list[int]] = [[] for _ in self.PROMPTS]

        def on_token(row: int, token: int) -> bool:
            told[row].append(token)
            return not (row == 2 and len(told[2]) == 3)

        results = engines[1].generate(self.PROMPTS, self.ROWS, max_new_tokens=9, eos=[], on_token=on_token)
        assert [ids for ids, _, _ in results] == told
        assert [reason for _, reason, _ in results] == ["length", "length", "cancelled", "length", "length"]
        assert [len(ids) for ids, _, _ in results] == [9, 9, 3, 9, 9]

    def test_logits_of_prompts(self, engines: tuple[Engine, NativeEngine]) -> None:
        python, native = engines
        ids = np.array([[1, 5, 9, 2], [7, 8, 0, 0]])
        inputs = {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]])}
        ours, theirs = python.run(inputs, ["b", None]), native.run(inputs, ["b", None])
        tokens = inputs["attention_mask"].astype(bool)
        assert np.abs(ours["logits"] - theirs["logits"])[tokens].max() <= SAME
