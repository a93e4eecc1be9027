"""Bundles on disk: opened, checked, found, and their adapters listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adexport_runtime import AdapterError, Bundle, BundleError, Code, Engine, bind_into_bundle

from .support import subjects

BAD_NAMES = ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", ".hidden", "-x", "_x", "a b", "a\0"]
BAD_NAMES += ["a\n", "ä", "٣", "a" * 129, "~", "C:x"]
GOOD_NAMES = ["a", "0", "A-b_c.d", "a" * 128, "a..b", "model.safetensors"]


def refused(path: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    return caught.value


def test_opens(tiny_bundle: Path) -> None:
    bundle = Bundle.open(str(tiny_bundle))
    assert bundle.root == tiny_bundle
    assert bundle.manifest.base.name == "tiny-bert"
    assert bundle.model_path.is_file()
    assert dict(bundle.adapters()) == {}
    bundle.check_files()


def test_the_manifest_lists_every_file(tiny_bundle: Path) -> None:
    listed = {entry.path for entry in Bundle.open(tiny_bundle).manifest.files}
    there = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert listed == there - {"manifest.json"}


@pytest.mark.parametrize("what", ["absent", "empty", "file"])
def test_not_a_bundle(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    error = refused(tmp_path / what)
    assert subjects(error, Code.ABSENT) == {str(tmp_path / what / "manifest.json")}


def test_every_absent_or_truncated_file_is_named(bundle_copy: Path) -> None:
    for name in ("model.onnx", "config.json"):
        (bundle_copy / name).unlink()
    weights = bundle_copy / "weights" / "fp32.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    error = refused(bundle_copy)
    assert error.codes == {Code.DAMAGED}
    assert subjects(error, Code.DAMAGED) == {"model.onnx", "config.json", "weights/fp32.bin"}
    assert {problem.got for problem in error.problems} == {"no file", f"{weights.stat().st_size} bytes"}


def test_each_file_alone_is_needed(bundle_copy: Path) -> None:
    for entry in Bundle.open(bundle_copy).manifest.files:
        path = bundle_copy / entry.path
        content = path.read_bytes()
        path.write_bytes(content + b"\0")
        assert subjects(refused(bundle_copy), Code.DAMAGED) == {entry.path}
        path.write_bytes(content)
    Bundle.open(bundle_copy)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_truncated_manifest(bundle_copy: Path, cut: int) -> None:
    path = bundle_copy / "manifest.json"
    path.write_bytes(path.read_bytes().rstrip()[:cut])
    error = refused(bundle_copy)
    assert error.codes == {Code.BAD_MANIFEST}
    assert str(path) in str(error)


def test_files_outside_the_bundle_are_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    data = json.loads(path.read_text())
    data["files"][0]["path"] = "../secret"
    data["files"][1]["path"] = "/etc/passwd"
    data["files"][2]["path"] = "weights/../../secret"
    path.write_text(json.dumps(data))
    assert subjects(refused(bundle_copy), Code.BAD_MANIFEST) == {
        f"files.{index}.path" for index in range(3)
    }


def test_check_files_notices_one_flipped_bit(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    flipped = {"weights/fp32.bin", "trace.onnx"}
    for name in flipped:
        content = bytearray((bundle_copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle_copy / name).write_bytes(content)
    Bundle.open(bundle_copy)  # the sizes are right
    with pytest.raises(BundleError) as caught:
        bundle.check_files()
    assert caught.value.codes == {Code.DAMAGED}
    assert subjects(caught.value, Code.DAMAGED) == flipped


def test_check_files_notices_an_absent_file(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    (bundle_copy / "model.onnx").unlink()
    with pytest.raises(BundleError) as caught:
        bundle.check_files()
    assert subjects(caught.value, Code.DAMAGED) == {"model.onnx"}


class TestDefault:
    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ADEXPORT_BUNDLE", raising=False)
        monkeypatch.chdir(tmp_path)

    @staticmethod
    def make(*names: str) -> None:
        for name in names:
            Path(name).mkdir()
            (Path(name) / "manifest.json").write_text("{}")

    def test_the_only_one_here(self, tmp_path: Path) -> None:
        self.make("one.bundle")
        Path("folder").mkdir()
        assert Bundle.default() == tmp_path / "one.bundle"
        assert Bundle.default(tmp_path) == tmp_path / "one.bundle"

    def test_the_environment_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.make("one.bundle")
        monkeypatch.setenv("ADEXPORT_BUNDLE", "/elsewhere/two.bundle")
        assert Bundle.default() == Path("/elsewhere/two.bundle")

    def test_an_empty_variable_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.make("one.bundle")
        monkeypatch.setenv("ADEXPORT_BUNDLE", "")
        assert Bundle.default() == tmp_path / "one.bundle"

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError) as caught:
            Bundle.default()
        assert subjects(caught.value, Code.ABSENT) == {str(tmp_path)}

    def test_several_are_all_named(self) -> None:
        self.make("one.bundle", "two.bundle", "three")
        with pytest.raises(BundleError, match=r"one\.bundle, three, two\.bundle") as caught:
            Bundle.default()
        assert caught.value.codes == {Code.ABSENT}

    def test_hidden_leftovers_are_no_bundles(self, tmp_path: Path) -> None:
        self.make("one.bundle", ".one.bundle.x1y2z3.part")
        assert Bundle.default() == tmp_path / "one.bundle"


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names(bundle_copy: Path, good_lora: Path, name: str) -> None:
    bundle = Bundle.open(bundle_copy)
    bind_into_bundle(bundle, good_lora, name)
    assert dict(bundle.adapters()) == {name: bundle_copy / "adapters" / f"{name}.safetensors"}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_is_never_a_path(bundle_copy: Path, good_lora: Path, name: str) -> None:
    bundle = Bundle.open(bundle_copy)
    engine = Engine.open(bundle_copy)
    before = sorted(bundle_copy.parent.rglob("*"))
    for refused_by in (
        lambda: bundle.adapter_path(name),
        lambda: bind_into_bundle(bundle, good_lora, name),
        lambda: engine.bind(name, good_lora),
        lambda: engine.bind(name),
    ):
        with pytest.raises(AdapterError) as caught:
            refused_by()
        assert subjects(caught.value, Code.BAD_NAME) == {repr(name)}
    assert sorted(bundle_copy.parent.rglob("*")) == before
    assert engine.adapters() == []


@pytest.mark.parametrize("name", [None, 3, b"a", ("a",)])
def test_a_name_is_a_string(tiny_bundle: Path, good_lora: Path, name: object) -> None:
    with pytest.raises(AdapterError) as caught:
        Engine.open(tiny_bundle).bind(name, good_lora)  # type: ignore[arg-type]
    assert caught.value.codes == {Code.BAD_NAME}


def test_adapters_lists_bound_files_only(bundle_copy: Path, good_lora: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    for name in ("b", "a"):
        bind_into_bundle(bundle, good_lora, name)
    folder = bundle_copy / "adapters"
    for name in ("README.md", ".a.safetensors", ".a.safetensors.x1.part", "c.safetensors.part"):
        (folder / name).write_text("no adapter")
    assert list(bundle.adapters()) == ["a", "b"]


def test_a_taken_name_needs_replace(bundle_copy: Path, good_lora: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    bind_into_bundle(bundle, good_lora, "a")
    content = bundle.adapter_path("a").read_bytes()
    with pytest.raises(AdapterError) as caught:
        bind_into_bundle(bundle, good_lora, "a")
    assert subjects(caught.value, Code.EXISTS) == {"a"}
    assert bundle.adapter_path("a").read_bytes() == content
    bind_into_bundle(bundle, good_lora, "a", replace=True)


def test_the_folder_names_the_adapter(bundle_copy: Path, good_lora: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    assert bind_into_bundle(bundle, good_lora).name == "good"
    assert bind_into_bundle(bundle, good_lora / "adapter_model.safetensors", replace=True).name == "good"
    moved = bundle.adapter_path("good").rename(bundle_copy.parent / "moved.safetensors")
    assert bind_into_bundle(bundle, moved).name == "moved"
    assert list(bundle.adapters()) == ["moved"]
