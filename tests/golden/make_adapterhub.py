"""Make ``tests/golden/adapterhub``: tiny bases, AdapterHub's adapters of them, and what it computed.

Runs in an environment of its own, since adapters needs transformers 4:

    python -m venv golden-venv
    golden-venv/bin/pip install torch==2.13.0
    golden-venv/bin/pip install -r requirements/adapterhub.txt
    golden-venv/bin/python tests/golden/make_adapterhub.py
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
import zlib
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import adapters
import torch
import transformers
from adapterhub_bases import BASES, PAD, texts
from adapterhub_cases import REFUSE, Case, seq
from adapterhub_heads import all_cases, raising
from adapters import AutoAdapterModel
from adapters.composition import Fuse
from safetensors.torch import load_file, save_file
from torch import nn

HERE = Path(__file__).parent / "adapterhub"
# the largest that float32 may be from float64, of the largest value
ROUNDING = 1e-5
# bases that the library changes even with no adapter
SPOILT = {"modernbert"}
# the least that an adapter must move its base's output
MOVED = 1e-2


class DropPath(nn.Identity):
    """What torchvision's stochastic depth is when a model serves, so that torchvision is not needed."""

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()


def without_torchvision() -> None:
    module = types.ModuleType("torchvision.ops.stochastic_depth")
    module.StochasticDepth = DropPath  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    adapters.methods.modeling.is_torchvision_available = lambda: True


