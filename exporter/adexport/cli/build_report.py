"""What ``adexport build`` says of what it built: as data, and for people."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from adexport_runtime.engine_file import EngineFile, engine_targets
from adexport_runtime.manifest import Manifest

from .console import out, size
from .engine_facts import engine_facts, engine_lines, left_notes

if TYPE_CHECKING:
    from ..build import BuildResult


def summary(
    result: BuildResult | None, engine: EngineFile | None, before: Collection[str] = ()
) -> dict[str, Any]:
    """A bundle that was built, the engine that it got, or both; ``before``: engines that stood there."""
    facts = None if engine is None else engine_facts(engine)
    if result is None:
        assert engine is not None
        return {"bundle": str(engine.folder.parent.parent), "engine": facts, "notes": _gone(engine, before)}
    manifest = result.bundle.manifest
    return {
        "bundle": str(result.bundle.root),
        "base": manifest.base.model_dump(),
        "slots": list(manifest.slots),
        "sites": len(manifest.sites),
        "bottleneck_sites": len(manifest.bottlenecks.sites) if manifest.bottlenecks else 0,
        "max_rank": manifest.limits.max_rank,
        "bytes": sum(entry.bytes for entry in manifest.files),
        "differences": dict(result.differences),
        "quality": None if result.quality is None else result.quality.to_dict(),
        "engine": facts,
        "notes": _notes(result, engine),
    }


def show(result: BuildResult | None, engine: EngineFile | None, before: Collection[str] = ()) -> None:
    """A bundle that was built, the engine that it got, or both; ``before``: engines that stood there."""
    if result is not None:
        _show_bundle(result)
    elif engine is not None:
        out.print(f"{engine.folder}:")
    for line in () if engine is None else engine_lines(engine_facts(engine)):
        out.print(f"  {line}")
    for note in _gone(engine, before) if result is None else _notes(result, engine):
        out.print(f"  note       {note}")


def _gone(engine: EngineFile | None, before: Collection[str]) -> list[str]:
    """Notes on engines of a bundle whose place a copy with an engine has taken."""
    there = () if engine is None else engine_targets(engine.folder.parent.parent)
    return left_notes(set(before).difference(there))


def _notes(result: BuildResult, engine: EngineFile | None) -> list[str]:
    built = () if engine is None else (engine.record.target,)
    notes = [*result.notes, *left_notes(set(result.engines_left).difference(built))]
    if result.bundle.manifest.base.dtype == "bf16":
        notes.append("bf16 was checked in float32 on the rounded weights: no CPU kernels")
    return notes


def _slots(manifest: Manifest) -> list[str]:
    lines = []
    if manifest.sites:
        kinds = ", ".join(kind for kind in manifest.slots if kind not in ("bottleneck", "head"))
        lines.append(
            f"{kinds} at {len(manifest.sites)} linear layers, rank up to {manifest.limits.max_rank}"
        )
    if manifest.bottlenecks:
        number = len(manifest.bottlenecks.sites)
        lines.append(f"bottleneck at {number} places, width up to {manifest.limits.max_width}")
    if manifest.head:
        lines.append(f"head on {' or '.join(manifest.head.inputs)}")
    return lines


def _show_bundle(result: BuildResult) -> None:
    manifest = result.bundle.manifest
    out.print(f"{result.bundle.root}: {manifest.base.architecture}, {manifest.base.dtype}")
    for line in _slots(manifest) or ["none"]:
        out.print(f"  slots      {line}")
    out.print(f"  size       {size(sum(entry.bytes for entry in manifest.files))}")
    as_built = "as built" if manifest.base.quantization is None else "before quantization"
    for kind in ("torch", manifest.base.dtype):
        worst = max(value for name, value in result.differences.items() if name.startswith(f"{kind} "))
        out.print(
            f"  parity     {'float32 to torch' if kind == 'torch' else f'{as_built} ({kind})'}: {worst:.1e}"
        )
    if manifest.base.quantization is not None and result.quality is not None:
        quality = result.quality
        out.print(f"  quantized  {manifest.base.quantization.words}")
        top1 = "" if quality.top1 is None else f", same first choice {quality.top1:.1%}"
        where = "on real texts" if quality.texts else "on the reference's batches"
        least = f"{quality.smallest:.4f} at the worst place"
        out.print(f"  quality    cosine {quality.cosine:.4f}, {least}{top1}, {where}")
