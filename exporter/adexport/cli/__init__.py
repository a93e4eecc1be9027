"""The command line: one short file for each verb, and a line here for each."""

from __future__ import annotations

import signal
import sys

import click

from adexport_runtime.errors import AdexportError

from . import bench, bind, build, convert, generate, inspect, run, verify
from .console import fail

_VERBS = (
    build.build,
    convert.convert,
    bind.bind,
    inspect.inspect,
    verify.verify,
    run.run,
    generate.generate,
    bench.bench,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="adexport", prog_name="adexport")
def cli() -> None:
    """Export a frozen transformer once; bind many tenants' adapters to it, one for each row.

    Exit codes: 0 done, 1 refused (with the reason), 2 wrong usage.
    """


for _verb in _VERBS:
    cli.add_command(_verb)


def main() -> None:
    """Run the command line; a refusal becomes its message and exit code 1.

    A SIGTERM ends it as a Ctrl-C does: what is half written is removed.
    """
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        cli.main(standalone_mode=True)
    except AdexportError as error:
        fail(error)
