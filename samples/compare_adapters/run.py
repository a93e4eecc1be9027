"""LoRA and bottleneck adapters of two libraries on one exported encoder: what they gain, what they cost.

Everything but the training is what a user would do; the commands it stands for are printed.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# torch's idle threads sleep: beside other work they would cost more time than they save
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import transformers
from rich.progress import track
from transformers import AutoTokenizer

from adexport import BuildOptions, build_model
from adexport.bench.measure import Quartiles
from adexport_runtime import BoundAdapter, Bundle, Engine, bind_into_bundle
from adexport_runtime.tensors import Array

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import environment
import latency
import minilm
import train_peft
from compared import BOTTLENECKS, DOMAINS, FAMILIES, LABELS, TEST, Family, Texts, load
from console import console, done, near, say, step, terminal
from report import Result, accuracy, costs, draw, gains, ratio
from training import encode

HERE = Path(__file__).resolve().parents[2] / ".cache" / "compare_adapters"
SLOTS = ("lora", "bottleneck", "head")
#: the largest difference of two logits, in torch and in the runtime
ALLOWED = 2e-5
ROWS = 32

#: float32 ``[held-out texts, labels]`` by family and domain
Logits = dict[tuple[Family, str], Array]


def main() -> None:
    """Run the whole comparison."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    shutil.rmtree(HERE, ignore_errors=True)
    (HERE / "logits").mkdir(parents=True)
    base = str(minilm.folder())
    bundle, alone = HERE / "encoder.bundle", HERE / "alone"
    with step("fetch the data (VADER ground truth, four domains)"):
        data = {domain: load(domain) for domain in DOMAINS}
    with step(f"adexport build MiniLM --task text-classification --slots {','.join(SLOTS)}"):
        build_model(base, bundle, task="text-classification", options=BuildOptions(slots=SLOTS))
    train(base, data)
    with step(f"adexport build {bundle.name} --like … for each family; build MiniLM --slots none"):
        alone.mkdir()
        latency.build_plain(base, alone)
        for family in FAMILIES:
            adapters = [family.folder(HERE, domain) for domain in DOMAINS]
            latency.build_alone(family, bundle, alone, adapters)
    with step(f"adexport bind {len(FAMILIES) * len(DOMAINS)} adapters -b {bundle.name}"):
        for family in FAMILIES:
            for domain in DOMAINS:
                folder = family.folder(HERE, domain)
                bind_into_bundle(Bundle.open(bundle), folder, family.adapter(domain))
    logits = run_mixed(base, bundle, data)
    worst = compare(logits)
    with step(f"time {latency.ROWS} rows of {latency.TOKENS} tokens, {latency.ROUNDS} rounds, one thread"):
        ratios = latency.measure(bundle, alone, ALLOWED)
    shutil.rmtree(alone)

    results = [judge(family, Bundle.open(bundle), data, logits, ratios[family.name]) for family in FAMILIES]
    console.print(gains(results, data))
    say(
        "Every prediction is that of the library that trained the adapter; the largest difference of a "
        f"logit is [bold]{worst:.1e}[/bold] (allowed {ALLOWED:.0e}).\n"
    )
    console.print(costs(results))
    say(
        "Latency is CPU time, as a multiple of that of the base without slots (quartiles); each family "
        f"runs in a graph with its own slots only.\nIn {bundle.name}, with slots for all of them, a batch "
        f"with rows of every family takes [bold]{ratio(ratios[latency.MIXED])}[/bold]."
    )
    picture = HERE / "accuracy-vs-latency.png"
    draw(results, f"{latency.ROWS} × {latency.TOKENS} tokens, one thread", picture)
    say(f"\nThe picture: {near(picture)}")


def train(base: str, data: Mapping[str, Texts]) -> None:
    """Train every family for every domain, each with a head of its own."""
    started = time.perf_counter()
    for domain, texts in track(data.items(), "train the LoRAs", console=terminal, transient=True):
        train_peft.train_one(domain, base, HERE, texts)
    done(f"train {len(data)} LoRAs with PEFT, each with a head", started)
    if not environment.ready():
        with step(f"make an environment for the adapters library: {near(environment.FOLDER)}"):
            environment.make()
    started, number = time.perf_counter(), len(BOTTLENECKS) * len(data)
    names = environment.train(base, HERE)
    for _ in track(names, "train the bottlenecks", total=number, console=terminal, transient=True):
        pass
    done(f"train {number} bottleneck adapters with AdapterHub's library, each with a head", started)


def run_mixed(base: str, bundle: Path, data: Mapping[str, Texts]) -> Logits:
    """Logits ``[texts, labels]`` of every adapter, from batches whose rows are of any family and domain."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [(family, domain, index) for family in FAMILIES for domain in DOMAINS for index in range(TEST)]
    texts = {(domain, index): data[domain].held_out[index].text for _, domain, index in rows}
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda row: len(texts[row[1:]]))
    batches = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    logits = {(family, domain): np.empty((TEST, len(LABELS)), np.float32) for family, domain, _ in rows}
    tenants = []
    started = time.perf_counter()
    with Engine.open(bundle, spin=False) as engine:
        for batch in track(batches, "run mixed batches", console=terminal, transient=True):
            names = [family.adapter(domain) for family, domain, _ in batch]
            inputs = encode(tokenizer, [texts[row[1:]] for row in batch])
            outputs = engine.run({name: ids.numpy() for name, ids in inputs.items()}, names)
            for number, (family, domain, index) in enumerate(batch):
                logits[family, domain][index] = outputs.row(number)["logits"]
            tenants.append(len(set(names)))
    done(
        f"run {len(rows)} rows in mixed batches of {ROWS}, with {np.mean(tenants):.0f} different adapters "
        "in each",
        started,
    )
    return logits


def compare(logits: Logits) -> float:
    """Hold the runtime to what torch computed; returns the largest difference of a logit."""
    worst = 0.0
    for (family, domain), found in logits.items():
        expected = np.load(family.logits(HERE, domain))
        difference = float(np.abs(found - expected).max())
        assert difference <= ALLOWED, f"{family.adapter(domain)}: a logit differs by {difference:.1e}"
        assert (found.argmax(1) == expected.argmax(1)).all(), f"{family.adapter(domain)} predicts otherwise"
        worst = max(worst, difference)
    return worst


def judge(
    family: Family, bundle: Bundle, data: Mapping[str, Texts], logits: Logits, latency: Quartiles
) -> Result:
    """What is known of a family, put together; its adapters for all domains are of one size."""
    size = sum(math.prod(weight.shape) for weight in bundle.manifest.weights)
    path = bundle.adapter_path(family.adapter(DOMAINS[0]))
    return Result(
        name=family.name,
        torch={d: accuracy(np.load(family.logits(HERE, d)), texts) for d, texts in data.items()},
        runtime={d: accuracy(logits[family, d], texts) for d, texts in data.items()},
        parameters=sum(tensor.size for tensor in BoundAdapter.read(path).tensors.values()) / size,
        file_bytes=path.stat().st_size,
        latency=latency,
    )


if __name__ == "__main__":
    main()
