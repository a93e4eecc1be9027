"""`verify`: a bundle against torch and PEFT, whatever its inputs, its heads and its adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, get_peft_model

from adexport import peft_reference, verify
from adexport.build import build_model, lower_again
from adexport.options import BuildOptions
from adexport.verify import verify_bundle
from adexport_runtime import AdapterError, BuildError, Code

from ..conftest import MakeLora
from ..contract.golden import GOLDEN, build, cases, groups
from .families import BARE, CAUSAL, FAMILIES, IMAGE, TEXT

LLAMA = ["q_proj", "v_proj", "down_proj"]
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """``save(name, model, PeftConfig)`` saves a random PEFT adapter."""

    def made(name: str, model: Any, config: Any) -> Path:
        peft = get_peft_model(model, config)
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for weight in peft.parameters():
                if weight.requires_grad:
                    weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        peft.save_pretrained(str(tmp_path / "adapters" / name))
        return tmp_path / "adapters" / name

    return made


# PEFT's own files of AdaLoRA have patterns of another kind
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
@pytest.mark.slow
@pytest.mark.parametrize("group", groups("peft"), ids="-".join)
def test_adapters_of_every_peft_family(group: tuple[str, str, str], tmp_path: Path) -> None:
    """Heads of several widths, and methods that change the base as PEFT loads them, in one batch."""
    paths = [case.path for case in cases("peft", "serve") if case.group == group]
    report = verify_bundle(build(group, tmp_path / "b"), paths, tolerance=2e-5)
    assert {row.adapter for row in report.rows} == {None, *(path.name for path in paths)}
    assert report.worst <= 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("task", [BARE, IMAGE])
def test_images(task: str, tmp_path: Path, save: Save) -> None:
    folder = FAMILIES["ViT"].save(task, tmp_path / "model")
    slots = ("lora", "head") if task == IMAGE else ("lora",)
    build_model(str(folder), tmp_path / "b", options=BuildOptions(slots=slots))
    report = verify_bundle(tmp_path / "b")
    assert len({row.adapter for row in report.rows}) == 4
    assert {row.tokens for row in report.rows} == {None}
    if task == IMAGE:
        wide = transformers.ViTForImageClassification.from_pretrained(
            folder, num_labels=5, ignore_mismatched_sizes=True
        )
        config = LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"])
        assert verify_bundle(tmp_path / "b", [save("wide", wide, config)]).worst <= 1e-5


@pytest.mark.slow
def test_prompts_and_adapters_of_another_class(tmp_path: Path, save: Save) -> None:
    """A bare decoder and one with its language model: each serves adapters of both."""
    folder = FAMILIES["Llama"].save(CAUSAL, tmp_path / "model")
    whole, bare = (
        getattr(transformers, auto).from_pretrained(folder)
        for auto in ("AutoModelForCausalLM", "AutoModel")
    )
    adapters = [
        save("whole", whole, LoraConfig(task_type="CAUSAL_LM", target_modules=LLAMA)),
        save("bare", bare, LoraConfig(target_modules=LLAMA)),
    ]
    for task in (CAUSAL, BARE):
        build_model(str(folder), tmp_path / task, task=task)
        report = verify_bundle(tmp_path / task, adapters)
        assert report.worst <= 1e-5
        assert {row.adapter for row in report.rows} == {None, "whole", "bare"}
        assert verify_bundle(tmp_path / task).worst <= 1e-5


@pytest.mark.slow
def test_a_prefixed_adapter_that_says_no_task(tmp_path: Path, save: Save) -> None:
    folder = FAMILIES["Llama"].save(CAUSAL, tmp_path / "model")
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder)
    build_model(str(folder), tmp_path / "b", task=BARE)
    adapter = save("whole", whole, LoraConfig(target_modules=LLAMA))
    with pytest.raises(BuildError) as caught:
        verify_bundle(tmp_path / "b", [adapter])
    (problem,) = caught.value.problems
    assert problem.code == Code.UNSUPPORTED
    assert "CAUSAL_LM" in problem.expected


@pytest.mark.slow
def test_a_base_without_a_head(tmp_path: Path, save: Save) -> None:
    """Rows of the base have hidden states, rows of an adapter with a head have logits besides."""
    folder = FAMILIES["Bert"].save(BARE, tmp_path / "model")
    options = BuildOptions(slots=("lora", "scale", "head"))
    build_model(str(folder), tmp_path / "b", task=TEXT, options=options)

    def classifier(labels: int) -> Any:
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)

    adapters = [
        save("two", classifier(2), LoraConfig(task_type="SEQ_CLS", target_modules=["query"])),
        save(
            "five",
            classifier(5),
            IA3Config(task_type="SEQ_CLS", target_modules=["value"], feedforward_modules=[]),
        ),
        save("bare", transformers.AutoModel.from_pretrained(folder), LoraConfig(target_modules=["key"])),
    ]
    report = verify_bundle(tmp_path / "b", adapters)
    assert report.worst <= 1e-5
    assert {row.adapter for row in report.rows} == {None, "two", "five", "bare"}
    assert verify_bundle(tmp_path / "b").worst <= 1e-5


def test_without_slots(tiny_bundle: Path, tmp_path: Path, make_lora: MakeLora) -> None:
    lower_again(tiny_bundle, tmp_path / "plain", options=BuildOptions(slots=()))
    report = verify_bundle(tmp_path / "plain")
    assert [row.adapter for row in report.rows] == [None, None, None]
    assert len({row.tokens for row in report.rows}) == 3
    with pytest.raises(AdapterError):
        verify_bundle(tmp_path / "plain", [make_lora("one")])


def test_without_lora_slots(tiny_bundle: Path, tmp_path: Path) -> None:
    lower_again(tiny_bundle, tmp_path / "scaled", options=BuildOptions(slots=("scale",)))
    assert {row.adapter for row in verify_bundle(tmp_path / "scaled").rows} == {None}


def test_adapters_of_the_other_library_are_refused(tiny_bundle: Path, make_lora: MakeLora) -> None:
    others = [GOLDEN / "adapterhub" / "bert" / name for name in ("seq_bn", "lora")]
    with pytest.raises(AdapterError) as caught:
        verify_bundle(tiny_bundle, [others[0], make_lora("one"), others[1]])
    assert [problem.subject for problem in caught.value.problems] == [str(path) for path in others]
    assert all("adexport run" in problem.mend for problem in caught.value.problems)


def test_lora_runs_mixed_in_peft_and_others_alone(
    tiny_bundle: Path, tmp_path: Path, make_lora: MakeLora, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower_again(tiny_bundle, tmp_path / "b", options=BuildOptions(slots=("lora", "bias", "scale")))
    alone: list[str] = []
    known = peft_reference._alone

    def noted(loaded: Any, tenant: Any, labels: int) -> Any:
        alone.append(tenant.folder.name)
        return known(loaded, tenant, labels)

    monkeypatch.setattr(peft_reference, "_alone", noted)
    plain = [make_lora("one", r=3), make_lora("two", use_rslora=True)]
    assert verify_bundle(tmp_path / "b", plain).worst <= 1e-6
    assert alone == []
    dora = make_lora("dora", use_dora=True)
    assert verify_bundle(tmp_path / "b", [*plain, dora]).worst <= 1e-6
    assert alone == ["one", "two", "dora"]


@pytest.mark.parametrize("fault", ["a value", "NaN", "other labels", "a row"])
def test_every_difference_is_noticed(
    fault: str, tiny_bundle: Path, make_lora: MakeLora, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN is no small number, and logits of another head are no near miss."""

    def wrong(*arguments: Any) -> Any:
        found = peft_reference.run_peft(*arguments)
        state = found[1]["last_hidden_state"]
        if fault == "a value":
            state[0, 0] += 1e-3
        elif fault == "NaN":
            state[0, 0] = np.nan
        elif fault == "other labels":
            found[1]["pooler_output"] = found[1]["pooler_output"][:-1]
        else:
            found[1], found[3] = found[3], found[1]
        return found

    monkeypatch.setattr(verify, "run_peft", wrong)
    with pytest.raises(BuildError) as caught:
        verify_bundle(tiny_bundle, [make_lora("one", r=3)])
    assert caught.value.codes == {Code.PARITY}
    assert "row 1 (one, 9 tokens)" in [problem.subject for problem in caught.value.problems]
    assert len(caught.value.problems) == (2 if fault == "a row" else 1)


def test_padding_does_not_count(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> Any:
        found = peft_reference.run_peft(*arguments)
        found[0]["last_hidden_state"][4:] = np.nan  # the first row has four tokens
        return found

    monkeypatch.setattr(verify, "run_peft", wrong)
    assert verify_bundle(tiny_bundle).rows[0].tokens == 4
