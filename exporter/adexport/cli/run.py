"""``adexport run``: texts through a bundle, with an adapter for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from adexport_runtime.engine import Engine
from adexport_runtime.errors import Code, Problem, RequestError
from adexport_runtime.outputs import LOGITS
from adexport_runtime.tensors import Array

from .console import json_option, print_json, print_table, provider_option, refusals

BASE = "-"

Result = dict[str, Any]


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
@provider_option
@click.option(
    "--threads", default=0, type=click.IntRange(min=0), help="On the CPU; 0: ONNX Runtime chooses."
)
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
    rows = rows_of(adapters, len(texts), "--text")
    with Engine.open(bundle, provider=provider, threads=threads) as engine:
        _check_texts(engine)
        inputs = engine.text(texts)
        outputs = engine.run(inputs, rows)
        task = engine.bundle.manifest.base.task
        masks = inputs["attention_mask"].astype(bool)
        results = [
            {
                "text": text,
                "adapter": name,
                "tokens": int(masks[row].sum()),
                **_result(engine, outputs.labels[row], outputs.row(row), masks[row]),
            }
            for row, (text, name) in enumerate(zip(texts, rows, strict=True))
        ]
    if as_json:
        print_json({"bundle": str(bundle), "task": task, "rows": results})
        return
    print_table(
        ("text", "adapter", "tokens", "result"),
        [(row["text"], row["adapter"] or BASE, str(row["tokens"]), _brief(row)) for row in results],
    )


def rows_of(adapters: Sequence[str], count: int, option: str) -> list[str | None]:
    """An adapter for each of the options that came ``count`` times; None is the base.

    Raises:
        click.UsageError: there is neither one for all nor one each.
    """
    if len(adapters) not in (0, 1, count):
        raise click.UsageError(f"{count} {option} but {len(adapters)} --adapter: give one each")
    named = [None if name == BASE else name for name in adapters or (BASE,)]
    return named * count if len(named) == 1 else named


def _check_texts(engine: Engine) -> None:
    """Refuse a bundle that takes something else.

    Raises:
        RequestError: saying what it takes.
    """
    names = [spec.name for spec in engine.bundle.manifest.inputs]
    if "input_ids" not in names:
        raise RequestError(
            "nothing was run",
            Problem(
                Code.UNSUPPORTED,
                str(engine.bundle.root),
                got=f"a bundle that takes {', '.join(names)}",
                expected="a bundle that takes texts",
                cause="pixels have no form on a command line",
                mend=f"pass arrays to adexport_runtime: engine.run({{'{names[0]}': …}}, adapters)",
            ),
        )


def _result(engine: Engine, labels: tuple[str, ...], outputs: Mapping[str, Array], mask: Array) -> Result:
    """What a row's outputs mean; a row without labels has its hidden states, if anything."""
    task = engine.bundle.manifest.base.task
    if task == "text-generation":
        scores = _softmax(outputs[LOGITS][int(np.flatnonzero(mask)[-1])])
        best = int(scores.argmax())
        return {"next_token": engine.text.decode([best]), "next_id": best, "score": float(scores[best])}
    if labels and task == "text-classification":
        scores = _softmax(outputs[LOGITS])
        return {
            "label": labels[int(scores.argmax())],
            "scores": {label: float(score) for label, score in zip(labels, scores, strict=True)},
        }
    if labels:
        return {"labels": [labels[index] for index in outputs[LOGITS][mask].argmax(axis=-1)]}
    hidden = outputs.get("last_hidden_state")
    return {} if hidden is None else {"embedding": [float(value) for value in hidden[mask].mean(axis=0)]}


def _softmax(logits: Array) -> Array:
    scores = np.exp(logits - logits.max())
    return np.asarray(scores / scores.sum(), np.float32)


def _brief(row: Result) -> str:
    if "next_token" in row:
        return f"{row['next_token']!r} ({row['score']:.3f})"
    if "label" in row:
        return f"{row['label']} ({row['scores'][row['label']]:.3f})"
    if "labels" in row:
        return " ".join(row["labels"])
    if "embedding" in row:
        values = row["embedding"]
        start = " ".join(f"{value:+.3f}" for value in values[:4])
        return f"mean embedding [{len(values)}] {start} …"
    return ""
