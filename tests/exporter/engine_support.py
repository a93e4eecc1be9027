"""What tests of the process that builds engines share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
from onnx import TensorProto, helper

from adexport.tensorrt.messages import Job
from adexport_runtime.graph_io import Tensor
from adexport_runtime.profiles import Profile, Range

RTX = "tensorrt_rtx"
MIDDLE = "Optimizing graph"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def children() -> list[int]:
    """The processes that this one started."""
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def at(step: str, act: Callable[[], None]) -> Callable[[str], None]:
    """A progress that acts at a step, once."""
    left = [act]

    def progress(name: str) -> None:
        if step in name and left:
            left.pop()()

    return progress


def fake_driver(init: int, get: int) -> Any:
    """The driver's bindings, as far as they are asked."""
    result = SimpleNamespace(CUDA_SUCCESS=0)
    attributes = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=8, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=9
    )

    def status(code: int) -> Any:
        return 0 if code == 0 else SimpleNamespace(name="NO_DEVICE")

    return SimpleNamespace(
        CUresult=result,
        CUdevice_attribute=attributes,
        cuInit=lambda _flags: (status(init),),
        cuDeviceGet=lambda _index: (status(get), 0),
        cuDeviceGetAttribute=lambda attribute, _device: (0, attribute),
    )


def make_tensor(name: str, size: str = "n") -> Tensor:
    return Tensor(name=name, dtype="fp32", shape=(size, 4))


def make_job(
    folder: Path, second: str = "n", operator: str = "Add", domain: str = "", **changes: Any
) -> Job:
    """A job with a graph that adds ``left`` and ``right``."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, 4])
              for name, size in (("left", "n"), ("right", second))]  # fmt: skip
    output = helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 4])
    node = helper.make_node(operator, ["left", "right"], ["sum"], name="odd", domain=domain)
    graph = helper.make_graph([node], "adder", inputs, [output])
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "g.onnx")
    job: dict[str, Any] = {
        "module": RTX,
        "graph": str(folder / "g.onnx"),
        "plan": str(folder / "g.plan"),
        "inputs": (make_tensor("left"), make_tensor("right", second)),
        "outputs": (make_tensor("sum"),),
        "profiles": (Profile(sizes={"n": Range(min=1, opt=2, max=8), "m": Range(min=1, opt=2, max=8)}),),
        "compute_capabilities": (),
        "memory_limit": None,
        "tf32": False,
        "timing": None,
    }
    return Job(**job | changes)


def runs(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(done: Callable[[], bool]) -> Iterator[bool]:
    for _ in range(600):
        yield done()
        time.sleep(0.05)
