"""Running the command line as a user does, and in an interpreter that lacks packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from adexport.cli import cli


def run(*arguments: str | Path) -> Result:
    """One command, with stdout and stderr apart; only an exit is caught."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_json(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """The one object that a command prints with ``--json``."""
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ModuleNotFoundError(f"{name} is banned here", name=name)

sys.meta_path.insert(0, Blocker())
from importlib import util
find_spec = util.find_spec
util.find_spec = lambda name, *more: None if name.partition(".")[0] in BANNED else find_spec(name, *more)
from adexport.cli import main
sys.argv[0] = "adexport"
main()
"""


def run_without(banned: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """One command in a fresh interpreter in which some packages are not to be had."""
    return subprocess.run(
        [sys.executable, "-c", f"BANNED = {banned!r}\n{WITHOUT}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=dict(os.environ),
    )
