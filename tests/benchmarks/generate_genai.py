"""Many tenants on onnxruntime-genai with its own adapters: what generation is timed against.

Its generator has one adapter for all its rows, and a request to its engine with continuous batching takes
none at all: so the tenants' prompts run one after another. Two steps, each where onnxruntime-genai is
installed beside what builds a bundle:

    generate_genai.py prepare MODEL_FOLDER PEFT_FOLDER… -o FOLDER
    generate_genai.py run FOLDER

``prepare`` lets its own model builder make a float32 CPU model that computes no more logits than are wanted
(``prune_lm_head``). The builder writes one adapter into the graph as constants; here they become inputs,
and each adapter a file of ONNX Runtime's format. It also asks PEFT for the greedy tokens of every prompt.
``run`` generates them, checks that they are PEFT's, and prints one JSON object.

A process that runs onnxruntime should not run onnxruntime-genai: each brings a runtime of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).resolve().parents[2]
#: any English text with enough words: every tenant's prompt is another piece of it
TEXT = ROOT / "LICENSE"
MODEL, ADAPTERS, WORK = "model", "adapters", "work.json"
PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "lora_bias": False}


def main() -> None:
    """The two steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    steps = parser.add_subparsers(required=True)
    step = steps.add_parser("prepare")
    step.set_defaults(step=prepare)
    step.add_argument("model", type=Path, help="a transformers folder")
    step.add_argument("adapters", type=Path, nargs="+", help="PEFT folders: a tenant each")
    step.add_argument("-o", "--output", type=Path, required=True)
    step.add_argument("--prompt-tokens", type=int, default=64)
    step.add_argument("--new-tokens", type=int, default=64)
    step = steps.add_parser("run")
    step.set_defaults(step=run)
    step.add_argument("folder", type=Path, help="what `prepare` made")
    step.add_argument("--threads", type=int, default=1)
    step.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    if find_spec("onnxruntime_genai") is None:
        raise SystemExit("onnxruntime-genai is not installed here: pip install onnxruntime-genai==0.18.0")
    chosen.step(chosen)


def prepare(chosen: argparse.Namespace) -> None:
    """The model, the adapters and the work, in one folder."""
    folder: Path = chosen.output
    (folder / ADAPTERS).mkdir(parents=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(chosen.model.resolve())]
    command += ["-o", str(folder / MODEL), "-p", "fp32", "-e", "cpu", "-c", str(folder / "cache")]
    command += ["--extra_options", f"adapter_path={chosen.adapters[0].resolve()}", "prune_lm_head=true"]
    # it prints and shows progress bars at length
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"onnxruntime-genai's model builder failed:\n{done.stderr[-4000:]}")
    built = free_adapter(folder / MODEL / "model.onnx")
    for index, source in enumerate(chosen.adapters):
        tensors = adapter_tensors(source)
        if index == 0:  # the builder's own conversion is at hand: ours must be the same
            assert tensors.keys() == built.keys(), f"the builder made {sorted(built)}"
            assert all(np.array_equal(tensors[name], built[name]) for name in built)
        if shapes_of(tensors) != shapes_of(built):
            raise SystemExit(f"{source} has other targets or another rank than {chosen.adapters[0]}")
        write_adapter(folder / ADAPTERS / f"{index}.onnx_adapter", tensors)
    prompts = cut_prompts(chosen.model, len(chosen.adapters), chosen.prompt_tokens)
    work = {
        "new_tokens": chosen.new_tokens,
        "prompts": prompts,
        "expected": expected(chosen.model, chosen.adapters, prompts, chosen.new_tokens),
    }
    (folder / WORK).write_text(json.dumps(work))


