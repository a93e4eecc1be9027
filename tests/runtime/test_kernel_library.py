"""Which kernel library is taken, and what is said of one that is none."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from adexport.build import lower_again
from adexport.options import BuildOptions
from adexport_runtime import BundleError, Code, DependencyError, Engine
from adexport_runtime.backends import kernels
from adexport_runtime.backends.kernels import describe_kernels, find_kernels
from tests.conftest import MakeLora
from tests.contract.kernels import kernel_library, needs_kernels

from .support import hidden, ids

#: operators, but not ours
FOREIGN = """
void* RegisterCustomOps(void* options, const void* api) { return 0; }
"""
#: ours, asked for instructions that nobody has
HELPLESS = """
void* RegisterCustomOps(void* options, const void* api) { return 0; }
const char* adexport_kernels_version(void) { return "0.0"; }
const char* adexport_kernels_isa(void) { return ""; }
"""


def compiled(source: str, target: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(target)]
    subprocess.run(command, input=source, text=True, check=True)
    return target


class TestFound:
    @pytest.mark.parametrize("empty", [True, False])
    def test_without_a_name(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty: bool) -> None:
        if empty:
            monkeypatch.setenv("ADEXPORT_KERNELS", "")
        else:
            monkeypatch.delenv("ADEXPORT_KERNELS", raising=False)
        monkeypatch.setattr(kernels, "BESIDE", tmp_path / "lib.so")
        assert find_kernels() is None
        (tmp_path / "lib.so").touch()
        assert find_kernels() == tmp_path / "lib.so"
        assert find_kernels("none") is None

    def test_a_relative_name(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Else the loader would search for it elsewhere."""
        (tmp_path / "lib.so").touch()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ADEXPORT_KERNELS", "lib.so")
        assert find_kernels() == tmp_path / "lib.so"
        assert find_kernels("none") is None
        monkeypatch.setenv("ADEXPORT_KERNELS", "none")
        assert find_kernels() is None
        assert find_kernels("lib.so") == tmp_path / "lib.so"

    def test_what_is_no_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with pytest.raises(DependencyError, match=r"got no file,.*kernels must name the library"):
            find_kernels(tmp_path)
        monkeypatch.setenv("ADEXPORT_KERNELS", str(tmp_path / "absent.so"))
        with pytest.raises(DependencyError, match=r"got no such file,.*\$ADEXPORT_KERNELS must name"):
            find_kernels()


def test_operators_of_another_library(tiny_bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime takes them, and would run without a kernel and without a word."""
    foreign = compiled(FOREIGN, tmp_path / "foreign.so")
    with pytest.raises(DependencyError, match="adexport_kernels_version") as caught:
        Engine.open(tiny_bundle, kernels=foreign)
    assert caught.value.codes == {Code.PACKAGE_MISSING}


def test_instructions_that_the_cpu_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADEXPORT_KERNELS_ISA", "mmx")
    with pytest.raises(DependencyError, match=r"ADEXPORT_KERNELS_ISA=mmx.*unset ADEXPORT_KERNELS_ISA"):
        describe_kernels(compiled(HELPLESS, tmp_path / "helpless.so"))


@needs_kernels
def test_a_graph_that_kernels_refuse(tiny_bundle: Path, tmp_path: Path) -> None:
    """The same graph runs without them: that is said."""
    target = tmp_path / "odd"
    options = BuildOptions(slots=("bottleneck",), bottlenecks=("double_seq_bn",), activations=("relu",))
    lower_again(tiny_bundle, target, options=options)
    graph = onnx.load(target / "model.onnx", load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "activations":
                attribute.CopyFrom(onnx.helper.make_attribute("activations", ["relu"]))
    (target / "model.onnx").write_bytes(graph.SerializeToString())
    manifest = json.loads((target / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "model.onnx":
            entry["bytes"] = (target / "model.onnx").stat().st_size
    (target / "manifest.json").write_text(json.dumps(manifest))
    with Engine.open(target, kernels="none") as engine:
        hidden(engine, ids(), None)
    library = kernel_library()
    with pytest.raises(BundleError, match=r"libadexport_kernels.* is of another version.*without kernels"):
        Engine.open(target, kernels=library)


@needs_kernels
def test_bits_do_not_depend_on_neighbours(tiny_bundle: Path, make_lora: MakeLora) -> None:
    small, large = make_lora("small", r=3), make_lora("large", r=16)
    rows = ["small", "large", None, "small", "small", "large"]
    inputs = {"input_ids": ids(6, 7)}
    with Engine.open(tiny_bundle, threads=1, kernels=kernel_library()) as engine:
        engine.bind("small", small)
        alone = engine.run(inputs, "small")["last_hidden_state"]
        engine.bind("large", large)
        beside = engine.run(inputs, "small")["last_hidden_state"]
        mixed = engine.run(inputs, rows)["last_hidden_state"]
        other = engine.run(inputs, "large")["last_hidden_state"]
        base = engine.run(inputs)["last_hidden_state"]
    np.testing.assert_array_equal(alone, beside)
    for row, name in enumerate(rows):
        expected = {"small": alone, "large": other, None: base}[name]
        np.testing.assert_array_equal(mixed[row], expected[row])
    assert np.abs(alone - base).max() > 1e-4
    assert np.abs(alone - other).max() > 1e-4