def note(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def main() -> None:
    """Write everything anew."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    without_torchvision()
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    # names of bases in the files are relative: no path of the machine that made them
    os.chdir(HERE)
    plain: dict[str, torch.Tensor] = {}
    for name, config in BASES.items():
        write_base(name, config)
        ids, mask = texts(PAD.get(name, 0))
        plain[name] = compute(load_base(name), ids, mask)["last_hidden_state"]
        if name not in SPOILT:
            wrapped = load_base(name)
            adapters.init(wrapped)
            torch.testing.assert_close(compute(wrapped, ids, mask)["last_hidden_state"], plain[name])
        (HERE / name).mkdir()
        write_expected(HERE / name / "base.safetensors", ids, mask, {"last_hidden_state": plain[name]})
    index: list[dict[str, str]] = []
    failures = []
    for case in all_cases():
        try:
            write_case(case, plain[case.base])
        except Exception as error:
            failures.append(f"{case.base}/{case.name}: {type(error).__name__}: {error}")
            continue
        entry = {
            "base": case.base,
            "case": case.name,
            "kind": case.kind,
            "family": case.family,
            "task": case.task,
        }
        index.append({**entry, "why": case.why} if case.kind == REFUSE else entry)
    for case in raising():
        try:
            made = with_adapters(case)
            made.add_adapter(case.adapter, config=case.config)
            made.set_active_adapters(case.adapter)
            compute(made, *texts(PAD.get(case.base, 0)))
        except Exception as error:
            note(f"{case.base}/{case.name} raises {type(error).__name__}: {str(error).splitlines()[0]}")
        else:
            failures.append(f"{case.base}/{case.name}: the library has learned this")
    if failures:
        raise SystemExit("\n".join(failures))
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in index)
    (HERE / "index.json").write_text(f"[\n{lines}\n]\n")


def write_base(name: str, config: transformers.PretrainedConfig) -> None:
    """A base whose norms and biases are nothing like their initial ones and zeros."""
    torch.manual_seed(zlib.crc32(name.encode()))
    model = transformers.AutoModel.from_config(config).eval()
    generator = seeded(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                # Gemma's norms multiply by 1 + weight
                center = 0.0 if key.endswith("bias") or name == "gemma2" else 1.0
                parameter.copy_(center + 0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(HERE / "bases" / name)
    (HERE / "bases" / name / "generation_config.json").unlink(missing_ok=True)


def load_base(name: str, special: str = "", flexible: bool = False) -> Any:
    path = f"bases/{name}"
    options: dict[str, Any] = {"attn_implementation": "eager"}
    if flexible:
        return AutoAdapterModel.from_pretrained(path, **options).eval()
    if special == "static":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=3, **options
        )
    else:
        model = transformers.AutoModel.from_pretrained(path, **options)
    return model.eval()


def with_adapters(case: Case) -> Any:
    model = load_base(case.base, case.special, case.flexible)
    if not case.flexible:
        adapters.init(model)
    return model.eval()


def write_case(case: Case, plain: torch.Tensor) -> None:
    """Save the adapter, load it as a user would, and write what the library then computes."""
    folder = Path(case.base) / case.name
    made = with_adapters(case)
    names = ["first", "second"] if case.special == "fusion" else [case.adapter]
    for name in names:
        made.add_adapter(name, config=case.config or seq())
    if case.head:
        kind, options = case.head
        getattr(made, ADD_HEAD.get(kind, f"add_{kind}_head"))(case.adapter, **options)
    if case.special == "fusion":
        made.add_adapter_fusion(names)
    randomise(made, f"{case.base}/{case.name}")
    active = Fuse(*names) if case.special == "fusion" else case.adapter
    made.set_active_adapters(active)
    made.to(getattr(torch, case.dtype))
    save(made, case, folder, names)
    made.float()
    age(case, folder)

    ids, mask = texts(PAD.get(case.base, 0))
    try:
        outputs = compute(made, ids, mask)
    except (RuntimeError, IndexError) as error:
        if case.kind != REFUSE:
            raise
        note(f"{folder}: no outputs: {str(error).splitlines()[0]}")
        return
    loaded = load(case, folder, names, active)
    again = compute(loaded, ids, mask)
    if again["last_hidden_state"].shape != plain.shape:
        note(f"{folder}: no outputs: not one for each token")
        return
    # files of another age or type mean something else than what was in memory
    same = all(torch.equal(again[key], value) for key, value in outputs.items())
    if not same and not case.edit and case.dtype == "float32":
        if case.kind != REFUSE:
            raise AssertionError("what was loaded computes something else than what was saved")
        note(f"{folder}: no outputs: what was loaded computes something else than what was saved")
        return
    check(case, loaded, ids, mask, again, plain)
    write_expected(folder / "expected.safetensors", ids, mask, again)


ADD_HEAD = {"question_answering": "add_qa_head", "multilabel_classification": "add_classification_head"}


def randomise(model: Any, name: str) -> None:
    """Give every parameter of the adapter and its head a value that shows in the output."""
    generator = seeded(name)
    for key, parameter in model.named_parameters():
        parts = key.split(".")
        head = parts[0] in ("heads", "classifier")
        kinds = {"adapters", "loras", "shared_parameters", "invertible_adapters", "adapter_fusion_layer"}
        kinds |= {"prefix_tunings", "prefix_gates", "prefix_tuning", "prompt_tunings", "refts"}
        if not head and not kinds & set(parts):
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        leaf = parts[-1] if parts[-1] not in ("weight", "bias") else f"{parts[-2]}.{parts[-1]}"
        with torch.no_grad():
            if leaf in ("adapter_norm_before.weight", "adapter_norm_after.weight", "scaling"):
                parameter.copy_(1 + 0.3 * noise)
            elif leaf == "0.weight" and parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * noise)  # the norm before, by its other name
            elif leaf == "m.weight":
                parameter.mul_(1 + 0.3 * noise)
            elif leaf == "lora_B" and parameter.shape[-1] == 1:
                parameter.copy_(1 + 0.4 * noise)  # (IA)³ multiplies
            elif leaf.startswith(("phm_rule", "W", "vera_")):
                parameter.copy_(0.6 * noise)  # products of several small factors
            elif "parametrizations" in parts:
                continue  # orthogonal by construction
            else:
                parameter.copy_(0.3 * noise)


def save(model: Any, case: Case, folder: Path, names: list[str]) -> None:
    safe = case.safe
    for name in names:
        target = folder / name if case.special == "fusion" else folder
        target.mkdir(parents=True)
        model.save_adapter(str(target), name, use_safetensors=safe)
    if case.special == "fusion":
        model.save_adapter_fusion(str(folder), names, use_safetensors=safe)


def load(case: Case, folder: Path, names: list[str], active: Any) -> Any:
    model = with_adapters(case)
    safe = case.safe
    for name in names:
        target = folder / name if case.special == "fusion" else folder
        info: dict[str, list[str]] = {}
        model.load_adapter(str(target), use_safetensors=safe, loading_info=info)
        if info["missing_keys"] or info["unexpected_keys"]:
            raise AssertionError(f"{folder}: {info}")
    if case.special == "fusion":
        model.load_adapter_fusion(str(folder), use_safetensors=safe)
    model.set_active_adapters(active)
    return model.eval()


def age(case: Case, folder: Path) -> None:
    """Rewrite the files as an older version wrote them."""
    if case.edit:
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        for key, value in case.edit.items():
            *nested, leaf = key.split(".")
            place = config[nested[0]] if nested else config
            place.pop(leaf)
            if value is not None:
                place[leaf] = value
        path.write_text(json.dumps(config, indent=2, sort_keys=True))
    if case.rename:
        path = folder / "adapter.safetensors"
        tensors = {}
        for key, value in load_file(path).items():
            old = next(old for old in case.rename if old in key)
            tensors[key.replace(old, case.rename[old])] = value
        save_file(tensors, path)


def compute(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """``last_hidden_state`` [rows, tokens, hidden], and ``logits`` where there is a head."""
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask)
        found = {}
        if "last_hidden_state" in output:
            found["last_hidden_state"] = output.last_hidden_state
        else:
            found["last_hidden_state"] = model.base_model(
                input_ids=ids, attention_mask=mask
            ).last_hidden_state
            if "start_logits" in output:
                found["start_logits"], found["end_logits"] = output.start_logits, output.end_logits
                found["logits"] = torch.stack([output.start_logits, output.end_logits], dim=-1)
            else:
                found["logits"] = output.logits
    return found


def check(
    case: Case,
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    outputs: dict[str, torch.Tensor],
    plain: torch.Tensor,
) -> None:
    """A fixture must show its adapter, be finite, and be what float64 gives."""
    real = mask.bool()
    moved = (outputs["last_hidden_state"] - plain)[real].abs().amax()
    # each row by itself: none may be left as it was
    least = torch.stack(
        [
            (outputs["last_hidden_state"] - plain)[row][real[row]].abs().amax()
            for row in range(len(ids))
            # on one token alone, queries and keys change nothing
            if real[row].sum() > 1
        ]
    ).amin()
    if not least > MOVED:
        raise AssertionError(
            f"{case.base}/{case.name}: the adapter moves the output by {least} … {moved} only"
        )
    try:
        exact = compute(model.double(), ids, mask)
    except RuntimeError as error:
        note(f"{case.base}/{case.name}: no float64: {str(error).splitlines()[0]}")
        return
    for key, value in outputs.items():
        if not value.isfinite().all():
            raise AssertionError(f"{case.base}/{case.name}: {key} is not finite")
        far = (exact[key] - value).abs().amax() / max(1.0, float(value.abs().amax()))
        if far > ROUNDING:
            raise AssertionError(f"{case.base}/{case.name}: {key} is {far} from float64")


def write_expected(
    path: Path, ids: torch.Tensor, mask: torch.Tensor, outputs: dict[str, torch.Tensor]
) -> None:
    tensors = {"input_ids": ids, "attention_mask": mask, **outputs}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


if __name__ == "__main__":
    main()