def free_adapter(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Make inputs of a graph's LoRA constants, in place; returns what they were, by name."""
    import onnx_ir as ir

    model = ir.load(path)
    graph = model.graph
    names = [name for name in graph.initializers if ".lora_A." in name or ".lora_B." in name]
    found = {}
    for name in names:
        value = graph.initializers.pop(name)
        assert value.const_value is not None
        found[name] = value.const_value.numpy().copy()
        graph.inputs.append(value)
        value.const_value = None
    data = path.with_name("free.onnx.data")
    ir.save(model, path.with_name("free.onnx"), external_data=data.name)
    path.with_name(f"{path.name}.data").unlink()
    path.with_name("free.onnx").replace(path)
    return found


def adapter_tensors(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A plain PEFT LoRA as the builder names it: A ``[in, rank]``, B ``[rank, out]`` times its scaling."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    odd = {key: config.get(key) for key, value in PLAIN.items() if config.get(key, value) != value}
    odd |= {key: config[key] for key in ("rank_pattern", "alpha_pattern") if config.get(key)}
    if odd:
        raise SystemExit(f"{folder}: only plain LoRA is compared, got {odd}")
    scaling = config["lora_alpha"] / config["r"]
    tensors = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        parts = key.removeprefix("base_model.model.").split(".")
        path = ".".join(parts[:-2]).replace(".self_attn.", ".attn.")
        half = parts[-2]
        assert half in ("lora_A", "lora_B"), key
        turned = np.ascontiguousarray(tensor.T)
        tensors[f"{path}.{half}.MatMul.weight"] = turned * np.float32(scaling if half == "lora_B" else 1)
    return tensors


def shapes_of(tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, tuple[int, ...]]:
    """Their shapes by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def write_adapter(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """One adapter in ONNX Runtime's own format."""
    import onnxruntime as ort

    file = ort.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in tensors.items()})
    file.export_adapter(str(path))


def cut_prompts(model: Path, number: int, length: int) -> list[list[int]]:
    """Pieces of a text, as token ids."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)(TEXT.read_text())["input_ids"]
    if len(ids) < number * length:
        raise SystemExit(f"{TEXT.name} has {len(ids)} tokens, fewer than {number} prompts of {length}")
    return [ids[index * length : (index + 1) * length] for index in range(number)]


def expected(
    model: Path, adapters: Sequence[Path], prompts: Sequence[Sequence[int]], new: int
) -> list[list[int]]:
    """PEFT's greedy tokens for each prompt with its adapter; none of them ends the text."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, str(adapters[0]), "0")
    for index, folder in enumerate(adapters[1:], 1):
        peft.load_adapter(str(folder), str(index))
    found = []
    for index, prompt in enumerate(prompts):
        peft.set_adapter(str(index))
        ids = torch.tensor([prompt])
        out = peft.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=False,
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


def run(chosen: argparse.Namespace) -> None:
    """Generate every tenant's tokens ``repeats`` times, after once to warm up; prints JSON."""
    import onnxruntime_genai as og  # type: ignore[import-not-found]

    folder: Path = chosen.folder
    work = json.loads((folder / WORK).read_text())
    prompts, new = work["prompts"], work["new_tokens"]
    config = og.Config(str(folder / MODEL))
    session = {"intra_op_num_threads": chosen.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    adapters = og.Adapters(model)
    for index in range(len(prompts)):
        adapters.load(str(folder / ADAPTERS / f"{index}.onnx_adapter"), str(index))
    ids = generate(og, model, adapters, prompts, new)
    for index, (got, wanted) in enumerate(zip(ids, work["expected"], strict=True)):
        if got != wanted:
            raise SystemExit(f"tenant {index}: onnxruntime-genai generates {got}, PEFT {wanted}")
    wall, cpu = [], []
    for _ in range(chosen.repeats):
        before = time.perf_counter(), time.process_time()
        again = generate(og, model, adapters, prompts, new)
        wall.append(time.perf_counter() - before[0])
        cpu.append(time.process_time() - before[1])
        assert again == ids
    tokens = new * len(prompts)
    report = {
        "onnxruntime_genai": og.__version__,
        "threads": chosen.threads,
        "tenants": len(prompts),
        "prompt_tokens": len(prompts[0]),
        "new_tokens": new,
        "wall_s": wall,
        "cpu_s": cpu,
        "new_tokens_per_s": tokens / float(np.median(wall)),
        "prompts": prompts,
        "ids": ids,
    }
    sys.stdout.write(json.dumps(report) + "\n")


def generate(
    og: Any, model: Any, adapters: Any, prompts: Sequence[Sequence[int]], new: int
) -> list[list[int]]:
    """Greedy tokens of every prompt with its tenant's adapter, one generator after another."""
    found = []
    for index, prompt in enumerate(prompts):
        length = len(prompt) + new
        params = og.GeneratorParams(model)
        # as long as the longest: the token that ends a text is ruled out
        params.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = og.Generator(model, params)
        generator.set_active_adapter(adapters, str(index))
        generator.append_tokens(np.array(prompt, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        found.append(generator.get_sequence(0)[len(prompt) :].tolist())
    return found


if __name__ == "__main__":
    main()
