"""A bundle on disk: open it, check it, list the adapters bound for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import BundleError, Code, Problem
from .manifest import File, Manifest, parse_manifest
from .names import check_name

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
TRACE_FILE = "trace.onnx"
REFERENCE_FILE = "reference.safetensors"
WEIGHTS_FOLDER = "weights"
ADAPTERS_FOLDER = "adapters"
ENVIRONMENT = "ADEXPORT_BUNDLE"


def file_entry(root: Path, path: Path) -> File:
    """The manifest's record of a file: its path in the bundle, its size and its hash."""
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return File(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=digest)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its validated manifest."""

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle; its manifest is validated whole and every file's size is checked.

        Raises:
            BundleError: the folder is no bundle, or something in it is absent or truncated.
        """
        root = Path(path)
        headline = f"{root} is refused as a bundle"
        try:
            text = (root / MANIFEST_FILE).read_bytes()
        except OSError as error:
            raise BundleError(
                headline,
                Problem(
                    Code.ABSENT,
                    str(root / MANIFEST_FILE),
                    got=error.strerror or "no file",
                    cause="not a folder that `adexport build` wrote",
                    mend="adexport build MODEL -o BUNDLE",
                ),
            ) from error
        manifest = parse_manifest(text, str(root / MANIFEST_FILE))
        problems = [
            Problem(
                Code.DAMAGED,
                entry.path,
                got="no file" if size is None else f"{size} bytes",
                expected=f"{entry.bytes} bytes",
                cause="an incomplete copy of the bundle",
                mend="copy or build the bundle again",
            )
            for entry in manifest.files
            if (size := _size(root / entry.path)) != entry.bytes
        ]
        if problems:
            raise BundleError(headline, problems)
        return cls(root, manifest)

    @classmethod
    def default(cls, folder: Path | None = None) -> Path:
        """The bundle to use when none is named: ``$ADEXPORT_BUNDLE``, else the only one here.

        Raises:
            BundleError: there is none, or more than one.
        """
        if named := os.environ.get(ENVIRONMENT):
            return Path(named)
        here = folder or Path.cwd()
        found = sorted(
            manifest.parent
            for manifest in here.glob(f"*/{MANIFEST_FILE}")
            if manifest.parent.name[0] != "."  # what a killed build leaves is hidden
        )
        if len(found) == 1:
            return found[0]
        names = ", ".join(path.name for path in found)
        raise BundleError(
            "no bundle was named",
            Problem(
                Code.ABSENT,
                str(here),
                got=f"{len(found)} bundles ({names})" if found else "no bundle in this folder",
                expected="exactly one",
                mend=f"name one (-b BUNDLE) or set ${ENVIRONMENT}",
            ),
        )

    @property
    def model_path(self) -> Path:
        """The graph lowered for ONNX Runtime."""
        return self.root / MODEL_FILE

    def adapter_path(self, name: str) -> Path:
        """Where the adapter bound under ``name`` lies (whether or not it is there)."""
        return self.root / ADAPTERS_FOLDER / f"{check_name(name)}.safetensors"

    def adapters(self) -> Mapping[str, Path]:
        """The adapters bound for this bundle, by name."""
        folder = self.root / ADAPTERS_FOLDER
        return {path.stem: path for path in sorted(folder.glob("*.safetensors")) if path.name[0] != "."}

    def check_files(self) -> None:
        """Compare every file with its hash in the manifest (reads all of them).

        Raises:
            BundleError: naming every file that differs.
        """
        problems = [
            Problem(
                Code.DAMAGED,
                entry.path,
                got=found,
                expected=f"sha256 {entry.sha256}",
                cause="the file was changed after the build",
                mend="copy or build the bundle again",
            )
            for entry in self.manifest.files
            if (found := file_hash(self.root / entry.path)) != f"sha256 {entry.sha256}"
        ]
        if problems:
            raise BundleError(f"{self.root} is refused as a bundle", problems)


def file_hash(path: Path) -> str:
    """``sha256`` and the hash of a file, or why it cannot be read."""
    try:
        with path.open("rb") as content:
            return f"sha256 {hashlib.file_digest(content, 'sha256').hexdigest()}"
    except OSError as error:
        return error.strerror or "no file"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
