"""Which builder is taken, and what it must find."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from adexport.tensorrt.child import order
from adexport.tensorrt.device import present_device
from adexport.tensorrt.messages import Probe, Probed
from adexport.tensorrt.tool import TOOLS, capability_problems, find_tool
from adexport_runtime.errors import Code, DependencyError

from .engine_support import RTX, fake_driver


class TestTool:
    def test_what_the_builder_says_of_itself(self) -> None:
        answer = order(Probe(module=RTX, device=False), lambda _: None)
        assert isinstance(answer, Probed)
        assert {"sm80", "sm86", "sm89", "sm120"} <= set(answer.capabilities)
        assert answer.version[0] == "1"

    @pytest.mark.parametrize(
        ("installed", "asked", "found"),
        [
            ({RTX, "tensorrt"}, None, "tensorrt-rtx"),
            ({"tensorrt"}, None, "tensorrt"),
            ({RTX, "tensorrt"}, "tensorrt", "tensorrt"),
            ({"tensorrt"}, "rtx", "adexport[tensorrt-rtx]"),
            ({RTX}, "tensorrt", "adexport[tensorrt]"),
            (set(), None, "adexport[tensorrt]"),
        ],
    )
    def test_which_is_taken(
        self, monkeypatch: pytest.MonkeyPatch, installed: set[str], asked: str | None, found: str
    ) -> None:
        monkeypatch.setattr(
            "adexport.tensorrt.tool.find_spec", lambda name: name if name in installed else None
        )
        if not found.startswith("adexport"):
            assert find_tool(asked).target == found
            return
        with pytest.raises(DependencyError) as caught:
            find_tool(asked)
        assert caught.value.codes == {Code.PACKAGE_MISSING}
        assert found in caught.value.problems[0].mend

    def test_tensorrt_builds_for_the_gpu_at_hand_alone(self) -> None:
        assert capability_problems(("sm90",), TOOLS[1], (), "sm90") == []
        (problem,) = capability_problems(("sm86", "sm90"), TOOLS[1], (), "sm90")
        assert "sm86" in problem.subject
        assert problem.expected.startswith("sm90")
        assert "--engine rtx" in problem.mend

    def test_the_gpu_at_hand(self) -> None:
        assert present_device(fake_driver(0, 0)) == "sm89"

    @pytest.mark.parametrize(("init", "get"), [(100, 0), (0, 101)])
    def test_no_gpu(self, init: int, get: int) -> None:
        with pytest.raises(DependencyError, match="there is none to use: the GPU: got NO_DEVICE"):
            present_device(fake_driver(init, get))

    def test_no_driver(self) -> None:
        def lost(_flags: int) -> None:
            raise RuntimeError("no libcuda here")

        with pytest.raises(DependencyError, match=r"libcuda\.so\.1: got no libcuda here"):
            present_device(SimpleNamespace(cuInit=lost))

    def test_a_gpu_that_must_be_there_is_looked_for(self) -> None:
        """In the process that builds: it has a compute capability, or an error of ours says why not."""
        try:
            answer = order(Probe(module=RTX, device=True), lambda _: None)
        except DependencyError as error:
            assert error.codes == {Code.PACKAGE_MISSING}
        else:
            assert isinstance(answer, Probed)
            assert answer.device is not None
