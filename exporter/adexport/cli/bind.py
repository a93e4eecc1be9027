"""``adexport bind``: an adapter checkpoint becomes data that a bundle serves."""

from __future__ import annotations

from pathlib import Path

import click

from adexport_runtime.bind import bind_into_bundle
from adexport_runtime.bound import BoundAdapter
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
@click.option("--labels", help="Names, with commas, for the labels of the adapter's own head.")
@click.option("--replace", is_flag=True, help="Take the place of an adapter of the same name.")
@json_option
@refusals()
def bind(
    adapter: Path, bundle: Path | None, name: str | None, labels: str | None, replace: bool, as_json: bool
) -> None:
    """Bind ADAPTER: a folder of PEFT or AdapterHub, its tensor file, or an already bound file.

    Needs no torch. What does not fit exactly is refused, and what was bound before stays.
    """
    opened = Bundle.open(bundle or Bundle.default())
    names = None if labels is None else [label.strip() for label in labels.split(",")]
    bound = bind_into_bundle(opened, adapter, name, labels=names, replace=replace)
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
                "bottlenecks": len(bound.widths),
                "width": max(bound.widths.values(), default=0),
                "labels": None if bound.head is None else list(bound.head.labels),
                "source_type": bound.source_type,
                "source_sha256": bound.source_sha256,
            }
        )
    else:
        parts = ", ".join([bound.source_type, *_parts(bound, opened), size(path.stat().st_size)])
        out.print(f"{bound.name} bound to {opened.root}: {parts}")


def _parts(bound: BoundAdapter, bundle: Bundle) -> list[str]:
    """What of the bundle's slots an adapter fills."""
    manifest = bundle.manifest
    parts = []
    if bound.ranks:
        rank = f", rank {bound.rank}" if bound.rank else ""
        parts.append(f"{len(bound.ranks)} of {len(manifest.sites)} sites{rank}")
    if bound.widths and manifest.bottlenecks is not None:
        places = len(manifest.bottlenecks.sites)
        parts.append(f"{len(bound.widths)} of {places} bottlenecks, width {max(bound.widths.values())}")
    if bound.head is not None:
        parts.append(f"a head of {len(bound.head.labels)} labels")
    return parts
