"""The real decoder: what its file holds, as a plain transformers folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file
from samples.smollm2 import GGUF, package_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
}
HEADS = {"attn_q": 9, "attn_k": 3}


def name_of(name: str) -> str:
    """``blk.3.attn_v.weight`` is ``model.layers.3.self_attn.v_proj.weight``."""
    *block, module, kind = name.split(".")
    prefix = f"model.layers.{block[1]}." if block else ""
    return f"{prefix}{NAMES[module]}.{kind}"


@pytest.mark.slow
def test_every_weight_is_the_files(smollm2: Path) -> None:
    weights = load_file(smollm2 / "model.safetensors")
    for tensor in GGUFReader(package_folder() / GGUF).tensors:
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        heads = HEADS.get(tensor.name.split(".")[-2])
        if heads is not None:  # GGUF interleaves the halves of the rotary embedding
            out, size = expected.shape
            expected = expected.reshape(heads, out // heads // 2, 2, size).swapaxes(1, 2).reshape(out, size)
        assert torch.equal(weights.pop(name_of(tensor.name)), expected), tensor.name
    assert not weights


@pytest.mark.slow
def test_it_answers(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")

    def answer(prompt: str, tokens: int) -> str:
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])

    assert answer("The capital of France is", 1) == " Paris"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>assistant\n")
    assert answer(prompt, 16) == "The capital of France is Paris.<|im_end|>"
