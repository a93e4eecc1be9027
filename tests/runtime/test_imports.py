"""The runtime where torch is not installed, and ONNX Runtime with its telemetry off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BANNED = ["torch", "transformers", "peft", "onnx", "onnx_ir", "onnxscript", "adexport", "accelerate"]

#: the start of every script: the named packages are not to be had
BLOCK = """
import importlib, json, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError(f"{name} is banned here")

sys.meta_path.insert(0, Blocker())
"""

EVERY = """
import adexport_runtime

def fail(name):
    raise

names = ["adexport_runtime"]
for module in pkgutil.walk_packages(adexport_runtime.__path__, "adexport_runtime.", onerror=fail):
    importlib.import_module(module.name)
    names.append(module.name)
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"names": names, "loaded": loaded}))
"""


def run(script: str, banned: list[str], *arguments: str, path: Path | None = None) -> Any:
    """Run a script in a fresh interpreter where some packages are not to be had; its last line is JSON."""
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    code = f"BANNED = {banned!r}\n{BLOCK}\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def modules_on_disk() -> set[str]:
    import adexport_runtime

    root = Path(adexport_runtime.__file__).parent
    paths = [path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py")]
    return {".".join(path.parts).removesuffix(".__init__") for path in paths}


def test_every_module_imports_without_torch() -> None:
    result = run(EVERY, BANNED)
    assert set(result["names"]) == modules_on_disk()
    assert not set(BANNED) & set(result["loaded"])


def test_importing_loads_no_onnxruntime() -> None:
    result = run(EVERY, [*BANNED, "onnxruntime", "tokenizers"])
    assert set(result["names"]) == modules_on_disk()


def test_the_blocker_blocks() -> None:
    script = """
try:
    import torch
except ImportError as error:
    print(json.dumps(str(error)))
"""
    assert run(script, BANNED) == "torch is banned here"


def test_binds_and_runs_without_torch(bundle_copy: Path, good_lora: Path) -> None:
    script = """
from adexport_runtime import Bundle, Engine, bind_into_bundle
bundle, adapter = sys.argv[1:]
bind_into_bundle(Bundle.open(bundle), adapter, "stored")
with Engine.open(bundle) as engine:
    engine.bind("bound", adapter)
    rows = ["stored", "bound", None]
    out = engine.run({"input_ids": [[1, 2], [1, 2], [1, 2]]}, rows)["last_hidden_state"]
    print(json.dumps([bool((out[0] == out[1]).all()), bool((out[0] == out[2]).all())]))
"""
    assert run(script, BANNED, str(bundle_copy), str(good_lora)) == [True, False]


def test_without_onnxruntime_the_engine_says_what_to_install(tiny_bundle: Path) -> None:
    script = """
from adexport_runtime import Engine, DependencyError
try:
    Engine.open(sys.argv[1])
except DependencyError as error:
    print(json.dumps([error.problems[0].code, error.problems[0].subject, error.problems[0].mend]))
"""
    code, subject, mend = run(script, ["onnxruntime"], str(tiny_bundle))
    assert (code, subject) == ("package-missing", "onnxruntime")
    assert "adexport[cpu]" in mend


@pytest.mark.parametrize("order", ["backend", "engine"])
def test_telemetry_is_off_before_onnxruntime_loads(tmp_path: Path, tiny_bundle: Path, order: str) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        "import os\n"
        "seen = [os.environ.get('ORT_DISABLE_TELEMETRY')]\n"
        "__version__ = '0'\n"
        "def get_available_providers():\n    return []\n"
        "def disable_telemetry_events():\n    seen.append('disabled')\n"
    )
    script = """
from adexport_runtime import Engine, ProviderError
from adexport_runtime.backends.onnxruntime import import_onnxruntime
if sys.argv[2] == "backend":
    import_onnxruntime()
else:
    try:
        Engine.open(sys.argv[1], "cuda")
    except ProviderError:  # the stand-in has no provider
        pass
import onnxruntime
assert onnxruntime.__version__ == "0"
print(json.dumps(onnxruntime.seen))
"""
    seen = run(script, [], str(tiny_bundle), order, path=tmp_path)
    assert seen[0] == "1"
    assert set(seen[1:]) == {"disabled"}
