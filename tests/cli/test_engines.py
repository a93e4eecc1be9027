"""``adexport build --target tensorrt``, and what ``inspect`` says of engines."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from adexport_runtime import Bundle
from adexport_runtime.engine_file import EngineFile, engine_folder, engine_targets
from tests.conftest import MakeLora

from .support import run, run_json, run_without

TORCH = ["torch", "transformers", "peft", "onnxscript", "accelerate"]
RTX = "tensorrt-rtx"
ENGINE = ("--target", "tensorrt")
SMALL = "batch=1:2:4,seq=8"


@pytest.fixture(scope="module")
def built(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine. Shared, not to be changed."""
    target = tmp_path_factory.mktemp("built") / "tiny.bundle"
    run_json("build", tiny_bundle, "-o", target, *ENGINE, "--profile", SMALL)
    return target


@pytest.fixture
def engine_copy(built: Path, tmp_path: Path) -> Path:
    target = tmp_path / "with-engine.bundle"
    shutil.copytree(built, target)
    return target


class TestBuild:
    def test_a_copy_of_a_bundle_gets_an_engine(self, built: Path, tiny_bundle: Path) -> None:
        assert engine_targets(tiny_bundle) == ()
        assert (built / "manifest.json").read_bytes() == (tiny_bundle / "manifest.json").read_bytes()
        EngineFile.open(Bundle.open(built), RTX)

    def test_a_model_becomes_a_bundle_with_an_engine(self, tiny_bert: Path, tmp_path: Path) -> None:
        target = tmp_path / "m.bundle"
        words = [
            "--max-rank",
            "8",
            *ENGINE,
            "--engine",
            "rtx",
            "--compute-capability",
            "sm86,SM89",
            "--tf32",
        ]
        found = run_json("build", tiny_bert, "-o", target, *words)
        assert found["bundle"] == str(target)
        assert found["engine"]["compute_capabilities"] == ["sm86", "sm89"]
        assert found["engine"]["tf32"] is True
        assert found["engine"]["target"] == RTX
        assert found["notes"] == []
        record = EngineFile.open(Bundle.open(target), RTX).record
        assert record.profiles[0].sizes["rank"].max == 8

    def test_a_bundle_gets_an_engine_without_torch_or_another_graph(self, bundle_copy: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in bundle_copy.rglob("*") if path.is_file()}
        words = [*ENGINE, "--profile", SMALL, "--profile", "seq=1:8:16", "--memory-limit", "2GB"]
        done = run_without(TORCH, "build", bundle_copy, *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("profile ") == 2
        assert "for Ampere and later" in done.stdout
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert len(EngineFile.open(Bundle.open(bundle_copy), RTX).record.profiles) == 2

    def test_an_engine_is_replaced(self, engine_copy: Path) -> None:
        found = run_json("build", engine_copy, *ENGINE, "--profile", "batch=1,seq=4")
        assert found["engine"]["profiles"][0].startswith("batch=1:1:1,seq=4:4:4")
        assert set(found) == {"bundle", "engine", "notes"}
        assert [path.name for path in (engine_copy / "engines").iterdir()] == [RTX]

    def test_a_copy_keeps_what_is_bound_and_other_engines(
        self, engine_copy: Path, make_lora: MakeLora, tmp_path: Path
    ) -> None:
        assert run("bind", make_lora("acme"), "-b", engine_copy).exit_code == 0
        other = engine_folder(engine_copy, "tensorrt")
        shutil.copytree(engine_folder(engine_copy, RTX), other)
        target = tmp_path / "two.bundle"
        run_json("build", engine_copy, "-o", target, *ENGINE, "--profile", SMALL)
        assert engine_targets(target) == ("tensorrt", RTX)
        assert list(Bundle.open(target).adapters()) == ["acme"]
        refused = run_json("build", engine_copy, "-o", target, *ENGINE, code=1)
        assert refused["problems"][0]["code"] == "exists"
        run_json("build", engine_copy, "-o", target, *ENGINE, "--profile", SMALL, "--force")

    def test_a_copy_that_takes_the_place_of_other_engines_says_so(
        self, engine_copy: Path, tiny_bundle: Path
    ) -> None:
        shutil.copytree(engine_folder(engine_copy, RTX), engine_folder(engine_copy, "tensorrt"))
        words = ["-o", engine_copy, "--force", *ENGINE, "--profile", SMALL]
        (note,) = run_json("build", tiny_bundle, *words)["notes"]
        assert note.startswith("engines/tensorrt was built")
        assert engine_targets(engine_copy) == (RTX,)
        assert "note" not in run("build", tiny_bundle, *words).stdout

    def test_another_graph_leaves_engines_behind_and_says_so(self, engine_copy: Path) -> None:
        found = run_json("build", engine_copy, "--dtype", "fp16")
        assert "engines/tensorrt-rtx was built from the bundle before" in found["notes"][0]
        assert engine_targets(engine_copy) == ()

    def test_another_graph_with_its_engine(self, engine_copy: Path) -> None:
        words = ["--max-rank", "4", *ENGINE, "--profile", SMALL]
        found = run_json("build", engine_copy, *words)
        assert found["notes"] == []
        assert found["max_rank"] == 4
        assert EngineFile.open(Bundle.open(engine_copy), RTX).record.profiles[0].sizes["rank"].max == 4


class TestRefused:
    @pytest.mark.parametrize(
        "words",
        [
            ["--engine", "rtx"],
            ["--profile", SMALL],
            ["--tf32", "--target", "onnxruntime"],
            ["--in-place"],
            ["--memory-limit", "1GB"],
            ["--compute-capability", "sm86"],
            [*ENGINE, "--memory-limit", "2XB"],
            [*ENGINE, "--memory-limit", "0"],
            [*ENGINE, "--memory-limit", "99999999999999GB"],
            [*ENGINE, "--memory-limit", f"{'9' * 400}GB"],
            [*ENGINE, "--memory-limit", "\u0662GB"],
            [*ENGINE, "--compute-capability", "8.6"],
            [*ENGINE, "--engine", "trt"],
            [*ENGINE, "--opset", "23"],
        ],
    )
    def test_usage(self, tiny_bundle: Path, words: list[str]) -> None:
        assert run("build", tiny_bundle, *words).exit_code == 2

    @pytest.mark.parametrize(
        ("words", "code", "culprits"),
        [
            (["--profile", "batch=1:8:2,volume=3"], "bad-input", 2),
            (["--compute-capability", "sm90,sm91"], "unsupported", 2),
            (["--in-place"], "unsupported", 1),
        ],
    )
    def test_all_culprits_are_named_and_nothing_changes(
        self, engine_copy: Path, words: list[str], code: str, culprits: int
    ) -> None:
        found = run_json("build", engine_copy, *ENGINE, *words, code=1)
        assert [problem["code"] for problem in found["problems"]] == [code] * culprits
        EngineFile.open(Bundle.open(engine_copy), RTX).check_plan()

    def test_what_became_of_the_engine_before_is_said(self, engine_copy: Path) -> None:
        words = ["--max-rank", "4", *ENGINE, "--profile", "seq=9999"]
        found = run_json("build", engine_copy, *words, code=1)
        assert "its engine is not, and engines/tensorrt-rtx is gone: " in found["headline"]
        assert engine_targets(engine_copy) == ()

    def test_the_tolerance_is_for_the_engine_too(
        self, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[float] = []

        def check_model(*arguments: object) -> dict[str, float]:
            asked.append(cast("float", arguments[4]))
            return {}

        monkeypatch.setattr("adexport.tensorrt.builder.check_model", check_model)
        run_json("build", bundle_copy, "--tolerance", "0.5", *ENGINE, "--profile", SMALL)
        assert asked == [0.5]

    def test_a_bundle_stands_without_its_engine(self, tiny_bert: Path, tmp_path: Path) -> None:
        target = tmp_path / "m.bundle"
        found = run_json("build", tiny_bert, "-o", target, *ENGINE, "--profile", "seq=9999", code=1)
        assert found["headline"].startswith(f"{target} is built, its engine is not")
        assert engine_targets(Bundle.open(target).root) == ()

    @pytest.mark.parametrize(
        ("words", "extra"),
        [([], "tensorrt-rtx"), (["--engine", "tensorrt"], "tensorrt"), (["--engine", "rtx"], RTX)],
    )
    def test_a_missing_builder_is_said_before_anything_is_built(
        self, tiny_bert: Path, tmp_path: Path, words: list[str], extra: str
    ) -> None:
        target = tmp_path / "m.bundle"
        banned = ["tensorrt", "tensorrt_rtx"]
        done = run_without(banned, "build", tiny_bert, "-o", target, *ENGINE, *words, "--json")
        assert done.returncode == 1, done.stderr
        problem = json.loads(done.stdout)["problems"][0]
        assert problem["code"] == "package-missing"
        assert f"'adexport[{extra}]'" in problem["mend"]
        assert not target.exists()


def test_a_build_that_is_terminated_leaves_nothing(bundle_copy: Path) -> None:
    before = sorted(bundle_copy.rglob("*"))
    script = "from adexport.cli import main; main()"
    words = ["build", str(bundle_copy), *ENGINE]
    with subprocess.Popen(
        [sys.executable, "-c", script, *words], stderr=subprocess.PIPE, text=True
    ) as build:
        assert build.stderr is not None
        assert any("Optimizing" in line for line in build.stderr)
        build.terminate()
        assert build.wait(60) == 128 + signal.SIGTERM
    assert sorted(bundle_copy.rglob("*")) == before


class TestInspect:
    def test_an_engine(self, built: Path) -> None:
        folder = built / "engines" / RTX
        found = run_json("inspect", folder, "--check")
        assert (found["kind"], found["target"], found["problems"]) == ("engine", RTX, [])
        assert (found["in_bundle"], found["plan_checked"]) == (True, True)
        assert found["bytes"] == (folder / "model.plan").stat().st_size
        assert found["inputs"]["input_ids"] == "int64 [batch, seq]"
        assert found["inputs"]["encoder.layer.0.output.dense.lora_A"] == "fp32 [rows, 48, rank]"
        assert list(found["outputs"]) == ["last_hidden_state", "pooler_output"]
        assert found["profiles"] == ["batch=1:2:4,seq=8:8:8,rows=1:17:65,rank=1:16:16"]
        shown = run("inspect", folder).stdout
        assert "Ampere and later" in shown
        assert "2 × encoder.layer.*.output.dense.lora_B  fp32 [rows, rank, 32]" in shown

    def test_a_bundle_lists_its_engines_without_onnx(self, built: Path) -> None:
        facts = run_json("inspect", built, "--check")["engines"][RTX]
        assert facts["problems"] == []
        assert facts["bytes"] > 0
        for path in (built, built / "engines" / RTX):
            done = run_without([*TORCH, "onnx", "onnx_ir", "tensorrt_rtx"], "inspect", path)
            assert done.returncode == 0, done.stderr
            assert RTX in done.stdout

    def test_an_engine_of_another_graph(self, engine_copy: Path, tmp_path: Path) -> None:
        kept = tmp_path / "kept"
        shutil.copytree(engine_copy / "engines", kept)
        run_json("build", engine_copy, "--max-rank", "4")
        shutil.copytree(kept, engine_copy / "engines")
        assert "lowered again" in run("inspect", engine_copy).stdout
        found = run_json("inspect", engine_copy / "engines" / RTX)
        assert [problem["subject"] for problem in found["problems"]] == ["bundle"]
        for path in (engine_copy, engine_copy / "engines" / RTX):
            assert run_json("inspect", path, "--check", code=1)["problems"][0]["code"] == "wrong-base"
        assert run_json("inspect", kept / RTX, "--check")["in_bundle"] is False

    def test_a_changed_plan(self, engine_copy: Path) -> None:
        plan = engine_copy / "engines" / RTX / "model.plan"
        data = bytearray(plan.read_bytes())
        data[len(data) // 2] ^= 1
        plan.write_bytes(data)
        assert run("inspect", plan.parent).exit_code == 0
        for path in (plan.parent, engine_copy):
            assert run_json("inspect", path, "--check", code=1)["problems"][0]["code"] == "damaged"

    def test_a_cut_plan(self, engine_copy: Path) -> None:
        plan = engine_copy / "engines" / RTX / "model.plan"
        plan.write_bytes(plan.read_bytes()[:-1])
        assert run_json("inspect", engine_copy)["engines"][RTX]["problems"][0]["code"] == "damaged"
        for path in (plan.parent, engine_copy):
            assert run_json("inspect", path, "--check", code=1)["problems"][0]["code"] == "damaged"

    def test_a_damaged_record(self, engine_copy: Path) -> None:
        (engine_copy / "engines" / RTX / "engine.json").write_text("{}")
        assert run_json("inspect", engine_copy, "--check", code=1)["problems"][0]["code"] == "version"
        assert (
            run_json("inspect", engine_copy / "engines" / RTX, code=1)["problems"][0]["code"] == "version"
        )
        assert run_json("inspect", engine_copy)["engines"][RTX]["problems"][0]["code"] == "version"
        assert "engine tensorrt-rtx: does not fit" in run("inspect", engine_copy).stdout
