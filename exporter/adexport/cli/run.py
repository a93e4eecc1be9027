"""``adexport run``: texts through a bundle, with an adapter for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from adexport_runtime.engine import Engine
from adexport_runtime.tensors import Array

from .console import json_option, print_json, print_table, refusals

BASE = "-"


@click.command(
    epilog="Example: adexport run minilm.bundle --text 'great phone' --adapter acme "
    "--text 'great phone' --adapter -"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, required=True, help="A text. Repeatable.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    help=f"The adapter of the text at the same place; {BASE} is the base. One for all, or one each.",
)
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda or tensorrt.")
@click.option("--threads", default=0, type=click.IntRange(min=0), help="0: ONNX Runtime chooses.")
@json_option
@refusals()
def run(
    bundle: Path,
    texts: tuple[str, ...],
    adapters: tuple[str, ...],
    provider: str,
    threads: int,
    as_json: bool,
) -> None:
    """Run texts through BUNDLE as one batch, each with its own adapter; needs no torch."""
    if len(adapters) not in (0, 1, len(texts)):
        raise click.UsageError(f"{len(texts)} --text but {len(adapters)} --adapter: give one each")
    named = [None if name == BASE else name for name in adapters or (BASE,)]
    rows = named * len(texts) if len(named) == 1 else named
    with Engine.open(bundle, provider=provider, threads=threads) as engine:
        inputs = engine.text(texts)
        outputs = engine.run(inputs, rows)
        base = engine.bundle.manifest.base
        results = [
            {
                "text": text,
                "adapter": name,
                "tokens": int(mask.sum()),
                **_result(
                    base.task, base.labels, {key: value[row] for key, value in outputs.items()}, mask
                ),
            }
            for row, (text, name, mask) in enumerate(
                zip(texts, rows, inputs["attention_mask"].astype(bool), strict=True)
            )
        ]
    if as_json:
        print_json({"bundle": str(bundle), "task": base.task, "rows": results})
        return
    print_table(
        ("text", "adapter", "tokens", "result"),
        [(row["text"], row["adapter"] or BASE, str(row["tokens"]), _brief(row)) for row in results],
    )


def _result(task: str, labels: tuple[str, ...], outputs: dict[str, Array], mask: Array) -> dict[str, Any]:
    if task == "feature-extraction":
        mean = outputs["last_hidden_state"][mask].mean(axis=0)
        return {"embedding": [float(value) for value in mean]}
    logits = outputs["logits"]
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    if task == "text-classification":
        return {
            "label": labels[int(logits.argmax())],
            "scores": {label: float(score) for label, score in zip(labels, scores, strict=True)},
        }
    return {"labels": [labels[index] for index in logits[mask].argmax(axis=-1)]}


def _brief(row: dict[str, Any]) -> str:
    if "embedding" in row:
        values = row["embedding"]
        start = " ".join(f"{value:+.3f}" for value in values[:4])
        return f"mean embedding [{len(values)}] {start} …"
    if "label" in row:
        return f"{row['label']} ({row['scores'][row['label']]:.3f})"
    return " ".join(row["labels"])
