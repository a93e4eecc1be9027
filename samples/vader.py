"""Real data for the samples: short texts of four domains with human sentiment scores.

The VADER authors' ground truth (C.J. Hutto and E. Gilbert, ICWSM 2014; MIT) travels in the source
archive of the ``vaderSentiment`` package; it is fetched once through pip.
"""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

PACKAGE = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "assets"

_FILES = {
    "tweets": "tweets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}


class Example(NamedTuple):
    """A text and whether people found it positive (1) or negative (0)."""

    text: str
    label: int


def load(domain: str, seed: int = 0) -> list[Example]:
    """All clearly positive or negative texts of a domain, shuffled."""
    with tarfile.open(_archive()) as outer:
        inner = next(m for m in outer.getmembers() if m.name.endswith("hutto_ICWSM_2014.tar.gz"))
        content = outer.extractfile(inner)
        assert content is not None
        with tarfile.open(fileobj=io.BytesIO(content.read())) as data:
            member = next(m for m in data.getmembers() if m.name.endswith(f"/{_FILES[domain]}"))
            text = data.extractfile(member)
            assert text is not None
            lines = text.read().decode("utf-8", errors="replace").splitlines()
    examples = []
    for line in lines:
        fields = line.split("\t")
        if len(fields) >= 3 and abs(float(fields[1])) > 0.5:
            examples.append(Example(fields[2].strip(), int(float(fields[1]) > 0)))
    random.Random(seed).shuffle(examples)
    return examples


def _archive() -> Path:
    path = CACHE / "vaderSentiment-3.3.2.tar.gz"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--no-binary", ":all:", "--dest", str(CACHE), PACKAGE], check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path} has sha256 {found}, not {SHA256}: remove it and try again")
    return path
