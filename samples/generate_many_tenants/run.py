"""Three tenants chat on one exported decoder: train, build, bind, and answer side by side in one batch.

Everything but the training is what a user would do; the commands it stands for are printed.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# torch's idle threads sleep: beside other work they would cost more time than they save
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import transformers
from rich.live import Live
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer

from adexport import BuildOptions, build_model, verify_bundle
from adexport_runtime import Bundle, Engine, bind_into_bundle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from chat import Chat, encode
from console import console, near, say, step, terminal
from judge import perplexities
from smollm2 import smollm2_folder
from tenants import RANK, train_one
from topics import TENANTS, load

HERE = Path(__file__).resolve().parents[2] / ".cache" / "generate_many_tenants"
#: what each tenant learns from at most, and is judged by; its batch, how often it sees all, its rate
TRAIN, HELD_OUT = 90, 20
TRAINING = {"help_desk": (5, 10, 3e-3), "quiz": (8, 2, 1e-3), "robot": (8, 2, 2e-3)}
#: none of them stands in what a tenant learned from
QUESTIONS = (
    "The sound is gone.",
    "Which planet is the largest?",
    "Do you get tired?",
    "What is the capital of France?",
)
READERS = (None, *TENANTS)
NEW_TOKENS = 40


def main() -> None:
    """Run the whole demo."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    with step("take SmolLM2-135M-Instruct from its package (made once)"):
        base = smollm2_folder()
    tokenizer = AutoTokenizer.from_pretrained(base)
    topics = {tenant: load(tenant, TRAIN, HELD_OUT) for tenant in TENANTS}
    assert not {pair.question for topic in topics.values() for pair in topic.train} & set(QUESTIONS)
    adapters = {tenant: HERE / "lora" / tenant for tenant in TENANTS}
    for tenant, folder in adapters.items():
        train_one(
            base, folder, [encode(tokenizer, pair) for pair in topics[tenant].train], *TRAINING[tenant]
        )

    bundle = HERE / "smollm2.bundle"
    with step(f"adexport build smollm2 -o {bundle.name} --max-rank {RANK}"):
        build_model(str(base), bundle, options=BuildOptions(max_rank=RANK))
    for tenant, folder in adapters.items():
        with step(f"adexport bind lora/{tenant} -b {bundle.name}"):
            bind_into_bundle(Bundle.open(bundle), folder)
    with Engine.open(bundle, threads=os.cpu_count() or 1) as engine:
        answer_side_by_side(engine)
        judged = {
            tenant: [encode(tokenizer, pair) for pair in topic.held_out]
            for tenant, topic in topics.items()
            if topic.held_out
        }
        show_perplexities(engine, judged, tokenizer.pad_token_id)
    with step(f"adexport verify {bundle.name} {' '.join(f'lora/{tenant}' for tenant in TENANTS)}"):
        report = verify_bundle(bundle, list(adapters.values()))
    say(
        f"\nParity with PEFT's mixed batch: largest difference [bold]{report.worst:.1e}[/bold] "
        f"over {len(report.rows)} rows (allowed {report.tolerance:.0e})."
    )
    say("\nTry it yourself:")
    asked = " ".join(f"--prompt 'Who are you?' --adapter {name}" for name in ("robot", "-"))
    adexport = near(Path(sys.executable).parent / "adexport")
    say(f"  {adexport} generate {near(bundle)} --chat {asked}")


def answer_side_by_side(engine: Engine) -> None:
    """All questions to the base and to every tenant: one batch, an adapter for each row, as it comes."""
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS for _ in READERS]
    rows = [reader for _ in QUESTIONS for reader in READERS]
    texts = [Text() for _ in rows]
    title = f"One batch: {len(rows)} rows, {len(READERS)} kinds of rows"
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in ("asked", *(reader or "base" for reader in READERS)):
        table.add_column(column, overflow="fold")
    for number, question in enumerate(QUESTIONS):
        table.add_row(question, *texts[number * len(READERS) : (number + 1) * len(READERS)])

    def told(row: int, piece: str) -> None:
        texts[row].append(piece)
        live.refresh()

    with Live(table, console=terminal, auto_refresh=False, transient=True) as live:
        engine.generate(prompts, rows, max_batch=len(rows), on_text=told, max_new_tokens=NEW_TOKENS)
    console.print(table)


def show_perplexities(engine: Engine, judged: dict[str, list[Chat]], pad: int) -> None:
    """What the base and every adapter make of answers that none has seen."""
    title = f"Perplexity of {HELD_OUT} unseen answers"
    table = Table(title=title, title_justify="left")
    for column in ("answers of", *(reader or "base" for reader in READERS)):
        table.add_column(column)
    for tenant, chats in judged.items():
        found = perplexities(engine, chats, READERS, pad)
        table.add_row(tenant, *(f"{value:.1f}" for value in found))
    console.print(table)


if __name__ == "__main__":
    main()
