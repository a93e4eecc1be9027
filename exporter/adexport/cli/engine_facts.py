"""What an engine is, as data and for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adexport_runtime.bundle import MANIFEST_FILE, Bundle
from adexport_runtime.engine_file import (
    ENGINES_FOLDER,
    EngineFile,
    EngineRecord,
    engine_folder,
    engine_targets,
    misfits,
    read_record,
)
from adexport_runtime.errors import BundleError, Problem
from adexport_runtime.graph_io import Tensor
from adexport_runtime.manifest import Input, Output

from .console import size


def engine_facts(file: EngineFile) -> dict[str, Any]:
    """What was built."""
    record = file.record
    return {
        "path": str(file.folder),
        "target": record.target,
        "tool_version": record.tool_version,
        "compute_capabilities": list(record.compute_capabilities),
        "profiles": [str(profile) for profile in record.profiles],
        "inputs": _tensors(record.inputs),
        "outputs": _tensors(record.outputs),
        "caches": record.caches,
        "tf32": record.tf32,
        "layers": record.layers,
        "bytes": record.plan.bytes,
        "seconds": record.seconds,
        "peak_bytes": record.peak_bytes,
    }


def inspect_engine(folder: Path, check: bool) -> dict[str, Any]:
    """An engine on disk, and whether it is one of the bundle that it lies in.

    Raises:
        BundleError: its record is damaged; or ``check`` finds that it is none of the bundle, or another
            plan than was built.
    """
    file = EngineFile(folder, read_record(folder))
    root = folder.resolve().parent.parent
    problems = misfits(Bundle.open(root), file.record, folder.resolve()) if _lies_in(root) else []
    if check:
        _refuse(folder, problems)
        file.check_plan()
    return {
        "kind": "engine",
        **engine_facts(file),
        "in_bundle": _lies_in(root),
        "problems": [problem_facts(problem) for problem in problems],
        "plan_checked": check,
    }


def bundle_engines(bundle: Bundle, check: bool) -> dict[str, dict[str, Any]]:
    """The engines of a bundle by target: briefly what they are, or why they are none of it.

    Raises:
        BundleError: ``check`` finds one that is none of the bundle, or another plan than was built.
    """
    found = {}
    for target in engine_targets(bundle.root):
        folder = engine_folder(bundle.root, target)
        facts: dict[str, Any] = {}
        try:
            record = read_record(folder)
            facts = _brief(record)
            problems: Sequence[Problem] = misfits(bundle, record, folder)
        except BundleError as error:
            problems = error.problems
        if check:
            _refuse(folder, problems)
            EngineFile(folder, record).check_plan()
        facts["problems"] = [problem_facts(problem) for problem in problems]
        found[target] = facts
    return found


def _refuse(folder: Path, problems: Sequence[Problem]) -> None:
    if problems:
        raise BundleError(f"{folder} is refused as an engine", problems)


def engine_line(facts: Mapping[str, Any]) -> str:
    """An engine in a line."""
    if facts["problems"]:
        causes = (problem.get("cause") or problem_line(problem) for problem in facts["problems"])
        return f"does not fit: {'; '.join(causes)}"
    number = len(facts["profiles"])
    profiles = f"{number} profile{'' if number == 1 else 's'}"
    return f"{facts['tool_version']}, for {gpus(facts)}, {profiles}, {size(facts['bytes'])}"


def engine_lines(facts: Mapping[str, Any]) -> Iterable[str]:
    """What a build says of its engine."""
    yield f"engine     {facts['target']} {facts['tool_version']}, for {gpus(facts)}"
    for profile in facts["profiles"]:
        yield f"profile    {profile}"
    what = f"{size(facts['bytes'])}, built in {facts['seconds']:.0f} s"
    yield f"plan       {what} with {size(facts['peak_bytes'])} of memory"


def gpus(facts: Mapping[str, Any]) -> str:
    """The GPUs of an engine."""
    return ", ".join(facts["compute_capabilities"]) or "Ampere and later"


def left_notes(targets: Iterable[str]) -> list[str]:
    """Notes on engines that a new graph has left behind."""
    return [
        f"{ENGINES_FOLDER}/{target} was built from the bundle before, and is gone: build it again "
        "(adexport build BUNDLE --target tensorrt)"
        for target in sorted(targets)
    ]


def problem_facts(problem: Problem) -> dict[str, str]:
    """A problem as data, without what is empty."""
    return {key: str(value) for key, value in vars(problem).items() if value}


def problem_line(problem: Mapping[str, str]) -> str:
    """A problem for people."""
    return "; ".join(f"{key} {value}" for key, value in problem.items())


def tensor_words(tensor: Tensor | Input | Output) -> str:
    """The type and the shape of an input or output."""
    return f"{tensor.dtype} [{', '.join(str(size) for size in tensor.shape)}]"


def _brief(record: EngineRecord) -> dict[str, Any]:
    return {
        "tool_version": record.tool_version,
        "compute_capabilities": list(record.compute_capabilities),
        "profiles": [str(profile) for profile in record.profiles],
        "bytes": record.plan.bytes,
    }


def _tensors(tensors: Iterable[Tensor]) -> dict[str, str]:
    return {tensor.name: tensor_words(tensor) for tensor in tensors}


def _lies_in(root: Path) -> bool:
    return (root / MANIFEST_FILE).exists()
