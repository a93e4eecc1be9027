"""Graphs that generate: the same tokens as transformers and PEFT, row by row of one batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, Phi3Config

from adexport.build import build_model, lower_again
from adexport.options import TOLERANCE, BuildOptions
from adexport.rotary import steady_positions
from adexport.windows import UNLIMITED, Window, window_of
from adexport_runtime import BundleError, Code, Engine

from .conftest import GeneratorOf
from .families import CAUSAL, FAMILIES, Family
from .generators import GENERATORS, Reference, Tenants, make_prompts, make_tenants

LENGTHS = (1, 6, 9, 3, 12, 7, 2, 5)
ROWS = (None, "tenant0", "tenant1", None, "tenant0", "tenant1", "tenant1", None)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tenants:
    return make_tenants(GENERATORS["Llama, wide"], tmp_path_factory.mktemp("generating"))


@pytest.fixture(scope="module")
def bundle(llama: Tenants) -> Path:
    target = llama.model.parent / "bundle"
    build_model(str(llama.model), target, options=BuildOptions(max_rank=8))
    return target


def generate(engine: Engine, tenants: Tenants, **settings: Any) -> list[tuple[int, ...]]:
    for name, folder in tenants.adapters.items():
        engine.bind(name, folder)
    prompts = make_prompts(97, LENGTHS)
    results = engine.generate(prompts, ROWS, eos=(), **settings)
    assert all(result.error is None for result in results)
    return [result.ids for result in results]


@pytest.mark.parametrize("name", GENERATORS)
def test_tokens_are_those_of_transformers_and_peft(name: str, generator_of: GeneratorOf) -> None:
    """Ragged prompts, mixed rows, longer than every window; three rows at once, so rows come and go."""
    tenants, built = generator_of(name)
    result = built.result
    assert result.notes == ()
    assert {key.split()[-1] for key in result.differences} >= {"steps", "mixed"}
    with Engine.open(result.bundle.root, threads=1) as engine:
        found = generate(engine, tenants, max_batch=3, max_new_tokens=20)
    reference = Reference(tenants)
    for prompt, row, ids in zip(make_prompts(97, LENGTHS), ROWS, found, strict=True):
        assert len(ids) == 20
        reference.check(prompt, row, ids)
    assert reference.close <= 2, "the reference is undecided too often to say anything"


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("Llama", [None]),
        ("Mistral, wide", [4, 4]),
        ("Qwen2, window above", [None, 4]),
        ("Gemma2", [4, None]),
    ],
)
def test_windows_are_those_of_the_layers(name: str, windows: list[int | None], tmp_path: Path) -> None:
    folder = GENERATORS[name].save(CAUSAL, tmp_path / "model")
    manifest = build_model(str(folder), tmp_path / "bundle").bundle.manifest
    assert manifest.generation is not None
    assert [cache.window for cache in manifest.generation.caches] == windows


def test_one_graph_with_rotary_inside_and_no_gather_of_slots(bundle: Path) -> None:
    graph = ir.load(bundle / "model.onnx").graph
    attention = [node for node in graph if node.op_type == "GroupQueryAttention"]
    assert len(attention) == 2
    assert all(node.attributes["do_rotary"].as_int() == 1 for node in attention)
    assert not [node for node in graph if node.op_type in ("RotaryEmbedding", "If")]
    slots = {value.name for value in graph.inputs if ".lora_" in str(value.name)}
    assert len(slots) == 2 * 7 * 2
    assert not [
        node for node in graph if node.op_type == "Gather" and {i.name for i in node.inputs if i} & slots
    ]
    assert "adapter_ids" not in {value.name for value in graph.inputs}


def test_prompts_in_pieces_give_the_same_tokens(bundle: Path, llama: Tenants) -> None:
    with Engine.open(bundle, threads=1) as engine:
        for name, folder in llama.adapters.items():
            engine.bind(name, folder)
        prompts = make_prompts(97, LENGTHS)
        whole = generate(engine, llama, max_new_tokens=12)
        with engine.session(max_batch=3, prompt_tokens=4) as session:
            streams = [
                session.submit(prompt, row, max_new_tokens=12, eos=())
                for prompt, row in zip(prompts, ROWS, strict=True)
            ]
            assert [stream.result(60).ids for stream in streams] == whole


def test_a_run_gives_the_logits_of_every_position(bundle: Path, llama: Tenants) -> None:
    reference = Reference(llama)
    prompts = make_prompts(97, LENGTHS[:4])
    width = max(LENGTHS[:4])
    ids = np.array([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    mask = (np.arange(width)[None] < np.array(LENGTHS[:4])[:, None]).astype(np.int64)
    with Engine.open(bundle, threads=1) as engine:
        engine.bind("tenant0", llama.adapters["tenant0"])
        rows = [None, "tenant0", "tenant0", None]
        logits = engine.run({"input_ids": ids, "attention_mask": mask}, rows)["logits"]
        assert logits.shape == (4, width, 97)
        for row, (prompt, name) in enumerate(zip(prompts, rows, strict=True)):
            with torch.no_grad():
                expected = reference.model(name)(torch.tensor([prompt])).logits[0].numpy()
            np.testing.assert_allclose(logits[row, : len(prompt)], expected, atol=2e-5)


def test_half_precision(bundle: Path, llama: Tenants, tmp_path: Path) -> None:
    """The caches are half precision too; most tokens are those of float32."""
    options = BuildOptions(dtype="fp16", tolerance=TOLERANCE["fp16"])
    result = lower_again(bundle, tmp_path / "half.bundle", options=options)
    outputs = {value.name: value.dtype for value in ir.load(result.bundle.model_path).graph.outputs}
    assert outputs["logits"] == ir.DataType.FLOAT
    assert outputs["present.0.key"] == ir.DataType.FLOAT16
    with Engine.open(bundle, threads=1) as engine, Engine.open(result.bundle.root, threads=1) as half:
        whole, halved = (generate(one, llama, max_new_tokens=12) for one in (engine, half))
    assert np.mean(np.array(whole) == np.array(halved)) > 0.5


def test_other_slots_without_torch(bundle: Path, llama: Tenants, tmp_path: Path) -> None:
    """Every kind of slot takes its rows from the batch; without adapters the base speaks."""
    slots = ("lora", "bias", "scale", "bottleneck")
    result = lower_again(bundle, tmp_path / "all.bundle", options=BuildOptions(slots=slots))
    assert result.bundle.manifest.slot_rows == "batch"
    assert result.bundle.manifest.guards is not None
    plain = lower_again(bundle, tmp_path / "plain.bundle", options=BuildOptions(slots=()))
    assert plain.bundle.manifest.slot_rows == "bank"
    with Engine.open(bundle, threads=1) as engine, Engine.open(result.bundle.root, threads=1) as other:
        few = {"max_new_tokens": 9}
        assert generate(engine, llama, **few) == generate(other, llama, **few)
        base = engine.generate(make_prompts(97, LENGTHS), eos=(), **few)
    with Engine.open(plain.bundle.root, threads=1) as engine:
        again = engine.generate(make_prompts(97, LENGTHS), eos=(), **few)
    assert [result.ids for result in again] == [result.ids for result in base]


@pytest.mark.parametrize(
    ("edit", "subject"),
    [
        (lambda generation: generation.update(lengths="elsewhere"), "elsewhere"),
        (lambda generation: generation["caches"].pop(), "past.1.key"),
        (lambda generation: generation["caches"][1].update(kv_heads=1), "past.1.value"),
        (lambda generation: generation["caches"][1].update(size=8), "past.1.key"),
    ],
)
def test_caches_that_are_not_those_of_the_graph(
    edit: Callable[[Any], Any], subject: str, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(manifest["generation"])
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not the graph of its manifest") as caught:
        Engine.open(tmp_path / "bundle")
    assert subject in {problem.subject for problem in caught.value.problems}
    assert caught.value.codes == {Code.BAD_MANIFEST}


def test_a_model_without_a_known_cache_runs_prompts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4)).save_pretrained(
        tmp_path / "model"
    )
    result = build_model(str(tmp_path / "model"), tmp_path / "bundle")
    assert any(note.startswith("no generation, prompts only: ") for note in result.notes)
    with Engine.open(tmp_path / "bundle", threads=1) as engine:
        assert engine.run({"input_ids": [[1, 2, 3]]})["logits"].shape == (1, 3, 97)
        with pytest.raises(BundleError, match="does not generate") as caught:
            engine.generate([[1, 2, 3]])
    assert caught.value.codes == {Code.UNSUPPORTED}
    # what version 2 wrote for every decoder
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    del manifest["generation"], manifest["slot_rows"]
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))
    with Engine.open(tmp_path / "bundle", threads=1) as engine:
        assert engine.run({"input_ids": [[1, 2, 3]]})["logits"].shape == (1, 3, 97)


@pytest.mark.parametrize(
    ("config", "settings", "reason"),
    [
        ("BertConfig", {"is_decoder": True}, "takes token_type_ids"),
        ("RobertaConfig", {"is_decoder": True, "type_vocab_size": 1}, "counts its positions otherwise"),
        (
            "Lfm2Config",
            {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "num_key_value_heads": 2},
            "a state that no cache holds",
        ),
    ],
)
def test_what_a_step_would_not_know_of(
    config: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    sizes = {name: FAMILIES["Bert"].settings[name] for name in FAMILIES["Bert"].settings}
    folder = Family(config, {**sizes, **settings}).save(CAUSAL, tmp_path / "model")
    result = build_model(str(folder), tmp_path / "bundle", task=CAUSAL)
    assert [note.split(": ")[0] for note in result.notes] == ["no generation, prompts only"]
    assert reason in result.notes[0]
    assert result.bundle.manifest.generation is None


def test_a_table_that_changes_with_the_text_limits_the_context(tmp_path: Path) -> None:
    """LongRoPE takes another table beyond its original positions: generation stays below them."""
    size = 64 // 4 // 2
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * size,
        "long_factor": [2.0] * size,
        "original_max_position_embeddings": 20,
    }
    family = GENERATORS["Phi3, partial"]
    positions = {"original_max_position_embeddings": 20}
    folder = family.save(
        CAUSAL, tmp_path / "model", rope_parameters=rope, partial_rotary_factor=1.0, **positions
    )
    result = build_model(str(folder), tmp_path / "bundle")
    assert result.bundle.manifest.base.max_positions == 20
    reference = Reference(Tenants(folder, {}))
    (prompt,) = make_prompts(97, (5,))
    with Engine.open(tmp_path / "bundle", threads=1) as engine:
        (found,) = engine.generate([prompt], max_new_tokens=15, eos=())
    reference.check(prompt, None, found.ids)


def test_steady_positions() -> None:
    assert steady_positions(LlamaConfig(max_position_embeddings=64), 64) == 64
    dynamic = LlamaConfig(
        max_position_embeddings=32,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    )
    assert steady_positions(dynamic, 64) == 32
    assert steady_positions(Phi3Config(max_position_embeddings=64), None) is None


def test_window_of() -> None:
    def causal(_b: Any, _h: Any, query: Any, key: Any) -> Any:
        return key <= query

    def sliding(_b: Any, _h: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (query - key < 4)

    def chunked(_b: Any, _h: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (query // 4 == key // 4)

    assert window_of(causal) == Window(UNLIMITED, 0)
    assert window_of(sliding) == Window(3, 0)
    assert window_of(chunked) is None
