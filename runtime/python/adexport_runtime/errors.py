"""Everything adexport refuses, as one tree.

    AdexportError
    ├── BundleError        a bundle is absent, damaged, incomplete or of another version
    ├── AdapterError       an adapter is refused; what was bound before still serves
    ├── ProviderError      the execution provider that was asked for is not to be had
    ├── RequestError       the arguments of a call do not fit
    │   ├── UnknownAdapterError
    │   └── BankFullError
    ├── BuildError         a model cannot be exported, or an export failed its own check
    └── DependencyError    a package that this step needs is not installed

Every error carries ``problems``: all culprits that were found, not the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum


class Code(StrEnum):
    """Why something was refused. The values are part of the interface and shared with C++."""

    ABSENT = "absent"
    BAD_CONFIG = "bad-config"
    BAD_INPUT = "bad-input"
    BAD_MANIFEST = "bad-manifest"
    BAD_NAME = "bad-name"
    BANK_FULL = "bank-full"
    CLOSED = "closed"
    DAMAGED = "damaged"
    DUPLICATE_KEY = "duplicate-key"
    EMPTY_TENSOR = "empty-tensor"
    EXISTS = "exists"
    EXPORT_FAILED = "export-failed"
    HALF_MISSING = "half-missing"
    NO_SLOT = "no-slot"
    NOT_FINITE = "not-finite"
    NOT_SAFETENSORS = "not-safetensors"
    OVERFLOW = "overflow"
    PACKAGE_MISSING = "package-missing"
    PARITY = "parity"
    PROVIDER_UNAVAILABLE = "provider-unavailable"
    RANK_ABOVE_MAX = "rank-above-max"
    RANK_MISMATCH = "rank-mismatch"
    RUN_FAILED = "run-failed"
    SESSION_FULL = "session-full"
    SITE_MISSING = "site-missing"
    UNKNOWN_ADAPTER = "unknown-adapter"
    UNKNOWN_SITE = "unknown-site"
    UNKNOWN_TENSOR = "unknown-tensor"
    UNSUPPORTED = "unsupported"
    VERSION = "version"
    WRONG_BASE = "wrong-base"
    WRONG_DTYPE = "wrong-dtype"
    WRONG_SHAPE = "wrong-shape"


@dataclass(frozen=True)
class Problem:
    """One culprit: what it is, what was got and expected, the likely cause and the mend."""

    code: Code
    subject: str
    got: str = ""
    expected: str = ""
    cause: str = ""
    mend: str = ""


def _facts(problem: Problem) -> str:
    parts = []
    if problem.got:
        parts.append(f"got {problem.got}")
    if problem.expected:
        parts.append(f"expected {problem.expected}")
    return ", ".join(parts)


def _paragraph(problems: Sequence[Problem]) -> str:
    """All culprits as prose; those that differ only in their subject share one sentence."""
    groups: dict[Problem, list[str]] = {}
    for problem in problems:
        key = Problem(problem.code, "", *list(asdict(problem).values())[2:])
        groups.setdefault(key, []).append(problem.subject)
    sentences = []
    for key, subjects in groups.items():
        facts = _facts(key)
        count = f"{len(subjects)} × " if len(subjects) > 1 else ""
        sentence = f"{count}{', '.join(subjects)}: {facts}" if facts else f"{count}{', '.join(subjects)}"
        sentence += f" [{key.code}]."
        if key.cause:
            sentence += f" Likely cause: {key.cause}."
        if key.mend:
            sentence += f" To mend: {key.mend}."
        sentences.append(sentence)
    return " ".join(sentences)


def _without_nul(text: str) -> str:
    """What a damaged file names can hold NUL, and C strings, as those of the C++ runtime, end there."""
    return text.replace("\0", "\\x00")


def _printable(problem: Problem) -> Problem:
    _, *texts = asdict(problem).values()
    return Problem(problem.code, *map(_without_nul, texts))


class AdexportError(Exception):
    """Base of all errors that adexport raises on purpose.

    ``problems`` holds every culprit; ``str(error)`` is one paragraph that names them all.
    """

    def __init__(self, headline: str, problems: Problem | Iterable[Problem]) -> None:
        self.headline = _without_nul(headline)
        self.problems: tuple[Problem, ...] = tuple(
            _printable(problem) for problem in ((problems,) if isinstance(problems, Problem) else problems)
        )
        super().__init__(f"{self.headline}: {_paragraph(self.problems)}")

    @property
    def codes(self) -> frozenset[Code]:
        """The distinct codes among the problems."""
        return frozenset(problem.code for problem in self.problems)

    def to_dict(self) -> dict[str, object]:
        """The error as plain data, for ``--json`` and for logs."""
        return {
            "error": type(self).__name__,
            "headline": self.headline,
            "problems": [asdict(problem) for problem in self.problems],
        }


class BundleError(AdexportError):
    """A bundle is absent, damaged, incomplete or of another version."""


class AdapterError(AdexportError):
    """An adapter is refused. What was bound before is untouched and still serves."""


class ProviderError(AdexportError):
    """The execution provider that was asked for is not to be had here."""


class RequestError(AdexportError):
    """The arguments of a call do not fit the bundle."""


class UnknownAdapterError(RequestError):
    """A row asks for an adapter that is not bound."""


class BankFullError(RequestError):
    """A batch asks for more different adapters than the bank has rows."""


class BuildError(AdexportError):
    """A model cannot be exported, or the export failed its own check."""


class DependencyError(AdexportError):
    """A package that this step needs is not installed."""
