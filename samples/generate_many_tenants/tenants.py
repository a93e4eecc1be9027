"""Train the tenants' LoRAs with PEFT: attention and MLP of every block, rank 8."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from chat import Chat, answer_loss
from console import done, terminal
from peft import LoraConfig, TaskType, get_peft_model
from rich.progress import track
from training import batches, fit
from transformers import AutoModelForCausalLM

RANK = 8
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CLIP = 1.0


def train_one(base: Path, folder: Path, chats: list[Chat], size: int, epochs: int, rate: float) -> None:
    """One tenant's LoRA, saved to ``folder``: ``epochs`` times all its answers, ``size`` at a time."""
    torch.manual_seed(0)
    random.seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    pad = model.config.pad_token_id
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS)
    peft = get_peft_model(model, config)
    started = time.perf_counter()
    chosen = batches(chats, size, epochs, lambda chat: chat.length)
    shown = track(chosen, f"train {folder.name}", console=terminal, transient=True)
    fit(peft, shown, lambda batch: answer_loss(peft, batch, pad), rate, clip=CLIP)
    peft.save_pretrained(str(folder))
    done(f"train the LoRA of {folder.name} on {len(chats)} answers with PEFT", started)
