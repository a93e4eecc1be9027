"""What is timed: one batch, and adapters for its rows, the same for every contender."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adexport_runtime.adapters import CONFIG_FILE
from adexport_runtime.bundle import Bundle
from adexport_runtime.errors import Code, Problem, RequestError
from adexport_runtime.manifest import Manifest
from adexport_runtime.tensors import Array, write_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
_STD_A, _STD_B = 0.05, 0.02


@dataclass(frozen=True)
class Workload:
    """``rows[i]`` is the adapter of row i; ``adapters`` are PEFT folders by name."""

    bundle: Bundle
    feeds: Mapping[str, Array]
    rows: tuple[str, ...]
    adapters: Mapping[str, Path]
    threads: int
    scratch: Path

    @property
    def integers(self) -> bool:
        """Whether the bundle's graph multiplies integers."""
        quantization = self.bundle.manifest.base.quantization
        return quantization is not None and quantization.method == "dynamic"


def make_workload(
    bundle: Bundle, *, batch: int, seq: int, adapters: int, rank: int, threads: int, scratch: Path
) -> Workload:
    """Random ids of full length, and random LoRA adapters on all sites.

    Raises:
        RequestError: the bundle has no slots, or takes no such batch or rank.
    """
    manifest = bundle.manifest
    problems = []
    if "lora" not in manifest.slots:
        problems.append(
            Problem(
                Code.BAD_INPUT,
                str(bundle.root),
                got="a bundle without slots for LoRA",
                mend="adexport build BUNDLE --slots lora",
            )
        )
    problems += _batch_problems(manifest, seq)
    if manifest.head is not None and not manifest.base.labels:
        problems.append(
            Problem(
                Code.BAD_INPUT,
                str(bundle.root),
                got="a base without a head",
                expected="a base that can be run alone",
                mend="measure a bundle of --task feature-extraction",
            )
        )
    if rank > manifest.limits.max_rank:
        problems.append(
            Problem(Code.BAD_INPUT, "--rank", got=str(rank), expected=f"at most {manifest.limits.max_rank}")
        )
    if problems:
        raise RequestError("nothing to measure", problems)
    feeds = random_feeds(manifest, batch, seq)
    random = np.random.default_rng(0)
    folders = {f"adapter{i}": scratch / f"adapter{i}" for i in range(adapters)}
    for folder in folders.values():
        _write_adapter(folder, manifest, rank, random)
    names = list(folders)
    rows = tuple(names[row % adapters] for row in range(batch))
    return Workload(bundle, feeds, rows, folders, threads, scratch)


def random_feeds(manifest: Manifest, batch: int, seq: int) -> dict[str, Array]:
    """Random inputs, every row of full length.

    Raises:
        RequestError: the bundle takes no such batch.
    """
    if problems := _batch_problems(manifest, seq):
        raise RequestError("nothing to measure", problems)
    random = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in manifest.inputs:
        shape = [
            {"batch": batch, "seq": seq}[size] if isinstance(size, str) else size for size in spec.shape
        ]
        if spec.dtype == "fp32":
            feeds[spec.name] = random.standard_normal(shape).astype(np.float32)
        elif spec.name == "attention_mask":
            feeds[spec.name] = np.ones(shape, np.int64)
        else:
            feeds[spec.name] = random.integers(spec.low or 0, (spec.high or 0) + 1, shape)
    return feeds


def _batch_problems(manifest: Manifest, seq: int) -> list[Problem]:
    limit = manifest.base.max_positions
    if limit is None or seq <= limit:
        return []
    return [Problem(Code.BAD_INPUT, "--seq", got=str(seq), expected=f"at most {limit}")]


def _write_adapter(folder: Path, manifest: Manifest, rank: int, random: np.random.Generator) -> None:
    """A LoRA adapter as PEFT saves it."""
    folder.mkdir()
    tensors = {}
    for site in manifest.sites:
        for half, shape, std in (
            ("A", (rank, site.in_features), _STD_A),
            ("B", (site.out_features, rank), _STD_B),
        ):
            values = (random.standard_normal(shape) * std).astype(np.float32)
            tensors[f"base_model.model.{site.path}.lora_{half}.weight"] = values
    write_tensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": manifest.base.name,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [site.path for site in manifest.sites],
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
