"""Every verb: what it prints, its ``--json``, and its exit codes (0 done, 1 refused, 2 usage)."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import click
import numpy as np
import pytest

from adexport.build import build_model
from adexport.cli import cli
from adexport_runtime import Bundle, Code, Engine
from tests.conftest import MakeLora
from tests.exporter.families import BARE, FAMILIES

from .support import run, run_json

VERBS = sorted(cli.commands)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with no bundle named in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADEXPORT_BUNDLE", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def served(minilm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a tokenizer."""
    target = tmp_path_factory.mktemp("served") / "minilm.bundle"
    shutil.copytree(minilm_bundle, target)
    return target


@pytest.fixture
def lora(make_lora: MakeLora) -> Path:
    return make_lora("acme", r=4)


class TestHelp:
    def test_the_verbs(self) -> None:
        result = run("--help")
        assert result.exit_code == 0
        assert {"build", "bind", "inspect", "verify", "run", "bench"} <= set(VERBS)
        assert all(verb in result.stdout for verb in VERBS)

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_verb_has_an_example_that_parses(self, verb: str) -> None:
        result = run(verb, "--help")
        assert result.exit_code == 0
        command = cli.commands[verb]
        assert command.epilog is not None
        example = command.epilog.removeprefix("Example: ")
        words = shlex.split(example)
        assert words[:2] == ["adexport", verb]
        command.make_context(verb, words[2:])  # raises where an option does not exist

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_verb_has_json(self, verb: str) -> None:
        assert any("--json" in option.opts for option in cli.commands[verb].params)

    def test_version(self) -> None:
        assert run("--version").stdout.strip() == "adexport, version 0.1.0"


class TestUsage:
    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["nonsense"],
            ["build"],
            ["bind"],
            ["inspect"],
            ["verify"],
            ["bench"],
            ["run", "x.bundle"],
            ["build", "x", "--dtype", "fp8"],
            ["build", "x", "--quantize", "int3"],
            ["build", "x", "--task", "translation"],
            ["build", "x", "--max-rank", "0"],
            ["build", "x", "--targets", "query", "--like", "y"],
            ["run", "x.bundle", *3 * ["--text", "a"], *2 * ["--adapter", "p"]],
            ["inspect", "x", "--no-such-option"],
        ],
    )
    def test_wrong_usage_is_2(self, here: Path, words: list[str]) -> None:
        assert run(*words).exit_code == 2

    def test_what_is_chosen_at_the_trace_is_not_chosen_again(self, tiny_bundle: Path) -> None:
        result = run("build", tiny_bundle, "--opset", "21")
        assert result.exit_code == 2
        assert "--opset" in result.stderr


class TestBuild:
    def test_default_output(self, here: Path, tiny_bert: Path) -> None:
        result = run("build", tiny_bert, "--max-rank", "8")
        assert result.exit_code == 0, result.stderr
        bundle = Bundle.open(here / "tiny-bert.bundle")
        assert bundle.manifest.limits.max_rank == 8
        assert len(bundle.manifest.sites) == 12
        assert "lora at 12 linear layers, rank up to 8" in result.stdout

    def test_json_and_targets(self, here: Path, tiny_classifier: Path) -> None:
        facts = run_json("build", tiny_classifier, "-o", "c.bundle", "--targets", "query,value")
        assert facts["bundle"] == "c.bundle"
        assert facts["base"]["task"] == "text-classification"
        assert facts["base"]["labels"] == ["bad", "fair", "good"]
        assert facts["sites"] == 4
        assert max(facts["differences"].values()) <= 1e-5

    def test_like_takes_sites_and_rank(self, here: Path, tiny_bert: Path, make_lora: MakeLora) -> None:
        one = make_lora("one", r=3, target_modules=["key"])
        two = make_lora("two", r=5, target_modules=["output.dense"], layers_to_transform=[1])
        facts = run_json("build", tiny_bert, "-o", "l.bundle", "--like", one, "--like", two)
        assert facts["max_rank"] == 5
        paths = [site.path for site in Bundle.open(here / "l.bundle").manifest.sites]
        assert sorted(paths) == [
            "encoder.layer.0.attention.self.key",
            "encoder.layer.1.attention.output.dense",
            "encoder.layer.1.attention.self.key",
            "encoder.layer.1.output.dense",
        ]

    def test_what_stands_there_stays_without_force(self, tiny_bert: Path, bundle_copy: Path) -> None:
        before = (bundle_copy / "manifest.json").read_bytes()
        facts = run_json("build", tiny_bert, "-o", bundle_copy, code=1)
        assert [problem["code"] for problem in facts["problems"]] == [Code.EXISTS]
        assert (bundle_copy / "manifest.json").read_bytes() == before
        assert run("build", tiny_bert, "-o", bundle_copy, "--force").exit_code == 0

    def test_a_bundle_is_lowered_again(self, bundle_copy: Path, lora: Path) -> None:
        assert run("bind", lora, "-b", bundle_copy).exit_code == 0
        facts = run_json("build", bundle_copy, "--dtype", "fp16")
        assert facts["base"]["dtype"] == "fp16"
        with Engine.open(bundle_copy) as engine:
            assert engine.adapters() == ["acme"]
        assert run_json("build", bundle_copy, "--slots", "none", code=1)["problems"]
        assert Bundle.open(bundle_copy).manifest.base.dtype == "fp16"

    def test_a_base_is_quantized_and_taken_back(self, bundle_copy: Path, lora: Path) -> None:
        run_json("bind", lora, "-b", bundle_copy)
        result = run("build", bundle_copy, "--quantize", "int8")
        assert result.exit_code == 0, result.stderr
        assert "quantized  int8 dynamic" in result.stdout
        assert "quality    cosine " in result.stdout
        assert run_json("inspect", bundle_copy)["quantization"]["method"] == "dynamic"
        assert "int8 dynamic" in run("inspect", bundle_copy).stdout
        facts = run_json("build", bundle_copy, "--quantize-also", "embeddings")
        assert facts["base"]["quantization"]["embeddings"] is True
        assert facts["quality"]["cosine"] >= 0.98
        report = run_json("verify", bundle_copy, lora)
        assert report["cosine"] >= report["min_cosine"] == 0.98
        assert "near: mean cosine" in run("verify", bundle_copy, lora).stdout
        facts = run_json("build", bundle_copy, "--quantize", "none")
        assert (facts["base"]["quantization"], facts["quality"]) == (None, None)
        assert run_json("verify", bundle_copy, lora)["worst"] <= 1e-6

    def test_no_model(self, here: Path) -> None:
        facts = run_json("build", here / "nothing", code=1)
        assert [problem["code"] for problem in facts["problems"]] == [Code.ABSENT]
        assert list(here.iterdir()) == []


