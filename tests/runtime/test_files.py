"""Files and folders that appear whole or not at all, even when the writer is killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from adexport_runtime import Bundle, files
from adexport_runtime.files import DuplicateKeyError, atomic_file, atomic_folder, load_json
from adexport_runtime.tensors import read_tensors, write_tensors


def fill(folder: Path, version: str, count: int = 12) -> None:
    """A folder whose every file says the same version."""
    (folder / "inner").mkdir()
    for index in range(count):
        (folder / "inner" / f"{index}.txt").write_text(version)
    (folder / "manifest.json").write_text(version)


def version_of(folder: Path, count: int = 12) -> str:
    """The one version that all files say; every file must be there."""
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert len(texts) == count + 1
    assert len(set(texts)) == 1
    return texts[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with atomic_file(target) as part:
        part.write_text("new")
        assert part.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_file(target) as part:
        part.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["old", None])
def test_file_stays_on_failure(tmp_path: Path, error: type[BaseException], old: str | None) -> None:
    target = tmp_path / "a.txt"
    if old:
        target.write_text(old)

    def write() -> None:
        with atomic_file(target) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == (["a.txt"] if old else [])
    assert not old or target.read_text() == old


def test_a_reader_keeps_the_file_that_it_opened(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with target.open() as reader:
        with atomic_file(target) as part:
            part.write_text("new, and longer")
        assert reader.read() == "old"


@contextmanager
def replace_by(monkeypatch: pytest.MonkeyPatch, way: str) -> Iterator[None]:
    if way == "rename":  # as on a system without renameat2
        monkeypatch.setattr(files, "_exchange", lambda *_paths: False)
    yield


def test_folder_appears(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.bundle"
    with atomic_folder(target) as part:
        fill(part, "new")
        assert not target.exists()
    assert version_of(target) == "new"
    assert names(target.parent) == ["a.bundle"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("way", ["exchange", "rename"])
def test_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    target = tmp_path / "a.bundle"
    target.mkdir()
    fill(target, "old")
    (target / "only-in-old.txt").write_text("old")
    with replace_by(monkeypatch, way), atomic_folder(target) as part:
        fill(part, "new")
        assert (target / "only-in-old.txt").exists()
    assert version_of(target) == "new"  # and no file of the old one
    assert names(tmp_path) == ["a.bundle"]


@pytest.mark.parametrize("way", ["exchange", "rename"])
def test_folder_stays_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    target = tmp_path / "a.bundle"
    target.mkdir()
    fill(target, "old")

    def write() -> None:
        with replace_by(monkeypatch, way), atomic_folder(target) as part:
            fill(part, "half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert version_of(target) == "old"
    assert names(tmp_path) == ["a.bundle"]


def test_new_folder_leaves_nothing_on_failure(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "a.bundle") as part:
            fill(part, "half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert names(tmp_path) == []


def test_a_link_to_a_folder_is_replaced_without_leftovers(tmp_path: Path) -> None:
    (tmp_path / "v1.bundle").mkdir()
    fill(tmp_path / "v1.bundle", "old")
    link = tmp_path / "current.bundle"
    link.symlink_to("v1.bundle")
    with atomic_folder(link) as part:
        fill(part, "new")
    assert version_of(link) == "new"
    assert names(tmp_path) == ["current.bundle", "v1.bundle"]


KILLED = """
import sys, time
from pathlib import Path
from adexport_runtime.files import atomic_file, atomic_folder
target = Path(sys.argv[2])
if sys.argv[1] == "folder":
    with atomic_folder(target) as part:
        for name in ("manifest.json", "model.onnx"):
            (part / name).write_text("half")
        print("ready", flush=True)
        time.sleep(60)
else:
    with atomic_file(target) as part:
        part.write_text("half")
        print("ready", flush=True)
        time.sleep(60)
