"""What a server installs: the command line and the runtime where torch is not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from adexport_runtime import Bundle
from tests.conftest import MakeLora

from .support import run_without

TORCH = ["torch", "transformers", "peft", "onnxscript", "accelerate"]
LOWER = [*TORCH, "onnx", "onnx_ir"]
ROOT = Path(__file__).resolve().parents[2]


def test_bind_inspect_and_run(
    minilm_bundle: Path, minilm: Path, make_lora: MakeLora, tmp_path: Path
) -> None:
    bundle = tmp_path / "m.bundle"
    shutil.copytree(minilm_bundle, bundle)
    lora = make_lora("acme", model=minilm)
    for words in (
        ["bind", lora, "-b", bundle],
        ["inspect", bundle],
        ["inspect", lora],
        ["inspect", bundle / "adapters" / "acme.safetensors"],
        ["run", bundle, "--text", "hello", "--adapter", "acme"],
        ["--help"],
        ["build", "--help"],
        ["verify", "--help"],
        ["bench", "--help"],
    ):
        done = run_without(LOWER, *words)
        assert done.returncode == 0, done.stderr


def test_lowering_again(bundle_copy: Path) -> None:
    done = run_without(TORCH, "build", bundle_copy, "--dtype", "fp16")
    assert done.returncode == 0, done.stderr
    assert Bundle.open(bundle_copy).manifest.base.dtype == "fp16"


def test_quantizing(minilm_bundle: Path, tmp_path: Path) -> None:
    """Lowering needs no torch, and running what it wrote no ONNX; nothing sets up logging meanwhile."""
    bundle = tmp_path / "q.bundle"
    words = ["--quantize", "int8", "--quantize-method", "weight-only", "--slots", "none", "--json"]
    done = run_without(TORCH, "build", minilm_bundle, "-o", bundle, *words)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("·") for line in done.stderr.splitlines())
    assert json.loads(done.stdout)["quality"]["texts"] is True
    done = run_without(LOWER, "run", bundle, "--text", "hello")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("banned", "words", "package", "extra"),
    [
        (LOWER, ["build", "BUNDLE", "--dtype", "fp16"], "onnx", "lower"),
        (TORCH, ["build", "MODEL"], "torch", "export"),
        (["peft"], ["verify", "BUNDLE"], "peft", "verify"),
        (["onnxruntime"], ["run", "BUNDLE", "--text", "x"], "onnxruntime", "cpu"),
    ],
)
def test_what_is_missing_is_said(
    tiny_bundle: Path, tiny_bert: Path, banned: list[str], words: list[str], package: str, extra: str
) -> None:
    paths = {"BUNDLE": tiny_bundle, "MODEL": tiny_bert}
    done = run_without(banned, *[paths.get(word, word) for word in words], "--json")
    assert done.returncode == 1, done.stderr
    problem = json.loads(done.stdout)["problems"][0]
    assert (problem["code"], problem["subject"]) == ("package-missing", package)
    assert f"adexport[{extra}]" in problem["mend"]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_real_environment(minilm_bundle: Path, minilm: Path, make_lora: MakeLora, tmp_path: Path) -> None:
    """``pip install adexport[cpu]`` brings no torch, and is enough to bind and to run."""
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / "bin"
    environment = {**os.environ, "PYTHONPATH": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def call(*words: str | Path) -> str:
        done = subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(scripts / "pip", "install", "--quiet", f"{ROOT}[cpu]")
    packages = {line.partition("==")[0].lower() for line in call(scripts / "pip", "freeze").splitlines()}
    assert not packages & {"torch", "transformers", "peft", "onnx", "onnx-ir", "onnxscript"}
    bundle = tmp_path / "m.bundle"
    shutil.copytree(minilm_bundle, bundle)
    lora = make_lora("acme", model=minilm)
    call(scripts / "adexport", "bind", lora, "-b", bundle)
    assert "acme" in call(scripts / "adexport", "inspect", bundle)
    shown = call(scripts / "adexport", "run", bundle, "--text", "hello", "--adapter", "acme", "--json")
    assert json.loads(shown)["rows"][0]["adapter"] == "acme"
    assert sys.prefix not in call(
        scripts / "python", "-c", "import adexport_runtime as a; print(a.__file__)"
    )
