"""The two builders of engines: which one is installed, which one is asked for, what it can do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from adexport_runtime.engine_file import EngineTarget
from adexport_runtime.errors import Code, DependencyError, Problem


@dataclass(frozen=True)
class Tool:
    """A builder: its name on the command line, its target, its Python module, the extra that brings it.

    ``ahead``: it builds for GPUs that are not there; else for the one that it runs on.
    """

    name: str
    target: EngineTarget
    module: str
    extra: str
    ahead: bool


#: the first that is installed is taken, unless one is asked for
TOOLS = (
    Tool("rtx", "tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx", ahead=True),
    Tool("tensorrt", "tensorrt", "tensorrt", "tensorrt", ahead=False),
)


def find_tool(name: str | None = None) -> Tool:
    """The builder that is asked for, or one that is installed.

    Raises:
        DependencyError: it is not installed, or none is.
    """
    asked = [tool for tool in TOOLS if name in (None, tool.name)]
    if not asked:
        raise ValueError(f"no builder is called {name}")
    for tool in asked:
        if find_spec(tool.module) is not None:
            return tool
    raise DependencyError(
        "building an engine needs TensorRT-RTX or TensorRT",
        Problem(
            Code.PACKAGE_MISSING,
            " or ".join(tool.module for tool in asked),
            got="no such package",
            mend=" or ".join(f"pip install 'adexport[{tool.extra}]'" for tool in asked),
        ),
    )


def capability_problems(
    asked: Iterable[str], tool: Tool, known: Iterable[str], present: str | None
) -> list[Problem]:
    """The compute capabilities that a builder cannot build for.

    Args:
        asked: names as ``sm86``.
        known: those that the builder knows; only one that builds ahead of time lists them.
        present: that of the GPU which is there, if any.
    """
    known = [present] if not tool.ahead and present is not None else list(known)
    what = "the GPU that it builds on" if not tool.ahead else "those that it builds for"
    return [
        Problem(
            Code.UNSUPPORTED,
            f"--compute-capability {name}",
            got="a compute capability that this builder has no kernels for"
            if tool.ahead
            else "another GPU than the one that is there",
            expected=f"{', '.join(known)}: {what}",
            mend="leave --compute-capability out"
            if tool.ahead
            else "build where such a GPU is, or ahead of time with --engine rtx",
        )
        for name in asked
        if name not in known
    ]