"""


def kill_a_writer(kind: str, target: Path) -> None:
    """Run a writer up to the middle of its work, and kill it there."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, kind, str(target)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_a_killed_folder_writer_leaves_the_old_bundle(bundle_copy: Path) -> None:
    manifest = (bundle_copy / "manifest.json").read_bytes()
    kill_a_writer("folder", bundle_copy)
    assert (bundle_copy / "manifest.json").read_bytes() == manifest
    Bundle.open(bundle_copy).check_files()
    assert [name for name in names(bundle_copy.parent) if name[0] != "."] == [bundle_copy.name]


def test_what_a_killed_folder_writer_leaves_is_no_bundle(bundle_copy: Path) -> None:
    kill_a_writer("folder", bundle_copy)
    assert Bundle.default(bundle_copy.parent) == bundle_copy


def test_a_killed_file_writer_leaves_the_old_adapter(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    target = bundle.adapter_path("tenant")
    target.parent.mkdir()
    write_tensors(target, {"x": np.ones(3, np.float32)}, {})
    old = target.read_bytes()
    kill_a_writer("file", target)
    kill_a_writer("file", bundle.adapter_path("another"))
    assert target.read_bytes() == old
    assert dict(bundle.adapters()) == {"tenant": target}
    assert [name for name in names(target.parent) if name[0] != "."] == [target.name]


def _replace_for_ever(folder: Path, file: Path) -> None:
    for number in range(10**9):
        with atomic_folder(folder) as part:
            fill(part, f"version {number}")
        write_tensors(file, {"x": np.full(2000, number, np.float32)}, {})


def test_killed_at_any_time_the_target_is_whole(tmp_path: Path) -> None:
    folder, file = tmp_path / "a.bundle", tmp_path / "a.safetensors"
    with atomic_folder(folder) as part:
        fill(part, "version -1")
    write_tensors(file, {"x": np.full(2000, -1, np.float32)}, {})
    source = random.Random(0)
    processes = multiprocessing.get_context("fork")
    seen = {version_of(folder)}
    for turn in range(40):
        before = folder.stat().st_ino
        writer = processes.Process(target=_replace_for_ever, args=(folder, file), daemon=True)
        writer.start()
        if turn % 4 == 0:  # some are killed after their first folder, however slow the machine
            while writer.is_alive() and folder.stat().st_ino == before:
                time.sleep(0.001)
        time.sleep(source.uniform(0.005, 0.06))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        seen.add(version_of(folder))
        assert len(set(read_tensors(file).tensors["x"].tolist())) == 1
    assert len(seen) > 1, "the writers were killed before any of them replaced anything"


def test_readers_see_whole_folders_only(tmp_path: Path) -> None:
    folder, file = tmp_path / "a.bundle", tmp_path / "a.safetensors"
    with atomic_folder(folder) as part:
        fill(part, "version -1")
    writer = multiprocessing.get_context("fork").Process(
        target=_replace_for_ever, args=(folder, file), daemon=True
    )
    writer.start()
    try:
        seen = set()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:  # the name never stands empty, not even for an instant
            handle = os.open(folder, os.O_RDONLY)
            seen.add(os.fstat(handle).st_ino)
            os.close(handle)
    finally:
        writer.kill()
        writer.join()
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("text", "culprits"),
    [
        ('{"a": 1, "a": 2}', "a"),
        ('{"a": 1, "a": 1}', "a"),
        ('{"x": {"a": 1, "b": 2, "a": 3, "b": 4}}', "a, b"),
        ('[{"x": [{"y": {"deep": 1, "deep": 2}}]}]', "deep"),
        ('{"a": 1, "\\u0061": 2}', "a"),
    ],
)
def test_duplicate_keys_at_any_depth(text: str, culprits: str) -> None:
    for given in (text, text.encode()):
        with pytest.raises(DuplicateKeyError) as caught:
            load_json(given)
        assert str(caught.value) == culprits


def test_the_same_key_in_two_objects_is_no_duplicate() -> None:
    assert load_json('[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]
