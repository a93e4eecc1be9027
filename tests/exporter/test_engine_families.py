"""Engines of every family, built for real for three GPUs and two profiles; no GPU is needed for that.

An engine is only built once its graph has given torch's numbers in ONNX Runtime, mixed rows included.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from adexport.build import build_model, lower_again
from adexport.options import BuildOptions, EngineOptions
from adexport.tensorrt.builder import build_engine
from adexport_runtime import BuildError, Bundle
from adexport_runtime.engine_file import EngineFile
from adexport_runtime.graph_io import Tensor, engine_inputs, graph_outputs

from .conftest import BuiltOf, GeneratorOf
from .families import BARE, CAUSAL, FAMILIES, HEADS, IMAGE, TEXT

GPUS = ("sm86", "sm89", "sm120")


def engine_of(bundle: Bundle, target: Path, *profiles: str, in_place: bool = False) -> EngineFile:
    """An engine in a copy of the bundle."""
    shutil.copytree(bundle.root, target)
    options = EngineOptions(
        compute_capabilities=GPUS, profiles=profiles, caches="in-place" if in_place else "copied"
    )
    return build_engine(Bundle.open(target), options)


def check(engine: EngineFile, bundle: Bundle, profiles: int = 2) -> None:
    """What the manifest says is what the network had, and the frozen weights are in the plan."""
    record = engine.record
    assert record.inputs == engine_inputs(bundle.manifest)
    assert record.outputs == graph_outputs(bundle.manifest)
    assert record.compute_capabilities == GPUS
    assert len(record.profiles) == profiles
    frozen = sum(math.prod(weight.shape) for weight in bundle.manifest.weights)
    assert record.plan.bytes > frozen * {"fp32": 4, "fp16": 2, "bf16": 2}[bundle.manifest.base.dtype]
    assert engine.plan_path.stat().st_size == record.plan.bytes


def slot_bytes(inputs: tuple[Tensor, ...]) -> int:
    """Of one adapter with the largest sizes of the default profile, in float32."""
    slots = [tensor for tensor in inputs if tensor.shape[0] in ("rows", "batch") and "." in tensor.name]
    return sum(4 * math.prod(s if isinstance(s, int) else 64 for s in slot.shape[1:]) for slot in slots)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [
        *((n, BARE) for n, family in FAMILIES.items() if not family.decoder),
        *HEADS[:3],
        ("ViT", IMAGE),
        ("GPT2", TEXT),
    ],
)
def test_every_family(name: str, task: str, built_of: BuiltOf, tmp_path: Path) -> None:
    bundle = built_of(name, task).result.bundle
    sequence = task != IMAGE and name != "ViT"
    profiles = ("batch=1:2:4,seq=1:8:12", "batch=1,seq=1:4:8") if sequence else ("batch=1:2:4", "batch=1")
    check(engine_of(bundle, tmp_path / "bundle", *profiles), bundle)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*(name for name, family in FAMILIES.items() if family.decoder), "Phi3, partial", "GPT-J"]
)
def test_every_family_that_generates(name: str, generator_of: GeneratorOf, tmp_path: Path) -> None:
    """The defaults are two profiles: steps and prompts."""
    bundle = generator_of(name)[1].result.bundle
    check(engine_of(bundle, tmp_path / "bundle"), bundle)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["Bert", "ModernBert", "ViT"])
def test_half_precision(name: str, dtype: str, built_of: BuiltOf, tmp_path: Path) -> None:
    source = built_of(name, BARE).result.bundle.root
    options = BuildOptions(dtype=dtype, tolerance=1e-2)  # tiny layers round much
    bundle = lower_again(source, tmp_path / "half.bundle", options=options).bundle
    check(engine_of(bundle, tmp_path / "bundle", "batch=1:2:4", "batch=1"), bundle)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["Llama, wide", "Gemma2, wide", "Mistral, wide"])
def test_half_precision_with_caches(
    name: str, dtype: str, generator_of: GeneratorOf, tmp_path: Path
) -> None:
    """The attention op over caches; Gemma 2 has its scores capped, in primitive ops."""
    source = generator_of(name)[1].result.bundle.root
    bundle = lower_again(source, tmp_path / "half.bundle", options=BuildOptions(dtype=dtype)).bundle
    for in_place in (False, True):
        check(engine_of(bundle, tmp_path / str(in_place), in_place=in_place), bundle)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("also", [(), ("lm_head",), ("embeddings", "lm_head")])
def test_quantized(bits: int, also: tuple[str, ...], generator_of: GeneratorOf, tmp_path: Path) -> None:
    """An engine's own integers are held to the float base."""
    source = generator_of("Llama, wide")[1].result.bundle
    options = BuildOptions(quantize=f"int{bits}", quantize_also=also, min_cosine=0.0)
    bundle = lower_again(source.root, tmp_path / "quantized.bundle", options=options).bundle
    record = build_engine(bundle, asked=BuildOptions(min_cosine=0.5)).record
    assert record.inputs == engine_inputs(bundle.manifest)
    assert record.outputs == graph_outputs(bundle.manifest)
    with pytest.raises(BuildError, match="mean cosine"):
        build_engine(bundle, asked=BuildOptions(min_cosine=1.0))


class TestMiniLm:
    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
    def test_minilm(self, dtype: str, minilm_bundle: Path, tmp_path: Path) -> None:
        bundle = Bundle.open(minilm_bundle)
        if dtype != "fp32":
            options = BuildOptions(dtype=dtype)
            bundle = lower_again(minilm_bundle, tmp_path / "half.bundle", options=options).bundle
        engine = engine_of(bundle, tmp_path / "bundle", "seq=1:128:512", "batch=1,seq=1:16:64")
        check(engine, bundle)
        # no adapter's weights: the plan is the same whatever is bound, and a bank of 64 would be twice that
        assert 65 * slot_bytes(engine.record.inputs) > 2 * engine.record.plan.bytes


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_smollm2(smollm2: Path, tmp_path: Path) -> None:
    """Half precision, LoRA on every linear layer, steps and prompts."""
    options = BuildOptions(dtype="fp16", tolerance=1e-4)
    bundle = build_model(str(smollm2), tmp_path / "smollm2.bundle", options=options).bundle
    assert bundle.manifest.base.task == CAUSAL
    check(engine_of(bundle, tmp_path / "bundle"), bundle)
