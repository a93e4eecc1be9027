"""Every command that a README shows is run as it stands there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.conftest import MakeLora
from tests.samples.services import NATIVE, free_port

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted(ROOT.glob("samples/*/README.md"))
BIN = Path(sys.executable).parent
#: of the services
PORTS = ("8321", "8322")


def blocks(readme: Path, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", readme.read_text(), re.MULTILINE | re.DOTALL)


def run(script: str, folder: Path) -> str:
    """Run a shell script as it stands, with this environment in the place of ``.venv``, and free ports."""
    script = script.replace(".venv/bin/", f"{BIN}/").replace(".venv/lib ", f"{sys.prefix}/lib ")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    for port in PORTS:
        script = script.replace(port, str(free_port()))
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env={**os.environ, "PATH": path, "VENV": sys.prefix, "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait()
        finally:
            with suppress(ProcessLookupError):  # what a script that failed left behind
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        said = output.read()
    assert status == 0, said
    return said


def test_every_sample_has_a_readme_with_commands() -> None:
    files = (path for path in ROOT.glob("samples/*/*") if path.is_file() and path.suffix != ".pyc")
    assert {readme.parent for readme in SAMPLES} == {path.parent for path in files}
    assert all(blocks(readme, "sh") for readme in SAMPLES)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # one trains twenty adapters, and makes an environment of its own first
@pytest.mark.parametrize("readme", SAMPLES, ids=lambda path: path.parent.name)
def test_a_samples_commands(readme: Path) -> None:
    if readme.parent.name == "cpp_service" and not NATIVE.exists():
        pytest.skip(f"no libadexport in {NATIVE}: `make native-build` builds and installs it there")
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
