"""``adexport convert``: real pickles become folders that the runtime reads; bad ones change nothing."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from adexport_runtime.adapters import LinearWeights, read_adapter
from adexport_runtime.errors import Code
from tests.conftest import MakeLora
from tests.runtime.adapterhub_files import HEAD_WEIGHTS, WEIGHTS, randoms, seq_bn
from tests.runtime.test_adapterhub_head import headed

from .support import run, run_json, run_without

PICKLE, HEAD_PICKLE, PEFT_PICKLE = "pytorch_adapter.bin", "pytorch_model_head.bin", "adapter_model.bin"
SAFE = {
    PICKLE: WEIGHTS,
    HEAD_PICKLE: HEAD_WEIGHTS,
    PEFT_PICKLE: "adapter_model.safetensors",
}


def pickled(folder: Path, *names: str, **options: Any) -> Path:
    """The folder with pickles of the given names in the place of its safetensors."""
    for name in names:
        tensors = {key: torch.from_numpy(array) for key, array in load_file(folder / SAFE[name]).items()}
        torch.save(tensors, folder / name, **options)
        (folder / SAFE[name]).unlink()
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A pickled bottleneck adapter."""
    return pickled(seq_bn(tmp_path / "imdb"), PICKLE)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def codes(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(problem["code"], problem["subject"]) for problem in facts["problems"]]


