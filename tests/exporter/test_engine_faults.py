"""Faults of the builder, of the disk and of whoever interferes: what was there stays."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adexport.build import lower_again
from adexport.options import BuildOptions, EngineOptions
from adexport.tensorrt.builder import add_engine, build_engine
from adexport.tensorrt.child import order
from adexport.tensorrt.messages import Probe, Probed
from adexport_runtime.bundle import Bundle
from adexport_runtime.engine_file import engine_folder, engine_targets
from adexport_runtime.errors import BuildError, Code, DependencyError

from .engine_support import MIDDLE, RTX, at, children, make_job, names, runs, wait_until


class TestFaults:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
    def test_a_builder_that_dies_is_an_error_of_ours(
        self, with_engine: Path, number: signal.Signals
    ) -> None:
        folder = engine_folder(with_engine, "tensorrt-rtx")
        before = {name: (folder / name).read_bytes() for name in names(folder)}
        seen: list[int] = []

        def kill() -> None:
            seen.extend(children())
            os.kill(seen[-1], number)

        with pytest.raises(BuildError, match=f"signal {number.name}") as caught:
            build_engine(Bundle.open(with_engine), progress=at(MIDDLE, kill))
        assert ("for want of memory" in str(caught.value)) == (number == signal.SIGKILL)
        assert "it said last" in str(caught.value)
        assert {name: (folder / name).read_bytes() for name in names(folder)} == before
        assert [path.name for path in folder.parent.iterdir()] == ["tensorrt-rtx"]

    def test_an_interrupt_leaves_nothing(self, bundle_copy: Path) -> None:
        before = names(bundle_copy)
        seen: list[int] = []

        def interrupt() -> None:
            seen.extend(children())
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_engine(Bundle.open(bundle_copy), progress=at(MIDDLE, interrupt))
        assert names(bundle_copy) == before
        assert seen
        assert not set(seen) & set(children())

    def test_the_builder_goes_when_whoever_started_it_is_gone(self, bundle_copy: Path) -> None:
        script = f"""
import pathlib, sys
from adexport.tensorrt.builder import build_engine
from adexport_runtime.bundle import Bundle
def progress(name):
    if {MIDDLE!r} in name:
        tasks = pathlib.Path("/proc/self/task").glob("*/children")
        print(*[pid for task in tasks for pid in task.read_text().split()], flush=True)
        sys.stdin.read()
build_engine(Bundle.open({str(bundle_copy)!r}), progress=progress)
"""
        with subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            pid = parent.stdout.readline().split()[-1]
            assert Path("/proc", pid).exists()
            parent.kill()
        assert any(wait_until(lambda: not runs(pid)))

    def test_a_fault_in_python_is_told_with_its_last_lines(self, tmp_path: Path) -> None:
        with pytest.raises(BuildError, match=r"exit code 1; it said last: .*TypeError"):
            order(make_job(tmp_path, memory_limit=2**70), lambda _: None)

    @pytest.mark.parametrize("step", ["lower it", "parse the graph"])
    def test_a_bundle_that_is_replaced_meanwhile(self, bundle_copy: Path, step: str) -> None:
        """The engine would be one of the graph before, and could say that it is one of this."""
        again = at(step, lambda: lower_again(bundle_copy, options=BuildOptions(max_rank=4)) and None)
        with pytest.raises(BuildError, match="lowered again") as caught:
            build_engine(Bundle.open(bundle_copy), progress=again)
        assert caught.value.codes == {Code.WRONG_BASE}
        assert not (bundle_copy / "engines").exists()
        lower_again(bundle_copy, options=BuildOptions(max_rank=8))
        bundle = Bundle.open(bundle_copy)
        lower_again(bundle_copy, options=BuildOptions(max_rank=4))  # before the engine's folder is made
        with pytest.raises(BuildError, match="lowered again"):
            build_engine(bundle, EngineOptions(profiles=("seq=8,rank=4",)))
        assert not (bundle_copy / "engines").exists()

    @pytest.mark.parametrize("linked", ["engines", "engines/tensorrt-rtx"])
    def test_a_link_out_of_the_bundle_is_not_followed(
        self, bundle_copy: Path, tmp_path: Path, linked: str
    ) -> None:
        """A bundle may come from anyone: what it points to is not its own to replace."""
        precious = tmp_path / "precious"
        (precious / "tensorrt-rtx").mkdir(parents=True)
        for folder in (precious, precious / "tensorrt-rtx"):
            (folder / "engine.json").write_text("gold")
        (bundle_copy / linked).parent.mkdir(exist_ok=True)
        (bundle_copy / linked).symlink_to(precious)
        with pytest.raises(BuildError, match=f"a link to {precious}") as caught:
            build_engine(Bundle.open(bundle_copy))
        assert caught.value.codes == {Code.EXISTS}
        assert names(precious) == ["engine.json", "tensorrt-rtx", "tensorrt-rtx/engine.json"]

    @pytest.mark.parametrize("place", ["engines", "engines/tensorrt-rtx", "engines/tensorrt-rtx/gold.txt"])
    def test_what_is_no_engine_is_not_replaced(self, bundle_copy: Path, place: str) -> None:
        (bundle_copy / place).parent.mkdir(parents=True, exist_ok=True)
        (bundle_copy / place).write_text("gold")
        before = names(bundle_copy)
        with pytest.raises(BuildError) as caught:
            build_engine(Bundle.open(bundle_copy))
        assert caught.value.codes == {Code.EXISTS}
        assert names(bundle_copy) == before
        add_engine(bundle_copy, bundle_copy.with_name("copy"), options=EngineOptions(profiles=("seq=8",)))

    def test_a_bundle_that_is_reached_through_a_link(self, bundle_copy: Path, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(bundle_copy)
        add_engine(link, options=EngineOptions(profiles=("seq=8",)))
        assert link.is_symlink()
        assert engine_targets(bundle_copy) == ("tensorrt-rtx",)

    def test_a_full_disk_for_the_plan(self, tmp_path: Path) -> None:
        """Said by the process that builds: it is no fault of the builder."""
        with pytest.raises(BuildError, match=r"/dev/full: got No space left .*make room") as caught:
            order(make_job(tmp_path, plan="/dev/full"), lambda _: None)
        assert "a fault" not in str(caught.value)

    @pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
    def test_a_disk_that_takes_nothing(
        self, bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def refuse(path: Path, *_arguments: Any, **_options: Any) -> None:
            raise OSError(number, os.strerror(number), str(path))

        before = names(tmp_path)
        monkeypatch.setattr(Path, "mkdir", refuse)
        for output in (None, tmp_path / "copy.bundle"):
            with pytest.raises(BuildError, match=os.strerror(number)):
                add_engine(bundle_copy, output)
        assert names(tmp_path) == before
        assert not (bundle_copy / "engines").exists()

    def test_modules_of_the_working_directory_are_not_imported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in (RTX, "pydantic", "resource"):
            (tmp_path / f"{name}.py").write_text("raise ImportError('of the working directory')")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
        assert isinstance(order(Probe(module=RTX, device=False), lambda _: None), Probed)

    def test_a_package_that_does_not_load(self, tmp_path: Path) -> None:
        (tmp_path / "broken_builder.py").write_text("raise OSError('libnvinfer.so.10: cannot open')")
        sys.path.insert(0, str(tmp_path))
        try:
            with pytest.raises(DependencyError, match=r"libnvinfer\.so\.10"):
                order(Probe(module="broken_builder", device=False), lambda _: None)
        finally:
            sys.path.remove(str(tmp_path))
