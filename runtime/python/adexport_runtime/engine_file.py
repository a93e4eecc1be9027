"""An engine on disk: ``engines/<target>/engine.json`` says what the plan beside it was built from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from .bundle import MANIFEST_FILE, Bundle, file_hash
from .errors import BundleError, Code, Problem
from .files import DuplicateKeyError, load_json
from .graph_io import Tensor, engine_inputs, graph_outputs
from .manifest import File, Manifest, Sha256
from .profiles import Profile, profile_problems
from .schema import Natural, Positive, Schema, Text, violations

ENGINES_FOLDER: Final = "engines"
RECORD_FILE: Final = "engine.json"
PLAN_FILE: Final = "model.plan"

EngineTarget = Literal["tensorrt-rtx", "tensorrt"]
#: how a graph that generates writes its caches
CacheForm = Literal["copied", "in-place"]

_MEND = "adexport build BUNDLE --target tensorrt"


class EngineRecord(Schema):
    """What an engine is, and what it was built with.

    ``bundle`` is the sha256 of the manifest that the engine was built from. ``compute_capabilities`` are
    the GPUs it runs on; empty: what the tool takes by itself (TensorRT-RTX: Ampere and later). ``caches``
    is null where the graph has none. ``plan`` is the engine itself, beside the record. ``seconds`` and
    ``peak_bytes`` are what its build took: time, and memory of the process.
    """

    format_version: Literal[1] = 1
    target: EngineTarget
    tool_version: Text
    bundle: Sha256
    fingerprint: Sha256
    plan: File
    compute_capabilities: tuple[Text, ...]
    profiles: Annotated[tuple[Profile, ...], Field(min_length=1)]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    caches: CacheForm | None
    tf32: bool
    layers: Positive
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    peak_bytes: Natural


@dataclass(frozen=True)
class EngineFile:
    """An opened engine: its folder and its record, checked against the bundle."""

    folder: Path
    record: EngineRecord

    @property
    def plan_path(self) -> Path:
        """The serialized engine."""
        return self.folder / self.record.plan.path

    @classmethod
    def open(cls, bundle: Bundle, target: str) -> EngineFile:
        """The engine of a bundle for ``tensorrt-rtx`` or ``tensorrt``.

        Raises:
            BundleError: there is none, it is damaged, or it was built from another bundle.
        """
        folder = engine_folder(bundle.root, target)
        record = read_record(folder)
        problems = misfits(bundle, record, folder)
        if problems:
            raise BundleError(f"{folder} is refused as an engine", problems)
        return cls(folder, record)

    def check_plan(self) -> None:
        """Compare the plan with its hash in the record (reads all of it).

        Raises:
            BundleError: it was changed, or is not there.
        """
        expected = f"sha256 {self.record.plan.sha256}"
        found = file_hash(self.plan_path)
        if found != expected:
            problem = Problem(
                Code.DAMAGED,
                str(self.plan_path),
                got=found,
                expected=expected,
                cause="the file was changed after the build",
                mend=f"copy it again, or {_MEND}",
            )
            raise BundleError(f"{self.folder} is refused as an engine", problem)


def engine_folder(root: Path, target: str) -> Path:
    """Where a bundle's engine for a target lies."""
    return root / ENGINES_FOLDER / target


def engine_targets(root: Path) -> tuple[str, ...]:
    """The targets that a bundle has engines for."""
    return tuple(sorted(path.parent.name for path in (root / ENGINES_FOLDER).glob(f"[!.]*/{RECORD_FILE}")))


def bundle_digest(root: Path) -> str:
    """What ties an engine to its bundle: the hash of the manifest."""
    return f"sha256:{hashlib.sha256((root / MANIFEST_FILE).read_bytes()).hexdigest()}"


def read_record(folder: Path) -> EngineRecord:
    """Validate a record whole.

    Raises:
        BundleError: there is none, or naming every violation.
    """
    headline = f"{folder} is refused as an engine"
    path = folder / RECORD_FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(
            headline,
            Problem(
                Code.ABSENT,
                str(path),
                got=error.strerror or "no file",
                cause="no engine was built for this bundle",
                mend=_MEND,
            ),
        ) from error
    try:
        data: Any = load_json(text)
        version = data.get("format_version") if isinstance(data, dict) else None
        if type(version) is not int or version != 1:
            problem = Problem(Code.VERSION, "format_version", got=repr(version), expected="1", mend=_MEND)
            raise BundleError(headline, problem)
        return EngineRecord.model_validate_json(text)
    except ValidationError as error:
        problems = [
            Problem(
                Code.BAD_MANIFEST,
                where or RECORD_FILE,
                got=got if where else "",
                expected=expected,
                mend=_MEND,
            )
            for where, got, expected in violations(error)
        ]
        raise BundleError(headline, problems) from None
    except DuplicateKeyError as error:
        raise BundleError(headline, Problem(Code.DUPLICATE_KEY, f"key {error}", mend=_MEND)) from None
    except (ValueError, RecursionError) as error:
        problem = Problem(Code.BAD_MANIFEST, str(path), got=f"no JSON ({error})", mend=_MEND)
        raise BundleError(headline, problem) from None


def _contradictions(record: EngineRecord, manifest: Manifest) -> list[Problem]:
    """What no builder writes of an engine of this bundle."""
    pairs = {
        "inputs": (record.inputs, engine_inputs(manifest)),
        "outputs": (record.outputs, graph_outputs(manifest)),
        "caches": (record.caches is not None, manifest.generation is not None),
    }
    problems = [
        Problem(Code.BAD_MANIFEST, key, got="others than the bundle has", expected="its own", mend=_MEND)
        for key, (found, expected) in pairs.items()
        if found != expected
    ]
    for index, profile in enumerate(record.profiles):
        problems += [
            replace(
                problem, code=Code.BAD_MANIFEST, subject=f"profiles.{index}: {problem.subject}", mend=_MEND
            )
            for problem in profile_problems(profile, manifest)
        ]
    return problems


def misfits(bundle: Bundle, record: EngineRecord, folder: Path) -> list[Problem]:
    """Why an engine is none of a bundle: its record, and the size of its plan."""
    problems = []
    if record.fingerprint != bundle.manifest.base.fingerprint:
        problems.append(
            Problem(
                Code.WRONG_BASE,
                "fingerprint",
                got=record.fingerprint,
                expected=f"{bundle.manifest.base.fingerprint} ({bundle.manifest.base.name})",
                cause="the engine was built from another model",
                mend=_MEND,
            )
        )
    elif (digest := bundle_digest(bundle.root)) != record.bundle:
        problems.append(
            Problem(
                Code.WRONG_BASE,
                "bundle",
                got=record.bundle,
                expected=digest,
                cause="the bundle was lowered again after the engine was built, or the engine is another's",
                mend=_MEND,
            )
        )
    else:
        problems += _contradictions(record, bundle.manifest)
    if record.target != folder.name:
        problems.append(
            Problem(Code.BAD_MANIFEST, "target", got=record.target, expected=folder.name, mend=_MEND)
        )
    plan = folder / record.plan.path
    try:
        size: int | None = plan.stat().st_size
    except OSError:
        size = None
    if size != record.plan.bytes:
        problems.append(
            Problem(
                Code.DAMAGED,
                str(plan),
                got="no file" if size is None else f"{size} bytes",
                expected=f"{record.plan.bytes} bytes",
                cause="an incomplete copy of the bundle",
                mend=f"copy it again, or {_MEND}",
            )
        )
    return problems
