"""The numbers of BENCHMARKS.md for models that generate: SmolLM2-135M-Instruct, eight adapters.

    decoder.py [--json FILE] [--genai FOLDER --adapters PEFT_FOLDER…]

Each measurement runs in a process of its own. ``--genai``: what ``generate_genai.py prepare`` made of the
same model, to be timed in turns with the runtime (where onnxruntime-genai is installed).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[2]))

from samples.smollm2 import smollm2_folder

from adexport.bench.decoding import Stepper, time_pair
from adexport.bench.report import machine
from adexport.bench.workload import make_workload
from adexport.build import build_model, lower_again
from adexport.options import BuildOptions
from adexport_runtime import Bundle, Engine

#: (threads, rank) of the tables
SETTINGS = ((1, 8), (1, 16), (2, 8), (2, 16))
KINDS = ("int8", "int4")
#: adapters of 16 bits
BANKS = "bf16"

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Build the bundle, run everything, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument("--genai", type=Path, help="what generate_genai.py prepared")
    parser.add_argument("--adapters", type=Path, nargs="*", help="the PEFT folders given to it")
    parser.add_argument("--bundle", type=Path, help="of SmolLM2, slots of rank 16; made if not given")
    parser.add_argument("--only-genai", action="store_true")
    chosen = parser.parse_args()
    everything: dict[str, Any] = {"machine": machine()}
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()))
    with tempfile.TemporaryDirectory() as scratch:
        bundle = chosen.bundle or Path(scratch) / "smollm2.bundle"
        if chosen.bundle is None:
            build_model(str(smollm2_folder()), bundle, options=BuildOptions(max_rank=16))
        if not chosen.only_genai:
            everything["generate"] = [measure(bundle, *one, chosen.repeats) for one in SETTINGS]
            narrow = Path(scratch) / "narrow.bundle"
            lower_again(bundle, narrow, options=BuildOptions(bank_dtype=BANKS), adapters=False)
            console.print(f"banks of {BANKS}:")
            everything[BANKS] = [measure(narrow, *one, chosen.repeats) for one in SETTINGS]
            everything["quantized"] = {
                kind: quantized(bundle, kind, Path(scratch), chosen.repeats) for kind in KINDS
            }
        if chosen.genai:
            everything["genai"] = [
                against_genai(bundle, chosen.genai, chosen.adapters, threads) for threads in (1, 2)
            ]
    if chosen.json:
        chosen.json.write_text(json.dumps(everything, indent=1))


def measure(bundle: Path, threads: int, rank: int, repeats: int) -> dict[str, Any]:
    """``adexport bench --task generate`` in a process of its own."""
    command = [sys.executable, "-c", "from adexport.cli import main; main()", "bench", str(bundle)]
    command += ["--task", "generate", "--json", "--threads", str(threads), "--rank", str(rank)]
    done = subprocess.run(
        [*command, "--repeats", str(repeats)], check=True, stdout=subprocess.PIPE, text=True
    )
    report: dict[str, Any] = json.loads(done.stdout)
    speed = report["throughput"]
    console.print(
        f"{threads} threads, rank {rank}: decode step {shown(report['decode'])}, prefill "
        f"{shown(report['prefill'])} of the base; together {speed['together']:.0f} tokens/s, "
        f"{speed['ratio']:.2f} times one by one"
    )
    return report


def quantized(bundle: Path, kind: str, scratch: Path, repeats: int) -> dict[str, Any]:
    """A step of one row, slots on, beside the same in float32."""
    target = scratch / f"{kind}.bundle"
    # int4 is timed although a model as small as this one is refused with it
    options = BuildOptions(quantize=kind, min_cosine=0.5)
    result = lower_again(bundle, target, options=options, adapters=False)
    assert result.quality is not None
    (scratch / f"{kind}.work").mkdir()
    workload = make_workload(
        Bundle.open(bundle),
        batch=1,
        seq=300,
        adapters=1,
        rank=16,
        threads=1,
        scratch=scratch / f"{kind}.work",
    )
    mine, other = Stepper(workload, target), Stepper(workload, bundle)
    mine.prefill(256)
    other.prefill(256)
    timing = time_pair(lambda: mine.step(256), lambda: other.step(256), 5 * repeats)
    found = {
        "cpu_ratio": timing.cpu_ratio.median,
        "cpu_ms": timing.cpu_ms,
        "fp32_cpu_ms": timing.other_cpu_ms,
        "cosine": result.quality.cosine,
        "top1": result.quality.top1,
        "bytes": sum(
            entry.bytes for entry in result.bundle.manifest.files if entry.path.startswith("weights")
        ),
    }
    console.print(f"{kind}: a step of one row takes {found['cpu_ratio']:.2f} of float32's")
    return found


def against_genai(bundle: Path, folder: Path, adapters: list[Path], threads: int) -> dict[str, Any]:
    """The same prompts, adapters and number of tokens, in turns; the tokens must be the same."""
    work = json.loads((folder / "work.json").read_text())
    names = [f"tenant{index}" for index in range(len(adapters))]
    rates = {"adexport": [], "genai": []}
    with Engine.open(bundle, threads=threads) as engine:
        for name, source in zip(names, adapters, strict=True):
            engine.bind(name, source)
        settings: dict[str, Any] = {"max_new_tokens": work["new_tokens"], "eos": ()}
        engine.generate(work["prompts"], names, max_new_tokens=2, eos=())
        for _ in range(3):
            script = Path(__file__).with_name("generate_genai.py")
            command = [sys.executable, str(script), "run", str(folder), "--threads", str(threads)]
            done = subprocess.run(
                [*command, "--repeats", "1"], check=True, stdout=subprocess.PIPE, text=True
            )
            theirs = json.loads(done.stdout.splitlines()[-1])
            start = time.perf_counter()
            found = engine.generate(work["prompts"], names, **settings)
            tokens = len(names) * work["new_tokens"]
            rates["adexport"].append(tokens / (time.perf_counter() - start))
            rates["genai"].append(theirs["new_tokens_per_s"])
            assert [list(result.ids) for result in found] == theirs["ids"]
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    ratio = medians["adexport"] / medians["genai"]
    console.print(f"{threads} threads: {medians} new tokens/s, {ratio:.2f} times as fast")
    return {**medians, "ratio": ratio, "threads": threads}


def shown(timing: dict[str, Any]) -> str:
    """A ratio with its quartiles."""
    ratio = timing["cpu_ratio"]
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"


if __name__ == "__main__":
    main()
