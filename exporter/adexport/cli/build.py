"""``adexport build``: a model becomes a bundle, a bundle is lowered again, or gets an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import click

from adexport_runtime.bundle import MANIFEST_FILE
from adexport_runtime.engine_file import ENGINES_FOLDER, engine_targets
from adexport_runtime.errors import AdexportError
from adexport_runtime.manifest import Task
from adexport_runtime.slots import Activation

from ..options import DEFAULT_OPSET, TOLERANCE, BuildOptions, EngineOptions
from ..progress import Progress
from ..quantization import INT4, INT8, METHODS, NONE
from ..slots.kinds import ACTIVATIONS, DEFAULT_FORMS, FORMS
from ..slots.targets import parse_targets
from .build_report import show, summary
from .console import json_option, need, print_json, quiet_transformers, refusals, steps
from .engine_options import engine_options

if TYPE_CHECKING:
    from adexport_runtime.engine_file import EngineFile

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
    "--bank-dtype",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Of adapters in memory, under a float32 base: 16 bits halve it, and round them. Default: fp32",
)
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
@engine_options
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
    bank_dtype: str | None,
    quantize: str | None,
    quantize_method: str | None,
    quantize_also: str | None,
    min_cosine: float | None,
    opset: int | None,
    tolerance: float | None,
    force: bool,
    engine: EngineOptions | None,
    as_json: bool,
) -> None:
    """Export MODEL (a transformers folder or a hub id) once, into a bundle.

    MODEL may also be a bundle: its trace is lowered again, with other slots, precision or
    quantization, without torch. Without -o the bundle itself is replaced, whole; bound adapters stay.

    With --target tensorrt the bundle gets an engine, too; a bundle that is given without other options
    gets nothing else.
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
        bank_dtype=bank_dtype,
        quantize=quantize,
        quantize_method=quantize_method,
        quantize_also=() if quantize_also == "none" else _names(quantize_also),
        min_cosine=min_cosine,
        tolerance=TOLERANCE["fp32"] if tolerance is None else tolerance,
    )
    for package in ("onnx", "onnx_ir"):
        need(package, "lower", "lowering a graph")
    again = (Path(model) / MANIFEST_FILE).exists()
    if again and (task is not None or opset is not None):
        raise click.UsageError("--task and --opset are chosen when a model is traced, not again")
    from ..build import build_model, lower_again
    from ..tensorrt.builder import add_engine, check_tool

    result: BuildResult | None = None
    added: EngineFile | None = None
    engines = () if output is None else engine_targets(output)
    with steps() as progress:
        if engine is not None:
            check_tool(engine)
        if engine is not None and again and options == BuildOptions() and tolerance is None:
            added = add_engine(Path(model), output, options=engine, force=force, progress=progress)
        elif again:
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
        if engine is not None and result is not None:
            added = _engine_of(result, engine, options, progress)
    if as_json:
        print_json(summary(result, added, engines))
    else:
        show(result, added, engines)


def _engine_of(
    result: BuildResult, options: EngineOptions, asked: BuildOptions, progress: Progress
) -> EngineFile:
    """The engine of a bundle that was just built; without one, the bundle stands all the same."""
    from ..tensorrt.builder import build_engine

    try:
        return build_engine(result.bundle, options, asked=asked, progress=progress)
    except AdexportError as error:
        gone = "".join(f", and {ENGINES_FOLDER}/{target} is gone" for target in result.engines_left)
        headline = f"{result.bundle.root} is built, its engine is not{gone}: {error.headline}"
        raise type(error)(headline, error.problems) from error


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