class TestBind:
    def test_folder_name_and_only_bundle_here(self, here: Path, bundle_copy: Path, lora: Path) -> None:
        assert bundle_copy.parent == here
        result = run("bind", lora)
        assert result.exit_code == 0, result.stderr
        assert "acme bound to" in result.stdout
        assert "4 of 12 sites, rank 4" in result.stdout
        assert list(Bundle.open(bundle_copy).adapters()) == ["acme"]

    def test_the_file_as_typed(
        self, bundle_copy: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ADEXPORT_BUNDLE", str(bundle_copy))
        monkeypatch.chdir(lora)
        Path("adapter_model.safetensors").rename("adapter.safetensors")
        try:
            facts = run_json("bind", "adapter.safetensors", "--name", "other")
        finally:
            Path("adapter.safetensors").rename("adapter_model.safetensors")
        assert (facts["name"], facts["sites"], facts["rank"]) == ("other", 4, 4)
        assert Path(facts["file"]).stat().st_size == facts["bytes"]

    def test_replace(self, bundle_copy: Path, lora: Path, make_lora: MakeLora) -> None:
        other = make_lora("acme", seed=5)
        run_json("bind", lora, "-b", bundle_copy)
        path = Bundle.open(bundle_copy).adapter_path("acme")
        before = path.read_bytes()
        facts = run_json("bind", other, "-b", bundle_copy, code=1)
        assert [problem["code"] for problem in facts["problems"]] == [Code.EXISTS]
        assert path.read_bytes() == before
        run_json("bind", other, "-b", bundle_copy, "--replace")
        assert path.read_bytes() != before

    def test_a_refusal_is_one_paragraph(self, bundle_copy: Path, make_lora: MakeLora) -> None:
        wide = make_lora("wide", r=17)
        result = run("bind", wide, "-b", bundle_copy)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert len(result.stderr.strip().splitlines()) == 1
        assert "rank 17" in result.stderr
        assert "Traceback" not in result.stderr
        assert not (bundle_copy / "adapters" / "wide.safetensors").exists()

    @pytest.mark.parametrize("bundles", [0, 2])
    def test_which_bundle(self, here: Path, tiny_bundle: Path, lora: Path, bundles: int) -> None:
        for index in range(bundles):
            shutil.copytree(tiny_bundle, here / f"{index}.bundle")
        result = run("bind", lora)
        assert result.exit_code == 1
        assert "-b BUNDLE" in result.stderr


class TestInspect:
    def test_bundle(self, bundle_copy: Path, lora: Path) -> None:
        run_json("bind", lora, "-b", bundle_copy)
        facts = run_json("inspect", bundle_copy, "--check")
        manifest = Bundle.open(bundle_copy).manifest
        assert facts["kind"] == "bundle"
        assert facts["fingerprint"] == manifest.base.fingerprint
        assert len(facts["sites"]) == 12
        assert facts["adapters"]["acme"]["rank"] == 4
        text = run("inspect", bundle_copy).stdout
        assert "2 × encoder.layer.*.attention.self.query  32 → 32" in text
        assert "adapter acme: 4 sites, rank 4" in text

    def test_check_finds_a_flipped_bit(self, bundle_copy: Path) -> None:
        weights = bundle_copy / "weights" / "fp32.bin"
        content = bytearray(weights.read_bytes())
        content[100] ^= 1
        weights.write_bytes(content)
        assert run("inspect", bundle_copy).exit_code == 0
        facts = run_json("inspect", bundle_copy, "--check", code=1)
        assert [problem["subject"] for problem in facts["problems"]] == ["weights/fp32.bin"]

    def test_bound_adapter(self, bundle_copy: Path, lora: Path) -> None:
        run_json("bind", lora, "-b", bundle_copy)
        path = Bundle.open(bundle_copy).adapter_path("acme")
        facts = run_json("inspect", path)
        assert (facts["kind"], facts["name"], facts["rank"]) == ("bound adapter", "acme", 4)
        assert run("inspect", path).exit_code == 0

    def test_foreign_adapter(self, lora: Path, make_lora: MakeLora) -> None:
        facts = run_json("inspect", lora)
        assert (facts["kind"], facts["rank"], facts["problems"]) == ("foreign adapter", 4, [])
        assert len(facts["sites"]) == 4
        strange = run("inspect", make_lora("strange", trainable_token_indices=[1]))
        assert strange.exit_code == 0
        assert "problem" in strange.stdout

    def test_nothing(self, here: Path) -> None:
        assert run_json("inspect", here / "nothing", code=1)["problems"][0]["code"] == Code.ABSENT


class TestVerify:
    def test_equal(self, tiny_bundle: Path, lora: Path) -> None:
        report = run_json("verify", tiny_bundle, lora)
        assert report["worst"] <= 1e-6
        assert {row["adapter"] for row in report["rows"]} == {None, "acme"}

    def test_different(self, tiny_bundle: Path, lora: Path) -> None:
        result = run("verify", tiny_bundle, lora, "--tolerance", "1e-12")
        assert result.exit_code == 1
        assert "differs from PEFT" in result.stderr

    def test_table(self, tiny_bundle: Path) -> None:
        result = run("verify", tiny_bundle)
        assert "equal: largest difference" in result.stdout

    def test_images_have_no_tokens(self, tmp_path: Path) -> None:
        folder = FAMILIES["ViT"].save(BARE, tmp_path / "model")
        build_model(str(folder), tmp_path / "b")
        assert {row["tokens"] for row in run_json("verify", tmp_path / "b")["rows"]} == {None}
        assert "None" not in run("verify", tmp_path / "b").stdout


class TestRun:
    def test_pairs_in_order(self, served: Path, minilm: Path, make_lora: MakeLora) -> None:
        run_json("bind", make_lora("acme", model=minilm, std=0.2), "-b", served, "--replace")
        text = "the quick brown fox"
        rows = run_json("run", served, *2 * ["--text", text], "--adapter", "acme", "--adapter", "-")["rows"]
        assert [row["adapter"] for row in rows] == ["acme", None]
        own, base = (np.array(row["embedding"]) for row in rows)
        assert np.abs(own - base).max() > 1e-3
        with Engine.open(served) as engine:
            expected = engine.run_text([text], "acme")["last_hidden_state"][0].mean(axis=0)
        np.testing.assert_allclose(own, expected, atol=1e-5)

    def test_one_adapter_for_all(self, served: Path) -> None:
        rows = run_json("run", served, "--text", "a b", "--text", "c", "--adapter", "-")["rows"]
        assert [row["tokens"] for row in rows] == [4, 3]

    def test_markup_in_a_text_is_text(self, served: Path) -> None:
        result = run("run", served, "--text", "[bold]x[/nothing] [red]")
        assert result.exit_code == 0
        assert "[bold]x[/nothing] [red]" in result.stdout.replace("\n", "")

    def test_unknown_adapter(self, served: Path) -> None:
        facts = run_json("run", served, "--text", "x", "--adapter", "nobody", code=1)
        assert facts["problems"][0]["code"] == Code.UNKNOWN_ADAPTER

    def test_absent_provider(self, served: Path) -> None:
        facts = run_json("run", served, "--text", "x", "--provider", "cuda", code=1)
        assert facts["problems"][0]["code"] == Code.PROVIDER_UNAVAILABLE

    def test_no_tokenizer(self, tiny_bundle: Path) -> None:
        assert "no tokenizer" in run("run", tiny_bundle, "--text", "x").stderr


def test_stdout_is_the_object_and_nothing_else(bundle_copy: Path, tiny_bert: Path) -> None:
    result = run("build", tiny_bert, "-o", bundle_copy, "--force", "--json")
    json.loads(result.stdout)
    assert "trace it once" in result.stderr


def test_every_command_is_a_command() -> None:
    assert all(isinstance(command, click.Command) for command in cli.commands.values())
