"""``adexport inspect``: what a bundle, an engine, a bound adapter or a foreign adapter is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from adexport_runtime.adapters import CONFIG_FILE, read_adapter
from adexport_runtime.bound import BoundAdapter, is_bound
from adexport_runtime.bundle import MANIFEST_FILE, Bundle
from adexport_runtime.engine_file import RECORD_FILE
from adexport_runtime.environment import environment
from adexport_runtime.quantization import Quantization
from adexport_runtime.schema import Schema
from adexport_runtime.slots import BottleneckForm, Bottlenecks, Head
from adexport_runtime.tensors import peek_metadata

from ..slots.kinds import kinds_of
from .console import json_option, out, print_json, refusals, size
from .engine_facts import (
    bundle_engines,
    engine_line,
    gpus,
    inspect_engine,
    problem_facts,
    problem_line,
    tensor_words,
)

#: shown below the facts, or not at all
_BELOW = ("sites", "site_kinds", "widths", "files", "problems", "adapters", "engines", "tools")


@click.command(epilog="Example: adexport inspect minilm.bundle --check")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--check",
    is_flag=True,
    help="Of a bundle or an engine: read every file and compare its hash; refuse engines that do not fit.",
)
@click.option(
    "--environment",
    "here",
    is_flag=True,
    help="In place of PATH: versions, providers, and the kernel library that runs here.",
)
@json_option
@refusals()
def inspect(path: Path | None, check: bool, here: bool, as_json: bool) -> None:
    """Show what PATH is: a bundle, its engine, a bound or a foreign adapter; needs no torch."""
    if here == (path is not None) or (here and check):
        raise click.UsageError("give either PATH or --environment alone")
    if path is None:
        facts = environment()
    elif (path / MANIFEST_FILE).exists():
        facts = _bundle(path, check)
    elif (path / RECORD_FILE).exists():
        facts = inspect_engine(path, check)
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
        "bank_dtype": manifest.bank_dtype or base.dtype,
        "quantization": _dumped(base.quantization),
        "fingerprint": base.fingerprint,
        "opset": manifest.opset,
        "max_positions": base.max_positions,
        "labels": list(base.labels),
        "inputs": {i.name: tensor_words(i) for i in manifest.inputs},
        "outputs": {o.name: tensor_words(o) for o in manifest.outputs},
        "slots": list(manifest.slots),
        "max_rank": manifest.limits.max_rank,
        "max_width": manifest.limits.max_width,
        "sites": {s.path: [s.in_features, s.out_features] for s in manifest.sites},
        "site_kinds": {s.path: list(kinds_of(s.linear.factors)) for s in manifest.sites},
        "bottlenecks": None if manifest.bottlenecks is None else _bottlenecks(manifest.bottlenecks),
        "head": None if manifest.head is None else _head(manifest.head),
        "adapters": {name: _brief(file) for name, file in bundle.adapters().items()},
        "engines": bundle_engines(bundle, check),
        "bytes": sum(entry.bytes for entry in manifest.files),
        "files": {entry.path: entry.bytes for entry in manifest.files},
        "files_checked": check,
        "tools": manifest.tools,
    }


def _bottlenecks(bottlenecks: Bottlenecks) -> dict[str, Any]:
    return {
        "forms": [form.model_dump() for form in bottlenecks.forms],
        "activations": list(bottlenecks.activations),
        "sites": {
            site.path: {"layer": site.layer, "location": site.location, "features": site.features}
            for site in bottlenecks.sites
        },
    }


def _head(head: Head) -> dict[str, Any]:
    return {"features": head.features, "inputs": list(head.inputs), "activations": list(head.activations)}


def _brief(path: Path) -> dict[str, Any]:
    adapter = BoundAdapter.read(path)
    return {
        "sites": len(adapter.ranks),
        "rank": adapter.rank,
        "bottlenecks": len(adapter.widths),
        "width": max(adapter.widths.values(), default=0),
        "labels": None if adapter.head is None else list(adapter.head.labels),
        "bytes": path.stat().st_size,
    }


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
        "site_kinds": {path: list(kinds_of(factors)) for path, factors in adapter.factors.items()},
        "widths": adapter.widths,
        "bottleneck": _dumped(adapter.bottleneck),
        "head": _dumped(adapter.head),
        "bytes": path.stat().st_size,
    }


def _foreign(path: Path) -> dict[str, Any]:
    adapter = read_adapter(path)
    ranks = {module: update.rank for module, update in adapter.linears.items()}
    return {
        "kind": "foreign adapter",
        "path": str(path),
        "source_type": adapter.source_type,
        "source_sha256": adapter.sha256,
        "base": adapter.base_name,
        "rank": max(ranks.values(), default=0),
        "sites": ranks,
        "site_kinds": {module: list(kinds_of(update.kinds)) for module, update in adapter.linears.items()},
        "widths": {
            f"layer {layer}, {location}": weights.width
            for (layer, location), weights in sorted(adapter.bottlenecks.items())
        },
        "bottleneck": _dumped(adapter.style),
        "head": _dumped(adapter.head.style if adapter.head else None),
        "replaced": sorted(adapter.replaced),
        "bytes": sum(file.stat().st_size for file in path.iterdir())
        if path.is_dir()
        else path.stat().st_size,
        "problems": [problem_facts(problem) for problem in adapter.problems],
    }


def _dumped(style: Schema | None) -> dict[str, Any] | None:
    return None if style is None else style.model_dump(mode="json")


def _show(facts: Mapping[str, Any]) -> None:
    for key, value in facts.items():
        if key in _BELOW or (key in ("inputs", "outputs") and facts["kind"] == "engine"):
            continue
        out.print(f"{key.replace('_', ' '):17} {_text(key, value)}")
    if facts["kind"] == "engine":
        _show_sites("inputs", facts["inputs"])
        _show_sites("outputs", facts["outputs"])
    elif facts["kind"] != "environment":
        _show_slots(facts)
    for path, brief in facts.get("adapters", {}).items():
        out.print(f"adapter {path}: {_adapter(brief)}")
    for target, brief in facts.get("engines", {}).items():
        out.print(f"engine {target}: {engine_line(brief)}")
    for problem in facts.get("problems", ()):
        out.print(f"problem {problem_line(problem)}")


def _show_slots(facts: Mapping[str, Any]) -> None:
    _show_sites("sites", {path: _site(facts, path) for path in facts["sites"]})
    widths = {path: f"width {width}" for path, width in facts.get("widths", {}).items()}
    if facts.get("bottlenecks"):
        places = facts["bottlenecks"]["sites"].items()
        widths = {path: f"{place['features']} features, {place['location']}" for path, place in places}
    if widths:
        _show_sites("bottlenecks", widths)


def _text(key: str, value: Any) -> str:
    """A fact for people."""
    if key == "compute_capabilities":
        return gpus({key: value})
    if key == "profiles":
        return " | ".join(value)
    if value is None or value == []:
        return "none"
    if key in ("bytes", "peak_bytes"):
        return size(value)
    if key == "quantization":
        return Quantization(**value).words
    if key == "bottlenecks":
        forms = " or ".join(BottleneckForm(**form).brief for form in value["forms"])
        return f"{forms} with {', '.join(value['activations'])}"
    if key == "bottleneck":
        return f"{BottleneckForm(**value['form']).brief} with {value['activation']}"
    if key == "head" and "inputs" in value:
        return f"on {' or '.join(value['inputs'])} with {', '.join(value['activations'])}"
    if key == "head":
        activation = f" with {value['activation']}" if value["activation"] else ""
        return f"on {value['feature']}{activation}, labels {', '.join(value['labels']) or 'without names'}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {detail}" for name, detail in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def _site(facts: Mapping[str, Any], path: str) -> str:
    """What a linear layer has."""
    detail, kinds = facts["sites"][path], facts["site_kinds"][path]
    if isinstance(detail, list):
        return f"{detail[0]} → {detail[1]}  {', '.join(kinds)}"
    return ", ".join(f"rank {detail}" if kind == "lora" else kind for kind in kinds) or "rank 0"


def _adapter(brief: Mapping[str, Any]) -> str:
    parts = [f"{brief['sites']} sites, rank {brief['rank']}"] if brief["sites"] else []
    if brief["bottlenecks"]:
        parts.append(f"{brief['bottlenecks']} bottlenecks, width {brief['width']}")
    if brief["labels"] is not None:
        parts.append(f"a head of {len(brief['labels'])} labels")
    return ", ".join([*parts, size(brief["bytes"])])


def _show_sites(what: str, sites: Mapping[str, str]) -> None:
    """Sites, with those that differ only in the block's number put together."""
    groups: Counter[tuple[str, str]] = Counter()
    for path, text in sites.items():
        groups[re.sub(r"\b\d+\b", "*", path), text] += 1
    out.print(f"{len(sites)} {what}" + (":" if sites else ""))
    for (pattern, text), count in groups.items():
        out.print(f"  {count:3} × {pattern}  {text}")
