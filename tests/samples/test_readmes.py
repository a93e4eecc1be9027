"""Every command that a README shows is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.conftest import MakeLora

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted(ROOT.glob("samples/*/README.md"))
BIN = Path(sys.executable).parent


def blocks(readme: Path, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", readme.read_text(), re.MULTILINE | re.DOTALL)


def run(script: str, folder: Path) -> str:
    """Run a shell script as it stands, with this environment in the place of ``.venv``."""
    script = script.replace(".venv/bin/", f"{BIN}/")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, "VENV": sys.prefix, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_sample_has_a_readme_with_commands() -> None:
    files = (path for path in ROOT.glob("samples/*/*") if path.is_file() and path.suffix != ".pyc")
    assert {readme.parent for readme in SAMPLES} == {path.parent for path in files}
    assert all(blocks(readme, "sh") for readme in SAMPLES)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # one trains twenty adapters, and makes an environment of its own first
@pytest.mark.parametrize("readme", SAMPLES, ids=lambda path: path.parent.name)
def test_a_samples_commands(readme: Path) -> None:
    for block in blocks(readme, "sh"):
        run(block, ROOT)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_and_the_code_of_the_readme(
    tmp_path: Path, minilm: Path, smollm2: Path, make_lora: MakeLora
) -> None:
    """The README's own walk: its folders stand there under the names that it uses."""
    (tmp_path / "all-MiniLM-L6-v2").symlink_to(minilm)
    for seed, tenant in enumerate(("acme", "globex")):
        (tmp_path / f"{tenant}-lora").symlink_to(make_lora(tenant, model=minilm, seed=seed))
    (tmp_path / "SmolLM2-135M-Instruct").symlink_to(smollm2)
    chat = make_lora("chat", model=smollm2, auto=AutoModelForCausalLM, target_modules=["q_proj", "v_proj"])
    (tmp_path / "acme-chat-lora").symlink_to(chat)
    readme = ROOT / "README.md"
    walks = [block for block in blocks(readme, "sh") if block.startswith("adexport ")]
    assert walks
    for block in walks:
        run(block, tmp_path)
    codes = blocks(readme, "python")
    assert codes
    for code in codes:
        (tmp_path / "snippet.py").write_text(code)
        run("python snippet.py", tmp_path)
