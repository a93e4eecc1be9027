"""Bundles and adapters of every format version that was ever written: still opened, still equal to PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from adexport.build import lower_again
from adexport.options import BuildOptions
from adexport_runtime import Bundle, Engine, load_adapter
from adexport_runtime.manifest import parse_manifest

V1 = Path(__file__).parents[1] / "golden" / "v1"
BUNDLE = V1 / "golden.bundle"
NAMES = sorted(path.name for path in (V1 / "peft").iterdir())


def expected() -> tuple[dict[str, np.ndarray], list[str | None]]:
    with safe_open(V1 / "expected.safetensors", "np") as file:
        rows = json.loads(file.metadata()["rows"])
    return load_file(V1 / "expected.safetensors"), rows


def worst(bundle: Path, bind: Callable[[Engine], None]) -> float:
    """The largest difference from what PEFT computed when the golden files were made."""
    tensors, rows = expected()
    truth = tensors.pop("last_hidden_state")
    with Engine.open(bundle) as engine:
        bind(engine)
        found = engine.run(tensors, rows)["last_hidden_state"]
    tokens = tensors["attention_mask"].astype(bool)
    return float(np.abs(found - truth)[tokens].max())


def test_every_byte_is_there() -> None:
    Bundle.open(BUNDLE).check_files()


def test_manifest_reads_and_writes_back() -> None:
    text = (BUNDLE / "manifest.json").read_text()
    manifest = parse_manifest(text)
    assert parse_manifest(manifest.to_json()) == manifest
    written, read = json.loads(manifest.to_json()), json.loads(text)
    assert {key: written[key] for key in read if key != "sites"} == {
        key: value for key, value in read.items() if key not in ("sites", "limits")
    } | {"limits": read["limits"] | {"max_width": None}}


def test_with_the_adapters_that_were_bound_then() -> None:
    assert sorted(Bundle.open(BUNDLE).adapters()) == NAMES
    assert worst(BUNDLE, lambda engine: None) <= 1e-6


def test_with_the_adapters_bound_now() -> None:
    def bind(engine: Engine) -> None:
        for name in NAMES:
            engine.bind(name, V1 / "peft" / name)

    assert worst(BUNDLE, bind) <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_binding_gives_the_same_tensors(name: str) -> None:
    now = load_adapter(name, V1 / "peft" / name, Bundle.open(BUNDLE))
    then = load_file(Bundle.open(BUNDLE).adapter_path(name))
    assert now.tensors.keys() == then.keys()
    for key, tensor in then.items():
        np.testing.assert_array_equal(now.tensors[key], tensor, strict=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("fp16", 5e-3)])
def test_the_trace_lowers_still(tmp_path: Path, dtype: str, tolerance: float) -> None:
    lower_again(BUNDLE, tmp_path / "again.bundle", options=BuildOptions(dtype=dtype))
    assert worst(tmp_path / "again.bundle", lambda engine: None) <= tolerance
