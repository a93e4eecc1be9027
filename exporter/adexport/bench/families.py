"""`adexport bench --slots`: what each kind of slot costs beside the plain base.

A bundle's trace is lowered again with just the slots of one family; adapters of random weights fill
them, a different one on every row. ``unused`` has every kind of slot in the graph and adapters of all
kinds in the bank, and a batch in which no row asks for one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from adexport_runtime.adapters import CONFIG_FILE
from adexport_runtime.bound import BoundAdapter
from adexport_runtime.bundle import TRACE_FILE, Bundle
from adexport_runtime.engine import Engine
from adexport_runtime.errors import Code, Problem, RequestError
from adexport_runtime.manifest import Manifest
from adexport_runtime.matching import matches
from adexport_runtime.slots import BottleneckStyle, SlotInput
from adexport_runtime.tensors import Array, write_tensors

from ..build import lower_again
from ..lower import layer_features
from ..options import BuildOptions
from ..progress import Progress, silent
from ..slots.kinds import FORMS
from .measure import Quartiles, interleave, ratios
from .report import machine
from .workload import WEIGHTS_FILE, random_feeds

_BASE = "base"
_STD = 0.03


@dataclass(frozen=True)
class Family:
    """The slots of a family, and which of their factors its adapters fill.

    ``used`` is False where no row of the batch takes an adapter.
    """

    options: BuildOptions
    factors: tuple[str, ...]
    used: bool = True


def _bottleneck(preset: str, activation: str) -> Family:
    options = BuildOptions(slots=("bottleneck",), bottlenecks=(preset,), activations=(activation,))  # type: ignore[arg-type]
    return Family(options, ("down", "down_bias", "up", "up_bias"))


FAMILIES: Mapping[str, Family] = {
    "lora": Family(BuildOptions(slots=("lora",)), ("lora_A", "lora_B")),
    # its slots are those that an adapter of PEFT's defaults needs: see _like_peft
    "ia3": Family(BuildOptions(), ("scale_in", "scale_out")),
    "pfeiffer": _bottleneck("seq_bn", "relu"),
    "houlsby": _bottleneck("double_seq_bn", "silu"),
    "parallel": _bottleneck("par_bn", "relu"),
    "unused": Family(
        BuildOptions(slots=("lora", "bias", "scale", "bottleneck")),
        ("lora_A", "lora_B", "down", "down_bias", "up", "up_bias"),
        used=False,
    ),
}


@dataclass(frozen=True)
class Cost:
    """Time of one family, and its ratio to the plain base's (round by round)."""

    cpu_ms: float
    wall_ms: float
    cpu_ratio: Quartiles
    wall_ratio: Quartiles
    sites: int


@dataclass(frozen=True)
class FamiliesReport:
    """One run of the benchmark of families."""

    bundle: str
    settings: Mapping[str, Any]
    base_cpu_ms: float
    base_wall_ms: float
    families: Mapping[str, Cost]

    def to_dict(self) -> dict[str, Any]:
        """The report with the machine that it was made on."""
        return {**asdict(self), "machine": machine()}


def run_families(
    bundle: Path,
    families: Sequence[str],
    *,
    batch: int = 8,
    seq: int = 128,
    adapters: int = 8,
    rank: int = 16,
    width: int = 48,
    threads: int = 1,
    repeats: int = 30,
    progress: Progress = silent,
) -> FamiliesReport:
    """Measure what the slots of families cost.

    Args:
        bundle: the bundle whose trace is lowered; nothing is written to it.
        families: names of :data:`FAMILIES`.
        batch: rows; row i takes adapter ``i % adapters``.
        seq: tokens in every row.
        adapters: how many are bound.
        rank: of LoRA adapters.
        width: of bottlenecks.
        threads: of an operator; 0 lets ONNX Runtime choose.
        repeats: rounds.
        progress: called as each step starts.

    Raises:
        BuildError: the model has no place for such slots.
        RequestError: the bundle takes no such batch.
    """
    settings = {
        "batch": batch,
        "seq": seq,
        "adapters": adapters,
        "rank": rank,
        "width": width,
        "threads": threads,
        "repeats": repeats,
    }
    feeds = random_feeds(Bundle.open(bundle).manifest, batch, seq)
    runs: dict[str, Callable[[], object]] = {}
    sites = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = {_BASE: Family(BuildOptions(slots=()), (), used=False)}
        made |= {name: FAMILIES[name] for name in families}
        for name, family in made.items():
            progress(f"lower the trace for {name}")
            engine = stack.enter_context(_opened(bundle, family, scratch / name, rank, width, threads))
            manifest = engine.bundle.manifest
            names = _bind(engine, family, adapters, rank, width)
            rows = [names[row % adapters] if family.used else None for row in range(batch)]
            sites[name] = len(manifest.sites) + len(
                manifest.bottlenecks.sites if manifest.bottlenecks else ()
            )
            runs[name] = lambda engine=engine, rows=rows: engine.run(feeds, rows)  # type: ignore[misc]
        progress(f"{repeats} rounds")
        samples = interleave(runs, repeats)
    base = samples[_BASE]
    return FamiliesReport(
        bundle=str(bundle),
        settings=settings,
        base_cpu_ms=float(np.median(base.cpu)) * 1e3,
        base_wall_ms=float(np.median(base.wall)) * 1e3,
        families={
            name: Cost(
                float(np.median(samples[name].cpu)) * 1e3,
                float(np.median(samples[name].wall)) * 1e3,
                *ratios(samples[name], base),
                sites[name],
            )
            for name in families
        },
    )


