"""``adexport convert``: a pickled adapter becomes a folder of safetensors."""

from __future__ import annotations

from pathlib import Path

import click

from ..convert import convert as convert_adapter
from .console import json_option, need, out, print_json, refusals, size


@click.command(epilog="Example: adexport convert ./imdb-adapter -o imdb-safe")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The new folder: safetensors, and the configs as they are.",
)
@click.option("--force", is_flag=True, help="Replace the folder that stands there.")
@json_option
@refusals()
def convert(adapter: Path, output: Path, force: bool, as_json: bool) -> None:
    """Convert ADAPTER: a folder of AdapterHub or PEFT, or the .bin file in it, to safetensors.

    Nothing but tensors is read from a pickle (torch's weights_only), and no network is asked.
    """
    need("torch", "export", "adexport convert")
    made = convert_adapter(adapter, output, force=force)
    if as_json:
        print_json(
            {
                "output": str(output),
                "files": [
                    {
                        "source": str(one.source),
                        "file": one.name,
                        "tensors": one.tensors,
                        "bytes": one.bytes,
                    }
                    for one in made
                ],
            }
        )
        return
    for one in made:
        out.print(f"{one.source.name} → {output / one.name}: {one.tensors} tensors, {size(one.bytes)}")
    out.print(f"next: adexport bind {output} -b BUNDLE")
