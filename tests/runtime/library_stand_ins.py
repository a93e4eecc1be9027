"""Shared libraries that stand for kernel libraries which neither runtime may take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

#: operators, but not ours
FOREIGN = """
void* RegisterCustomOps(void* options, const void* api) { return 0; }
"""
#: a library of ours, of before it had an interface number
VERSIONED = f"""
{FOREIGN}
const char* adexport_kernels_version(void) {{ return "0.0"; }}
const char* adexport_kernels_isa(void) {{ return "portable"; }}
"""


def compiled(source: str, target: Path) -> Path:
    """A shared library of C."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(target)]
    subprocess.run(command, input=source, text=True, check=True)
    return target


def of_interface(target: Path, number: int | None) -> Path:
    """A library that says it is of an interface; None: it says nothing of it."""
    more = "" if number is None else f"int adexport_kernels_interface(void) {{ return {number}; }}"
    return compiled(VERSIONED + more, target)