class TestConverted:
    @pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "old"])
    def test_adapterhub_with_a_head(self, tmp_path: Path, options: dict[str, Any]) -> None:
        before = read_adapter(headed(tmp_path / "imdb"))
        assert before.head is not None
        folder = pickled(tmp_path / "imdb", PICKLE, HEAD_PICKLE, **options)
        facts = run_json("convert", folder, "-o", tmp_path / "safe")
        assert [(file["file"], file["tensors"]) for file in facts["files"]] == [
            (WEIGHTS, 8),
            (HEAD_WEIGHTS, 4),
        ]
        assert all(
            file["bytes"] == (tmp_path / "safe" / file["file"]).stat().st_size for file in facts["files"]
        )
        after = read_adapter(tmp_path / "safe")
        assert (after.problems, after.style) == ((), before.style)
        assert after.head is not None
        for place, weights in before.bottlenecks.items():
            for name, array in weights.factors.items():
                np.testing.assert_array_equal(after.bottlenecks[place].factors[name], array)
        np.testing.assert_array_equal(after.head.factors["deep"], before.head.factors["deep"])
        assert names(tmp_path / "safe") == sorted(
            ["adapter_config.json", "head_config.json", WEIGHTS, HEAD_WEIGHTS]
        )

    def test_tensors_that_share_memory(self, tmp_path: Path) -> None:
        """The library cannot save these as safetensors itself: a norm that it has under two names."""
        folder = seq_bn(tmp_path / "imdb", ln_before=True)
        tensors = {key: torch.from_numpy(array) for key, array in load_file(folder / WEIGHTS).items()}
        for key in [key for key in tensors if "adapter_norm_before" in key]:
            tensors[key.replace("adapter_norm_before", "adapter_down.0")] = tensors[key]
        torch.save(tensors, folder / PICKLE)
        (folder / WEIGHTS).unlink()
        assert run("convert", folder, "-o", tmp_path / "safe").exit_code == 0
        assert load_file(tmp_path / "safe" / WEIGHTS).keys() == tensors.keys()
        assert read_adapter(tmp_path / "safe").problems == ()

    def test_views_and_narrow_types(self, tmp_path: Path, adapter: Path) -> None:
        whole = torch.arange(12.0).reshape(3, 4)
        torch.save(
            {"t": whole.T, "half": whole[1:].bfloat16(), "grad": torch.nn.Parameter(whole)},
            adapter / PICKLE,
        )
        assert run("convert", adapter, "-o", tmp_path / "safe").exit_code == 0
        made = load_file(tmp_path / "safe" / WEIGHTS)
        np.testing.assert_array_equal(made["t"], whole.T.numpy())
        assert str(made["half"].dtype) == "bfloat16"

    def test_peft(self, tmp_path: Path, make_lora: MakeLora) -> None:
        folder = make_lora("acme", r=3)
        before = read_adapter(folder)
        pickled(folder, PEFT_PICKLE)
        assert run("convert", folder, "-o", tmp_path / "safe").exit_code == 0
        after = read_adapter(tmp_path / "safe")
        assert after.problems == ()
        assert after.linears.keys() == before.linears.keys()
        for module, update in before.linears.items():
            other = after.linears[module]
            assert isinstance(update, LinearWeights)
            assert isinstance(other, LinearWeights)
            np.testing.assert_array_equal(other.factors["lora_B"], update.factors["lora_B"])

    def test_the_head_alone_is_a_pickle(self, tmp_path: Path) -> None:
        folder = pickled(headed(tmp_path / "imdb"), HEAD_PICKLE)
        facts = run_json("convert", folder, "-o", tmp_path / "safe")
        assert [one["file"] for one in facts["files"]] == [HEAD_WEIGHTS]
        assert (tmp_path / "safe" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()

    def test_the_interface_comes_along(self, tmp_path: Path, adapter: Path) -> None:
        (adapter / "adapter_interface.json").write_text("{}")
        run_json("convert", adapter, "-o", tmp_path / "safe")
        assert names(tmp_path / "safe") == [
            "adapter.safetensors",
            "adapter_config.json",
            "adapter_interface.json",
        ]

    def test_text(self, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        result = run("convert", "imdb/pytorch_adapter.bin", "-o", "safe")
        assert result.exit_code == 0, result.stderr
        assert "pytorch_adapter.bin → safe/adapter.safetensors: 8 tensors" in result.stdout
        assert "adexport bind safe -b BUNDLE" in result.stdout

    def test_which_of_two(self, tmp_path: Path, adapter: Path) -> None:
        seq_bn(adapter)
        facts = run_json("convert", adapter, "-o", tmp_path / "safe", code=1)
        assert codes(facts) == [(Code.DUPLICATE_KEY, PICKLE)]
        torch.save({"meant": torch.ones(1)}, adapter / PICKLE)
        run_json("convert", adapter / PICKLE, "-o", tmp_path / "safe")
        assert load_file(tmp_path / "safe" / WEIGHTS).keys() == {"meant"}


class Evil:
    """What runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def _torch_saved(value: Any, path: Path) -> None:
    torch.save({"x": torch.ones(2), "evil": value}, path)


def _bare(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def _newest(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps({"x": value}))


@pytest.fixture
def refuse(tmp_path: Path, adapter: Path) -> Callable[..., dict[str, Any]]:
    """``refuse(codes, …)``: refused, and there is nothing more and nothing less than before."""

    def check(expected: list[tuple[str, str]], source: Path = adapter, *more: str) -> dict[str, Any]:
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        facts = run_json("convert", source, "-o", tmp_path / "safe", *more, code=1)
        assert codes(facts) == expected
        assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
        return facts

    return check


Refused = Callable[..., dict[str, Any]]


class TestBadPickles:
    @pytest.mark.parametrize("save", [_torch_saved, _bare, _newest])
    def test_code_is_not_run(
        self, tmp_path: Path, adapter: Path, refuse: Refused, save: Callable[[Any, Path], None]
    ) -> None:
        marker = tmp_path / "marker"
        save(Evil(marker), adapter / PICKLE)
        (problem,) = refuse([(Code.UNSUPPORTED, PICKLE)])["problems"]
        assert "can run any code" in problem["cause"]
        if save is not _newest:
            assert "system" in problem["got"]
        assert not marker.exists()

    @pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_truncated(self, tmp_path: Path, refuse: Refused, zipped: bool, keep: float) -> None:
        folder = tmp_path / "imdb"
        seq_bn(folder)
        (folder / PICKLE).unlink()
        path = pickled(folder, PICKLE, _use_new_zipfile_serialization=zipped) / PICKLE
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        refuse([(Code.DAMAGED, PICKLE)])

    @pytest.mark.parametrize(
        "content", [b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"\0" * 99]
    )
    def test_no_pickle(self, adapter: Path, refuse: Refused, content: bytes) -> None:
        (adapter / PICKLE).write_bytes(content)
        (problem,) = refuse([(Code.DAMAGED, PICKLE)])["problems"]
        assert ("git lfs pull" in problem["mend"]) == content.startswith(b"version")

    @pytest.mark.parametrize(
        ("state", "subject"),
        [
            ([torch.ones(1)], PICKLE),
            (torch.ones(1), PICKLE),
            ({"x": {"y": torch.ones(1)}}, "x"),
            ({"x": 1.5}, "x"),
            ({7: torch.ones(1)}, "7"),
            ({"x": torch.eye(2).to_sparse()}, "x"),
        ],
        ids=["list", "tensor", "nested", "number", "key", "sparse"],
    )
    def test_more_than_tensors_by_name(
        self, adapter: Path, refuse: Refused, state: Any, subject: str
    ) -> None:
        torch.save(state, adapter / PICKLE)
        refuse([(Code.UNSUPPORTED, subject)])

    def test_nothing_in_it(self, adapter: Path, refuse: Refused) -> None:
        torch.save({}, adapter / PICKLE)
        refuse([(Code.EMPTY_TENSOR, "the pickle")])

    def test_all_culprits(self, tmp_path: Path, adapter: Path, refuse: Refused) -> None:
        (adapter / HEAD_PICKLE).write_bytes(b"<html>")
        torch.save({"x": 1}, adapter / PICKLE)
        refuse([(Code.UNSUPPORTED, "x"), (Code.DAMAGED, HEAD_PICKLE)])


class TestFolders:
    def test_nothing_there(self, tmp_path: Path, refuse: Refused) -> None:
        refuse([(Code.ABSENT, str(tmp_path / "nothing"))], tmp_path / "nothing")

    def test_nothing_to_convert(self, tmp_path: Path, refuse: Refused) -> None:
        folder = seq_bn(tmp_path / "safe already")
        refuse([(Code.ABSENT, str(folder))], folder)

    def test_no_config(self, adapter: Path, refuse: Refused) -> None:
        (adapter / "adapter_config.json").unlink()
        refuse([(Code.ABSENT, str(adapter / "adapter_config.json"))])

    def test_a_name_that_no_library_gives(self, adapter: Path, refuse: Refused) -> None:
        renamed = (adapter / PICKLE).rename(adapter / "imdb.bin")
        refuse([(Code.BAD_NAME, "imdb.bin")], renamed)

    @pytest.mark.parametrize(
        "name", ["pytorch_model_adapter_fusion.bin", "adapter_setup.json", "embedding.pt"]
    )
    def test_what_would_be_lost(self, adapter: Path, refuse: Refused, name: str) -> None:
        (adapter / name).write_bytes(b"")
        refuse([(Code.UNSUPPORTED, name)])


class TestOutput:
    def test_what_stands_there_stays_without_force(
        self, tmp_path: Path, adapter: Path, refuse: Refused
    ) -> None:
        seq_bn(tmp_path / "safe", scaling=2.0)
        refuse([(Code.EXISTS, str(tmp_path / "safe"))])
        run_json("convert", adapter, "-o", tmp_path / "safe", "--force")
        assert names(tmp_path / "safe") == [WEIGHTS, "adapter_config.json"]
        assert names(tmp_path) == ["imdb", "safe"]

    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_force_replaces_adapters_only(self, tmp_path: Path, refuse: Refused, kind: str) -> None:
        if kind == "folder":
            (tmp_path / "safe").mkdir()
            (tmp_path / "safe" / "thesis.tex").write_text("all of it")
        else:
            (tmp_path / "safe").write_text("all of it")
        refuse([(Code.EXISTS, str(tmp_path / "safe"))], tmp_path / "imdb", "--force")

    def test_never_where_the_adapter_is(self, tmp_path: Path, adapter: Path) -> None:
        for output in (adapter, adapter / ".." / "imdb", tmp_path):
            before = sorted(tmp_path.rglob("*"))
            facts = run_json("convert", adapter, "-o", output, "--force", code=1)
            assert codes(facts) == [(Code.EXISTS, str(output))]
            assert sorted(tmp_path.rglob("*")) == before

    def test_in_a_new_folder_of_its_own(self, tmp_path: Path, adapter: Path) -> None:
        run_json("convert", adapter, "-o", tmp_path / "new" / "safe")
        assert read_adapter(tmp_path / "new" / "safe").problems == ()

    def test_wrong_usage(self, adapter: Path) -> None:
        assert run("convert", adapter).exit_code == 2
        assert run("convert").exit_code == 2


def test_without_torch(tmp_path: Path, adapter: Path) -> None:
    done = run_without(["torch"], "convert", adapter, "-o", tmp_path / "safe")
    assert done.returncode == 1
    assert "adexport convert needs torch" in done.stderr
    assert "adexport[export]" in done.stderr


def test_random_bytes(adapter: Path, refuse: Refused) -> None:
    """Whatever follows the first bytes of a pickle or an archive."""
    noise = randoms({"x": (64,)})["x"].tobytes()
    for start, code in ((b"PK\x03\x04", Code.DAMAGED), (b"\x80\x02", Code.UNSUPPORTED)):
        (adapter / PICKLE).write_bytes(start + noise)
        refuse([(code, PICKLE)])
