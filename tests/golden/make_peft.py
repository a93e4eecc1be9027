"""Make ``tests/golden/peft``: an adapter of every PEFT family, and what PEFT itself computed with it.

Run with the PEFT that is to be held to: python tests/golden/make_peft.py

``index.json`` lists every case: the base, whether the adapter can be served exactly or is refused,
the family, the task, the factors that its slots need, and a note. A served case has
``expected.safetensors``: ids and mask (the same for every case of a base) and, in float32, what
``PeftModel.from_pretrained(base, case)`` answers; compare hidden states where the mask is 1.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from peft_bases import BASES, load_base, save_base
from peft_cases import CASES, Case
from peft_refused import REFUSED
from safetensors.torch import save_file
from transformers import PreTrainedModel

HERE = Path(__file__).parent / "peft"
LENGTHS = [7, 4, 1, 6]
ADAPTER_STD = 0.3
# an adapter that hardly moves the output would prove nothing
LEAST_EFFECT = 1e-2
# sets in PEFT, whose order in the JSON is that of the day
UNORDERED = ("target_modules", "feedforward_modules", "exclude_modules", "modules_to_save")


def main() -> None:
    """Write everything anew."""
    torch.set_num_threads(1)
    shutil.rmtree(HERE, ignore_errors=True)
    for name in BASES:
        save_base(name, HERE / "bases" / name)
    index = []
    for case in [*CASES, *REFUSED]:
        torch.manual_seed(zlib.crc32(f"{case.base}/{case.name}".encode()))
        folder = HERE / case.base / case.name
        with tempfile.TemporaryDirectory() as scratch:
            write_adapter(case, folder, Path(scratch) / "untrained")
        if case.kind == "serve":
            write_expected(case, folder)
        index.append(case.entry())
    (HERE / "index.json").write_text(json.dumps(index, indent=1) + "\n")


def fresh_base(case: Case) -> PreTrainedModel:
    """The base as a user loads it; another number of labels than the base's means a new head."""
    return load_base(HERE / "bases" / case.base, case.task, case.labels)


def write_adapter(case: Case, folder: Path, untrained: Path) -> None:
    """Train (by chance) an adapter and save it as PEFT does, less what names this machine."""
    model = get_peft_model(fresh_base(case), case.config())
    if case.convert:
        save_untrained(model, untrained)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * ADAPTER_STD)
    if case.train is not None:
        case.train(model)
    if case.dtype is not None:
        model.to(case.dtype)
    options = {"path_initial_model_for_weight_conversion": str(untrained)} if case.convert else {}
    model.save_pretrained(str(folder), **options)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = case.base
    for key in UNORDERED:
        if isinstance(config.get(key), list):
            config[key].sort()
    config.update(case.edits)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def save_untrained(model: PeftModel, folder: Path) -> None:
    """What PEFT's conversion subtracts; it must be saved as if it were plain LoRA."""
    config = model.peft_config["default"]
    initialization, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(str(folder))
    config.init_lora_weights = initialization


def write_expected(case: Case, folder: Path) -> None:
    """One ragged batch through the base with the adapter that was saved."""
    base = fresh_base(case).eval()
    ids, mask = batch(base.config.vocab_size, base.config.pad_token_id)
    with torch.no_grad():
        plain = base(input_ids=ids, attention_mask=mask)
        adapted = PeftModel.from_pretrained(base, folder).eval()(input_ids=ids, attention_mask=mask)
    outputs = {
        name: getattr(adapted, name).contiguous()
        for name in ("logits", "last_hidden_state", "pooler_output")
        if getattr(adapted, name, None) is not None
    }
    main_output = next(iter(outputs))
    effect = (outputs[main_output] - plain[main_output]).abs().max()
    assert effect > LEAST_EFFECT, f"{case.base}/{case.name} moves the output by {effect} only"
    save_file({"input_ids": ids, "attention_mask": mask, **outputs}, folder / "expected.safetensors")


def batch(vocabulary: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [4, 7], ragged on the right; the pad id is in no text."""
    shape = (len(LENGTHS), max(LENGTHS))
    words = [word for word in range(vocabulary) if word != pad]
    chosen = torch.randint(len(words), shape, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(shape[1])[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.where(mask, torch.tensor(words)[chosen], pad)
    return ids, mask.long()


if __name__ == "__main__":
    main()
