"""What every verb shares: progress and messages on stderr, results on stdout, ``--json``."""

from __future__ import annotations

import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NoReturn, ParamSpec

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adexport_runtime.errors import AdexportError, Code, DependencyError, Problem

P = ParamSpec("P")

# results are data, often a user's own text: no markup is read in them
log = Console(stderr=True, highlight=False, markup=False)
out = Console(highlight=False, markup=False, soft_wrap=True)


def fail(error: AdexportError) -> NoReturn:
    """End with exit code 1: one paragraph on stderr."""
    click.echo(f"Error: {error}", err=True)
    sys.exit(1)


def refusals(json_flag: str = "as_json") -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Turn the library's errors into exit code 1; with ``--json``, the error is the one object."""

    def decorate(command: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(command)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                command(*args, **kwargs)
            except AdexportError as error:
                if kwargs.get(json_flag):
                    print_json(error.to_dict())
                fail(error)

        return wrapped

    return decorate


provider_option = click.option(
    "--provider",
    default="cpu",
    show_default=True,
    help="cpu; tensorrt: the engine in the bundle; ONNX Runtime's cuda, ort-tensorrt, ort-tensorrt-rtx.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


def print_json(value: dict[str, Any]) -> None:
    """The one object of ``--json``."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Show the steps of a long command on stderr: a spinner where there is a terminal."""
    with log.status("…") as status:

        def step(name: str) -> None:
            if log.is_terminal:
                status.update(f"{name} …")
            else:
                log.print(f"· {name}")

        yield step


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table on stdout; long cells are folded, never cut."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    out.print(made)


def need(package: str, extra: str, why: str) -> None:
    """Refuse early when a package is not installed.

    Raises:
        DependencyError: saying which extra brings it.
    """
    if find_spec(package) is None:
        raise DependencyError(
            f"{why} needs {package}",
            Problem(
                Code.PACKAGE_MISSING,
                package,
                got="no such package",
                mend=f"pip install 'adexport[{extra}]'",
            ),
        )


def quiet_transformers() -> None:
    """Keep transformers' bars, reports and deprecations off the terminal; refusals are ours."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
