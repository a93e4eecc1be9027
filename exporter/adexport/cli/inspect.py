"""``adexport inspect``: what a bundle, a bound adapter or a foreign adapter is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from adexport_runtime.adapters import CONFIG_FILE, read_adapter
from adexport_runtime.bound import BoundAdapter, is_bound
from adexport_runtime.bundle import MANIFEST_FILE, Bundle
from adexport_runtime.errors import Problem
from adexport_runtime.tensors import peek_metadata

from .console import json_option, out, print_json, refusals, size


@click.command(epilog="Example: adexport inspect minilm.bundle --check")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Of a bundle: read every file and compare its hash.")
@json_option
@refusals()
def inspect(path: Path, check: bool, as_json: bool) -> None:
    """Show what PATH is: a bundle, a bound adapter, or a foreign adapter; needs no torch."""
    if (path / MANIFEST_FILE).exists():
        facts = _bundle(path, check)
    elif path.is_file() and path.name != CONFIG_FILE and is_bound(peek_metadata(path)):
        facts = _bound(path)
    else:
        facts = _foreign(path)
    if as_json:
        print_json(facts)
    else:
        _show(facts)


def _bundle(path: Path, check: bool) -> dict[str, Any]:
    bundle = Bundle.open(path)
    if check:
        bundle.check_files()
    manifest = bundle.manifest
    base = manifest.base
    return {
        "kind": "bundle",
        "path": str(path),
        "format_version": manifest.format_version,
        "base": base.name,
        "source": base.source,
        "architecture": base.architecture,
        "task": base.task,
        "dtype": base.dtype,
        "fingerprint": base.fingerprint,
        "opset": manifest.opset,
        "max_positions": base.max_positions,
        "labels": list(base.labels),
        "inputs": {i.name: f"{i.dtype} {_shape(i.shape)}" for i in manifest.inputs},
        "outputs": {o.name: f"{o.dtype} {_shape(o.shape)}" for o in manifest.outputs},
        "slots": list(manifest.slots),
        "max_rank": manifest.limits.max_rank,
        "sites": {s.path: [s.in_features, s.out_features] for s in manifest.sites},
        "adapters": {name: _brief(file) for name, file in bundle.adapters().items()},
        "bytes": sum(entry.bytes for entry in manifest.files),
        "files": {entry.path: entry.bytes for entry in manifest.files},
        "files_checked": check,
        "tools": manifest.tools,
    }


def _brief(path: Path) -> dict[str, Any]:
    adapter = BoundAdapter.read(path)
    return {"sites": len(adapter.ranks), "rank": adapter.rank, "bytes": path.stat().st_size}


def _bound(path: Path) -> dict[str, Any]:
    adapter = BoundAdapter.read(path)
    return {
        "kind": "bound adapter",
        "path": str(path),
        "name": adapter.name,
        "source_type": adapter.source_type,
        "source_sha256": adapter.source_sha256,
        "base_fingerprint": adapter.base_fingerprint,
        "rank": adapter.rank,
        "sites": adapter.ranks,
        "bytes": path.stat().st_size,
    }


def _foreign(path: Path) -> dict[str, Any]:
    adapter = read_adapter(path)
    ranks = {module: weights.rank for module, weights in adapter.linears.items()}
    return {
        "kind": "foreign adapter",
        "path": str(path),
        "source_type": adapter.source_type,
        "source_sha256": adapter.sha256,
        "base": adapter.base_name,
        "rank": max(ranks.values(), default=0),
        "sites": ranks,
        "bytes": path.stat().st_size,
        "problems": [_problem(problem) for problem in adapter.problems],
    }


def _problem(problem: Problem) -> dict[str, str]:
    return {key: str(value) for key, value in vars(problem).items() if value}


def _shape(shape: Iterable[object]) -> str:
    return f"[{', '.join(str(part) for part in shape)}]"


def _show(facts: Mapping[str, Any]) -> None:
    for key, value in facts.items():
        if key in ("sites", "files", "problems", "adapters", "tools"):
            continue
        if key == "bytes":
            value = size(value)
        elif isinstance(value, dict):
            value = ", ".join(f"{name} {detail}" for name, detail in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        out.print(f"{key.replace('_', ' '):17} {value}")
    _show_sites(facts["sites"])
    for name, brief in facts.get("adapters", {}).items():
        out.print(f"adapter {name}: {brief['sites']} sites, rank {brief['rank']}, {size(brief['bytes'])}")
    for problem in facts.get("problems", ()):
        out.print("problem " + "; ".join(f"{key} {value}" for key, value in problem.items()))


def _show_sites(sites: Mapping[str, Any]) -> None:
    """Sites, with those that differ only in the block's number put together."""
    groups: Counter[tuple[str, str]] = Counter()
    for path, detail in sites.items():
        pattern = ".".join("*" if part.isdigit() else part for part in path.split("."))
        text = f"{detail[0]} → {detail[1]}" if isinstance(detail, list) else f"rank {detail}"
        groups[pattern, text] += 1
    out.print(f"{len(sites)} sites" + (":" if sites else ""))
    for (pattern, text), count in groups.items():
        out.print(f"  {count:3} × {pattern}  {text}")
