"""What building engines costs, on a machine without a GPU: seconds, memory, size of the plan.

``--naming`` builds each graph a second time with a name of its own for every rank, for the rows of a batch
and for those of ``adapter_ids``, as ``model.onnx`` has them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from adexport.bench.report import machine
from adexport.build import build_model, lower_again
from adexport.lower import TENSORRT, lower
from adexport.options import BuildOptions
from adexport.slots.again import plan_again
from adexport.tensorrt.child import order
from adexport.tensorrt.messages import Built, Job
from adexport_runtime import Bundle
from adexport_runtime.graph_io import ROWS, Tensor, engine_inputs, graph_inputs, graph_outputs
from adexport_runtime.profiles import Profile, default_profiles

GPUS = ("sm86", "sm89", "sm120")
#: what MiniLM with LoRA slots may take
GOAL = "15 s, 2 GB"

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Build every engine and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--naming", action="store_true", help="also with a name for every size")
    parser.add_argument("--smollm2", type=Path, help="a folder of SmolLM2-135M-Instruct")
    parser.add_argument("--json", type=Path, help="write everything there")
    chosen = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        console.print(", ".join(f"{key} {value}" for key, value in machine().items()))
        for name, bundle in bundles(Path(scratch), chosen.smollm2):
            for own_names in (False, True) if chosen.naming else (False,):
                results.append({"engine": name, "own names": own_names, **build(bundle, own_names)})
                console.print(str(results[-1]))
    table = Table(
        "engine", "names", "profiles", "seconds", "peak MB", "plan MB", title=f"goal for LoRA: {GOAL}"
    )
    for row in results:
        names = "each its own" if row["own names"] else "by kind"
        figures = (row["profiles"], row["seconds"], row["peak MB"], row["plan MB"])
        table.add_row(str(row["engine"]), names, *(str(figure) for figure in figures))
    console.print(table)
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine(), "engines": results}, indent=1))


def bundles(scratch: Path, smollm2: Path | None) -> list[tuple[str, Bundle]]:
    """MiniLM with LoRA, in each precision; with all kinds of slots; SmolLM2."""
    from encoder import minilm

    lora = scratch / "minilm.bundle"
    build_model(str(minilm()), lora)
    made = [("MiniLM, LoRA, fp32", Bundle.open(lora))]
    for dtype in ("fp16", "bf16"):
        result = lower_again(lora, scratch / f"{dtype}.bundle", options=BuildOptions(dtype=dtype))
        made.append((f"MiniLM, LoRA, {dtype}", result.bundle))
    kinds = BuildOptions(slots=("lora", "bias", "scale", "bottleneck"))
    made.append(
        (
            "MiniLM, LoRA, vectors, bottlenecks",
            lower_again(lora, scratch / "wide.bundle", options=kinds).bundle,
        )
    )
    if smollm2 is not None:
        options = BuildOptions(dtype="fp16")
        result = build_model(str(smollm2), scratch / "smollm2.bundle", options=options)
        made.append(("SmolLM2-135M, LoRA, fp16, steps and prompts", result.bundle))
    return made


def build(bundle: Bundle, own_names: bool) -> dict[str, float]:
    """One engine of the default profiles, and nothing else: no check of the graph."""
    manifest = bundle.manifest
    options = plan_again(bundle, BuildOptions()).lowering(manifest.base.dtype)
    graph = lower(ir.load(bundle.root / "trace.onnx"), replace(options), TENSORRT).graph
    inputs, profiles = engine_inputs(manifest), default_profiles(manifest)
    if own_names:
        inputs = _own(inputs, graph_inputs(manifest))
        shapes = {tensor.name: tensor.shape for tensor in inputs}
        for value in graph.graph.inputs:
            value.shape = ir.Shape(shapes[str(value.name)])
        profiles = tuple(_with_rows(profile) for profile in profiles)
    with tempfile.TemporaryDirectory() as folder:
        path, plan = Path(folder) / "model.onnx", Path(folder) / "model.plan"
        ir.save(graph, path, external_data="model.bin", alignment=64)
        job = Job(
            module="tensorrt_rtx",
            graph=str(path),
            plan=str(plan),
            inputs=inputs,
            outputs=graph_outputs(manifest),
            profiles=profiles,
            compute_capabilities=GPUS,
            memory_limit=None,
            tf32=False,
            timing=None,
        )
        built = order(job, lambda _: None)
        assert isinstance(built, Built)
        return {
            "profiles": len(profiles),
            "seconds": round(built.seconds, 1),
            "peak MB": round(built.peak_bytes / 1e6),
            "plan MB": round(plan.stat().st_size / 1e6, 1),
        }


def _own(inputs: tuple[Tensor, ...], names: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    shapes = {tensor.name: tensor.shape for tensor in names}
    return tuple(tensor.model_copy(update={"shape": shapes[tensor.name]}) for tensor in inputs)


def _with_rows(profile: Profile) -> Profile:
    return Profile(sizes={ROWS: profile.sizes["batch"], **profile.sizes})


if __name__ == "__main__":
    main()
