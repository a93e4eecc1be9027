"""``adexport generate``: continue prompts in one batch, with an adapter for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adexport_runtime.engine import Engine
from adexport_runtime.generation import Generated

from .console import fail, json_option, out, print_json, provider_option, refusals
from .run import BASE, rows_of

_Rows = Sequence[str | None]


@click.command(
    epilog="Example: adexport generate smol.bundle --chat --prompt 'Who are you?' --adapter acme "
    "--prompt 'Who are you?' --adapter -"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", multiple=True, required=True, help="A text to continue. Repeatable.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    help=f"The adapter of the prompt at the same place; {BASE} is the base. One for all, or one each.",
)
@click.option("--chat", is_flag=True, help="Prompts are what a user says: apply the chat template.")
@click.option("--system", help="With --chat: the system message.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: the likeliest token.")
@click.option("--top-k", type=int, help="Sample among so many likeliest tokens.")
@click.option("--top-p", type=float, help="Sample among the likeliest tokens of this probability.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, help="Row i draws with SEED + i. Default: afresh.")
@click.option("--stop", multiple=True, help="End before this string. Repeatable.")
@click.option("--max-batch", type=int, default=8, show_default=True, help="Rows that decode at once.")
@provider_option
@click.option(
    "--threads", default=0, type=click.IntRange(min=0), help="On the CPU; 0: ONNX Runtime chooses."
)
@json_option
@refusals()
def generate(
    bundle: Path,
    prompts: tuple[str, ...],
    adapters: tuple[str, ...],
    chat: bool,
    system: str | None,
    max_batch: int,
    provider: str,
    threads: int,
    as_json: bool,
    **settings: Any,
) -> None:
    """Continue prompts with BUNDLE, all in one batch, each with its own adapter; needs no torch."""
    if system is not None and not chat:
        raise click.UsageError("--system goes with --chat")
    rows = rows_of(adapters, len(prompts), "--prompt")
    asked: list[Any] = [_messages(prompt, system) for prompt in prompts] if chat else list(prompts)
    with (
        Engine.open(bundle, provider=provider, threads=threads) as engine,
        _shown(prompts, rows, quiet=as_json) as on_text,
    ):
        results = engine.generate(asked, rows, max_batch=max_batch, on_text=on_text, **settings)
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "rows": [_row(*row) for row in zip(prompts, rows, results, strict=True)],
            }
        )
    for result in results:
        if result.error is not None:
            fail(result.error)  # the object of --json is out already, and has it


def _messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]


def _row(prompt: str, adapter: str | None, result: Generated) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "adapter": adapter,
        "prompt_tokens": result.prompt_tokens,
        "ids": list(result.ids),
        "text": result.text,
        "reason": result.reason,
        "error": None if result.error is None else result.error.to_dict(),
    }


@contextmanager
def _shown(prompts: Sequence[str], rows: _Rows, *, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Shows texts as they come: one flows, several stand side by side, a file gets them when done."""
    texts = [""] * len(prompts)

    def keep(row: int, piece: str) -> None:
        texts[row] += piece

    if quiet:
        yield keep
        return
    if len(prompts) == 1:

        def flow(_row: int, piece: str) -> None:
            click.echo(piece, nl=False)

        yield flow
        click.echo()
        return

    def table() -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("prompt", "adapter", "text"):
            made.add_column(column, overflow="fold")
        for prompt, adapter, text in zip(prompts, rows, texts, strict=True):
            made.add_row(Text(prompt), Text(adapter or BASE), Text(text))
        return made

    if not out.is_terminal:
        yield keep
        for prompt, adapter, text in zip(prompts, rows, texts, strict=True):
            click.echo(f"{prompt}\n[{adapter or BASE}] {text}\n")
        return
    with Live(table(), console=out, auto_refresh=False) as live:

        def grow(row: int, piece: str) -> None:
            keep(row, piece)
            live.update(table(), refresh=True)

        yield grow
