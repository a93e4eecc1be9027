"""Make ``tests/golden/v1``: a bundle of format version 1, adapters of it, and what PEFT computed.

Run once for a format version, with the libraries of the day; what it wrote stays, so that later
code is held to it: python tests/golden/make_v1.py
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import save_file
from transformers import BertConfig, BertModel

from adexport.build import build_model
from adexport.options import BuildOptions
from adexport_runtime import Bundle, bind_into_bundle

HERE = Path(__file__).parent / "v1"
ADAPTERS = {
    "query-value": LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"]),
    "patterns": LoraConfig(
        r=3,
        lora_alpha=5,
        use_rslora=True,
        rank_pattern={"key": 1},
        alpha_pattern={"output.dense": 7},
        target_modules=["key", "output.dense"],
    ),
}
ROWS = ["query-value", None, "patterns", "query-value"]


def main() -> None:
    """Write everything anew."""
    shutil.rmtree(HERE, ignore_errors=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=24,
    )
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "golden-bert"
        BertModel(config).save_pretrained(base)
        for name, lora in ADAPTERS.items():
            peft = get_peft_model(BertModel.from_pretrained(base), lora)
            with torch.no_grad():
                for key, parameter in peft.named_parameters():
                    if "lora_" in key:
                        parameter.normal_(std=0.3)
            # no path of the machine that made it
            peft.peft_config["default"].base_model_name_or_path = "golden-bert"
            peft.save_pretrained(str(HERE / "peft" / name))
            (HERE / "peft" / name / "README.md").unlink(missing_ok=True)
        bundle = build_model(str(base), HERE / "golden.bundle", options=BuildOptions(max_rank=4)).bundle
        scrubbed = bundle.manifest.model_copy(
            update={"base": bundle.manifest.base.model_copy(update={"source": "golden-bert"})}
        )
        (bundle.root / "manifest.json").write_text(scrubbed.to_json())
        for name in ADAPTERS:
            bind_into_bundle(Bundle.open(bundle.root), HERE / "peft" / name)
        write_expected(base)


def write_expected(base: Path) -> None:
    """One mixed, ragged batch through PEFT."""
    first, *others = ADAPTERS
    model = PeftModel.from_pretrained(
        BertModel.from_pretrained(base), HERE / "peft" / first, adapter_name=first
    )
    for name in others:
        model.load_adapter(HERE / "peft" / name, adapter_name=name)
    ids = torch.arange(1, 1 + 4 * 6).reshape(4, 6) % 19 + 1
    mask = (torch.arange(6)[None] < torch.tensor([6, 4, 1, 5])[:, None]).long()
    names = ["__base__" if row is None else row for row in ROWS]
    with torch.no_grad():
        output = model.eval()(input_ids=ids, attention_mask=mask, adapter_names=names)
    save_file(
        {
            "input_ids": ids.numpy(),
            "attention_mask": mask.numpy(),
            "last_hidden_state": np.ascontiguousarray(output.last_hidden_state.numpy()),
        },
        HERE / "expected.safetensors",
        {"rows": json.dumps(ROWS)},
    )


if __name__ == "__main__":
    main()
