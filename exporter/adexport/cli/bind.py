"""``adexport bind``: an adapter checkpoint becomes data that a bundle serves."""

from __future__ import annotations

from pathlib import Path

import click

from adexport_runtime.bind import bind_into_bundle
from adexport_runtime.bundle import Bundle

from .console import json_option, out, print_json, refusals, size

bundle_option = click.option(
    "-b",
    "--bundle",
    type=click.Path(path_type=Path),
    help="Default: $ADEXPORT_BUNDLE, else the only bundle in this folder.",
)


@click.command(epilog="Example: adexport bind ./acme-lora -b minilm.bundle --name acme")
@click.argument("adapter", type=click.Path(path_type=Path))
@bundle_option
@click.option("--name", help="The tenant's id. Default: the name of the folder or file.")
@click.option("--replace", is_flag=True, help="Take the place of an adapter of the same name.")
@json_option
@refusals()
def bind(adapter: Path, bundle: Path | None, name: str | None, replace: bool, as_json: bool) -> None:
    """Bind ADAPTER: a PEFT folder, its adapter_model.safetensors, or an already bound file.

    Needs no torch. What does not fit exactly is refused, and what was bound before stays.
    """
    opened = Bundle.open(bundle or Bundle.default())
    bound = bind_into_bundle(opened, adapter, name, replace=replace)
    path = opened.adapter_path(bound.name)
    if as_json:
        print_json(
            {
                "name": bound.name,
                "bundle": str(opened.root),
                "file": str(path),
                "bytes": path.stat().st_size,
                "sites": len(bound.ranks),
                "rank": bound.rank,
                "source_type": bound.source_type,
                "source_sha256": bound.source_sha256,
            }
        )
    else:
        out.print(
            f"{bound.name} bound to {opened.root}: {bound.source_type}, "
            f"{len(bound.ranks)} of {len(opened.manifest.sites)} sites, rank {bound.rank}, "
            f"{size(path.stat().st_size)}"
        )