def _opened(bundle: Path, family: Family, scratch: Path, rank: int, width: int, threads: int) -> Engine:
    options = replace(family.options, max_rank=rank, max_width=width)
    if family is FAMILIES["ia3"]:
        options = replace(options, like=(_like_peft(Bundle.open(bundle), scratch.with_suffix(".peft")),))
    lowered = lower_again(bundle, scratch, options=options, adapters=False).bundle
    return Engine.open(lowered.root, threads=threads, spin=False)


def _like_peft(bundle: Bundle, folder: Path) -> Path:
    """An IA3 adapter as PEFT makes it for this type of model.

    Raises:
        RequestError: PEFT has no defaults for it.
    """
    from peft.utils import constants

    model_type = bundle.manifest.base.model_type
    targets = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(model_type)
    if targets is None:
        raise RequestError(
            "nothing to measure",
            Problem(Code.UNSUPPORTED, "--slots ia3", got=model_type, expected="a type that PEFT knows"),
        )
    inner = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[model_type]
    tensors: dict[str, Array] = {}
    for path, (into, out) in layer_features(ir.load(bundle.root / TRACE_FILE)).items():
        if matches(targets, path):
            shape = (1, into) if matches(inner, path) else (out, 1)
            tensors[f"base_model.model.{path}.ia3_l"] = np.ones(shape, np.float32)
    folder.mkdir()
    write_tensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})
    config = {"peft_type": "IA3", "target_modules": targets, "feedforward_modules": inner}
    (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    return folder


def _bind(engine: Engine, family: Family, adapters: int, rank: int, width: int) -> list[str]:
    """Bind random adapters; returns their names."""
    random = np.random.default_rng(0)
    names = []
    for index in range(adapters if family.factors else 0):
        adapter = _random(f"adapter{index}", engine.bundle.manifest, family, rank, width, random)
        path = engine.bundle.root / f"{adapter.name}.safetensors"
        adapter.save(path)
        engine.bind(adapter.name, path)
        names.append(adapter.name)
    return names


def _random(
    name: str, manifest: Manifest, family: Family, rank: int, width: int, random: np.random.Generator
) -> BoundAdapter:
    slots: list[tuple[str, SlotInput]] = [
        (factor, slot) for site in manifest.sites for factor, slot in site.linear.factors.items()
    ]
    bottlenecks = manifest.bottlenecks
    if bottlenecks is not None:
        preset = (family.options.bottlenecks or ("double_seq_bn",))[0]
        slots += [
            (factor, slot)
            for site in bottlenecks.sites
            if site.location in FORMS[preset].locations
            for factor, slot in site.slot.factors.items()
        ]
        style = BottleneckStyle(form=FORMS[preset].form, activation=bottlenecks.activations[0])
    tensors = {
        slot.name: _values(factor, slot, rank, width, random)
        for factor, slot in slots
        if factor in family.factors
    }
    return BoundAdapter(
        name=name,
        source_type="adexport:bench",
        source_sha256="0" * 64,
        base_fingerprint=manifest.base.fingerprint,
        tensors=tensors,
        bottleneck=style if bottlenecks is not None and "down" in family.factors else None,
    )


def _values(factor: str, slot: SlotInput, rank: int, width: int, random: np.random.Generator) -> Array:
    ragged = rank if factor.startswith("lora") else width
    shape = [size if isinstance(size, int) else ragged for size in slot.shape[1:]]
    around = 1.0 if slot.identity == "ones" else 0.0
    values: Array = (around + random.standard_normal(shape) * _STD).astype(np.float32)
    return values
