"""What the runtime's tests share that is no fixture: editing files, and comparing outputs."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from adexport_runtime import AdapterError, AdexportError, Code, Engine
from adexport_runtime.adapters import read_adapter

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

#: adapters made by PEFT, and what it computed with them
GOLDEN_PEFT = Path(__file__).parents[1] / "golden" / "peft"
#: adapters made by AdapterHub's library
GOLDEN_HUB = GOLDEN_PEFT.parent / "adapterhub"

#: the linear layers of one block of the tiny BERT
QUERY = "encoder.layer.{}.attention.self.query"
VALUE = "encoder.layer.{}.attention.self.value"

Tensors = dict[str, np.ndarray]


def raw_safetensors(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with any header: JSON values, or the header's own bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """One tensor in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def weights_of(source: Path) -> Path:
    """The tensor file of a PEFT folder, or the file itself."""
    return source / WEIGHTS if source.is_dir() else source


def names_in(source: Path) -> set[str]:
    """The tensor names of a PEFT folder or a safetensors file."""
    with safe_open(weights_of(source), "np") as file:
        return set(file.keys())


def edit_tensors(
    source: Path, edit: Callable[[Tensors], None], metadata: Mapping[str, str | None] | None = None
) -> Path:
    """Change the tensors (in place) and the metadata (None removes a key) of a safetensors file."""
    path = weights_of(source)
    with safe_open(path, "np") as file:
        kept = dict(file.metadata() or {})
    tensors = load_file(path)
    edit(tensors)
    changed = {**kept, **(metadata or {})}
    save_file(tensors, path, {key: value for key, value in changed.items() if value is not None})
    return source


def edit_config(folder: Path, **changes: Any) -> Path:
    """Set keys of ``adapter_config.json``."""
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def subjects(error: AdexportError, code: Code) -> set[str]:
    """The culprits that an error names under one code."""
    return {problem.subject for problem in error.problems if problem.code == code}


def ids(rows: int = 3, length: int = 7, seed: int = 0) -> np.ndarray:
    """Token ids of the tiny model."""
    return np.random.default_rng(seed).integers(1, 97, (rows, length))


def hidden(engine: Engine, inputs: Any, adapters: Any = None) -> np.ndarray:
    """The last hidden state of a run."""
    feeds = inputs if isinstance(inputs, dict) else {"input_ids": inputs}
    return engine.run(feeds, adapters)["last_hidden_state"]


def culprits(folder: Path) -> dict[Code, set[str]]:
    """All problems of reading, by code."""
    try:
        problems = read_adapter(folder).problems
    except AdapterError as error:
        problems = error.problems
    found: dict[Code, set[str]] = {}
    for problem in problems:
        found.setdefault(problem.code, set()).add(problem.subject)
    return found
