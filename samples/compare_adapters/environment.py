"""A virtual environment for the adapters library, which needs an older transformers than adexport."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements" / "adapterhub.txt"
FOLDER = ROOT / ".cache" / "adapterhub-venv"
PYTHON = FOLDER / "bin" / "python"
_STAMP = FOLDER / ".ready"
_SCRIPT = Path(__file__).with_name("train_adapterhub.py")


def ready() -> bool:
    """Whether the environment stands, made whole from the requirements as they are now."""
    return _STAMP.exists() and _STAMP.read_text() == REQUIREMENTS.read_text()


def make() -> None:
    """Make it anew: torch first and alone, then everything else is satisfied with that."""
    requirements = REQUIREMENTS.read_text()
    torch = next(line for line in requirements.splitlines() if line.startswith("torch=="))
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
    _STAMP.write_text(requirements)


def train(base: str, root: Path) -> Iterator[str]:
    """Train all bottlenecks there; yields the name of each adapter as it is done."""
    command = [str(PYTHON), str(_SCRIPT), base, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield line.strip()
    if process.returncode:
        raise SystemExit(f"{_SCRIPT.name} failed")
