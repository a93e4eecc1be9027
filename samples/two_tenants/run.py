"""Two tenants on one exported encoder: train, build, bind, run one mixed batch, compare with PEFT.

Everything but the training is what a user would do; the commands it stands for are printed.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from rich.table import Table
from rich.text import Text

from adexport import build_model, verify_bundle
from adexport_runtime import Bundle, Engine, bind_into_bundle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import vader
from console import console, near, say, step
from sentiment import train_base, train_tenant

HERE = Path(__file__).resolve().parents[2] / ".cache" / "two_tenants"
TENANTS = ("tweets", "movies")
TEST, TRAIN, EPOCHS = 300, 600, 2


def main() -> None:
    """Run the whole demo."""
    torch.manual_seed(0)
    random.seed(0)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    with step("fetch the data (VADER ground truth, four domains)"):
        data = {domain: vader.load(domain) for domain in (*TENANTS, "amazon")}
    base = HERE / "sentiment-base"
    train_base(base, data["amazon"])
    adapters = {tenant: HERE / "lora" / tenant for tenant in TENANTS}
    for tenant, folder in adapters.items():
        train_tenant(base, folder, data[tenant][TEST : TEST + TRAIN], EPOCHS)

    bundle = HERE / "sentiment.bundle"
    with step(f"adexport build {base.name} -o {bundle.name}"):
        build_model(str(base), bundle)
    for tenant, folder in adapters.items():
        with step(f"adexport bind lora/{tenant} -b {bundle.name}"):
            bind_into_bundle(Bundle.open(bundle), folder)
    with Engine.open(bundle) as engine:
        show_mixed_batch(engine, data)
        show_accuracy(engine, data)
    with step(f"adexport verify {bundle.name} lora/tweets lora/movies"):
        report = verify_bundle(bundle, list(adapters.values()))
    here, adexport = near(bundle), near(Path(sys.executable).parent / "adexport")
    texts = " ".join(f"--text 'so bored :(' --adapter {name}" for name in ("tweets", "-"))
    say(
        f"\nParity with PEFT's mixed batch: largest difference [bold]{report.worst:.1e}[/bold] "
        f"over {len(report.rows)} rows (allowed {report.tolerance:.0e})."
    )
    say("\nTry it yourself:")
    say(f"  {adexport} inspect {here}")
    say(f"  {adexport} run {here} {texts}")


def show_mixed_batch(engine: Engine, data: dict[str, list[vader.Example]]) -> None:
    """The same texts as the base and as each tenant sees them: one batch, an adapter for each row."""
    picked = [example for tenant in TENANTS for example in disputed(engine, tenant, data[tenant][:TEST])]
    readers = (None, *TENANTS)
    texts = [example.text for example in picked for _ in readers]
    rows = [reader for _ in picked for reader in readers]
    logits = engine.run_text(texts, rows)["logits"]
    labels = engine.bundle.manifest.base.labels
    table = Table(
        title=f"One mixed batch: {len(rows)} rows, {len(readers)} kinds of rows", title_justify="left"
    )
    for column in ("text", "people say", "base", *TENANTS):
        table.add_column(column, overflow="fold")
    for index, example in enumerate(picked):
        own = logits[index * len(readers) : (index + 1) * len(readers)]
        table.add_row(
            Text(example.text[:70]), labels[example.label], *(labels[int(row.argmax())] for row in own)
        )
    console.print(table)


def disputed(engine: Engine, tenant: str, examples: list[vader.Example]) -> list[vader.Example]:
    """Two held-out texts of a tenant on which its adapter and the base disagree."""
    texts = [example.text for example in examples[:120]]
    base, own = predict(engine, texts, None), predict(engine, texts, tenant)
    return [example for example, a, b in zip(examples, base, own, strict=False) if a != b][:2]


def show_accuracy(engine: Engine, data: dict[str, list[vader.Example]]) -> None:
    """Held-out accuracy of each tenant's adapter beside the base's."""
    table = Table(title=f"Accuracy on {TEST} held-out texts", title_justify="left")
    for column in ("domain", "base", "own adapter"):
        table.add_column(column)
    for tenant in TENANTS:
        held_out = data[tenant][:TEST]
        truth = np.array([example.label for example in held_out])
        texts = [example.text for example in held_out]
        scores = [(predict(engine, texts, name) == truth).mean() for name in (None, tenant)]
        table.add_row(tenant, *(f"{score:.1%}" for score in scores))
    console.print(table)


def predict(engine: Engine, texts: list[str], adapter: str | None) -> np.ndarray[Any, Any]:
    """Labels of many texts with one adapter, in batches."""
    parts = [
        engine.run_text(texts[i : i + 50], adapter)["logits"].argmax(axis=1)
        for i in range(0, len(texts), 50)
    ]
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
