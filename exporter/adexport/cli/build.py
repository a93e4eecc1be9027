"""``adexport build``: a model becomes a bundle, or a bundle is lowered again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import click

from adexport_runtime.bundle import MANIFEST_FILE
from adexport_runtime.manifest import Manifest, Task
from adexport_runtime.slots import Activation

from ..options import DEFAULT_OPSET, TOLERANCE, BuildOptions
from ..quantization import INT4, INT8, METHODS, NONE
from ..slots.kinds import ACTIVATIONS, DEFAULT_FORMS, FORMS
from ..slots.targets import parse_targets
from .console import json_option, need, out, print_json, quiet_transformers, refusals, size, steps

if TYPE_CHECKING:
    from ..build import BuildResult

_TASKS = ("auto", *get_args(Task))


@click.command(epilog="Example: adexport build ./all-MiniLM-L6-v2 -o minilm.bundle --max-rank 32")
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: ./<model>.bundle")
@click.option("--task", type=click.Choice(_TASKS), default=None, help="Default: what the config says.")
@click.option(
    "--targets",
    help="Where slots go: module names with commas, or a regex, as PEFT takes them. "
    "Default: all linear layers of the blocks.",
)
@click.option(
    "--like",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Take sites and the largest rank from a real adapter. Repeatable.",
)
@click.option("--max-rank", type=click.IntRange(min=1), help="Largest rank to accept. Default: 64")
@click.option("--max-width", type=click.IntRange(min=1), help="Widest bottleneck to accept. Default: 64")
@click.option(
    "--slots",
    help="What adapters may bring, with commas: lora, bias, scale (for every linear adapter), bottleneck, "
    "head; or none: the plain base. Default: lora, or what --like needs.",
)
@click.option(
    "--bottlenecks",
    help=f"Forms of bottlenecks to take, with commas: {', '.join(FORMS)}. "
    f"Default: {','.join(DEFAULT_FORMS)}, or those of --like.",
)
@click.option(
    "--activations",
    help=f"What may stand between the layers of bottlenecks and heads: {', '.join(ACTIVATIONS)}.",
)
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help="Default: fp32")
@click.option(
    "--quantize",
    type=click.Choice([INT8, INT4, NONE]),
    help="Store the frozen weights as integers; slots stay float. Default: none, or what the bundle has.",
)
@click.option(
    "--quantize-method",
    type=click.Choice(METHODS),
    help="Default: weight-only for text-generation, else dynamic (int8 activations, scaled by token).",
)
@click.option(
    "--quantize-also",
    help="What else than the layers of the blocks, with commas: embeddings, lm_head (the layer of the "
    "logits); or none. Default: lm_head for text-generation, else none.",
)
@click.option(
    "--min-cosine",
    type=float,
    help="Mean cosine to the float outputs, at least. Default: 0.999 (dynamic: 0.98; int4: 0.96).",
)
@click.option("--opset", type=int, help=f"ONNX opset of the graphs. Default: {DEFAULT_OPSET}")
@click.option("--tolerance", type=float, help="Largest relative difference from torch. Default: 1e-5")
@click.option("--force", is_flag=True, help="Replace the bundle that stands there.")
@json_option
@refusals()
def build(
    model: str,
    output: Path | None,
    task: str | None,
    targets: str | None,
    like: tuple[Path, ...],
    max_rank: int | None,
    max_width: int | None,
    slots: str | None,
    bottlenecks: str | None,
    activations: str | None,
    dtype: str | None,
    quantize: str | None,
    quantize_method: str | None,
    quantize_also: str | None,
    min_cosine: float | None,
    opset: int | None,
    tolerance: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export MODEL (a transformers folder or a hub id) once, into a bundle.

    MODEL may also be a bundle: its trace is lowered again, with other slots, precision or
    quantization, without torch. Without -o the bundle itself is replaced, whole; bound adapters stay.
    """
    if targets is not None and like:
        raise click.UsageError("give --targets or --like, not both")
    options = BuildOptions(
        targets=parse_targets(targets),
        like=like,
        max_rank=max_rank,
        max_width=max_width,
        slots=() if slots == "none" else _names(slots),
        bottlenecks=_names(bottlenecks),
        activations=cast("tuple[Activation, ...] | None", _names(activations)),
        dtype=dtype,
        quantize=quantize,
        quantize_method=quantize_method,
        quantize_also=() if quantize_also == "none" else _names(quantize_also),
        min_cosine=min_cosine,
        tolerance=TOLERANCE["fp32"] if tolerance is None else tolerance,
    )
    for package in ("onnx", "onnx_ir"):
        need(package, "lower", "lowering a graph")
    from ..build import build_model, lower_again

    with steps() as progress:
        if (Path(model) / MANIFEST_FILE).exists():
            if task is not None or opset is not None:
                raise click.UsageError("--task and --opset are chosen when a model is traced, not again")
            result = lower_again(Path(model), output, options=options, force=force, progress=progress)
        else:
            need("torch", "export", "tracing a model")
            need("transformers", "export", "tracing a model")
            quiet_transformers()
            result = build_model(
                model,
                output,
                task=task or "auto",
                opset=opset or DEFAULT_OPSET,
                options=options,
                force=force,
                progress=progress,
            )
    if as_json:
        print_json(_summary(result))
    else:
        _show(result)


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _summary(result: BuildResult) -> dict[str, object]:
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
        "notes": list(result.notes),
    }


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


def _show(result: BuildResult) -> None:
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
    for note in result.notes:
        out.print(f"  note       {note}")
    if manifest.base.dtype == "bf16":
        out.print("  note       bf16 was checked in float32 on the rounded weights: no CPU kernels")
