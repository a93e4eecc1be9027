"""Every kind of slot from the command line: what refusals say, that their mends work, what is shown."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from adexport_runtime import Bundle, Code
from tests.runtime.support import GOLDEN_HUB, GOLDEN_PEFT

from .support import run, run_json

BASE = GOLDEN_PEFT / "bases" / "bert"
IA3 = GOLDEN_PEFT / "bert" / "ia3"
BIAS = GOLDEN_PEFT / "bert" / "bias-lora-only"
DORA = GOLDEN_PEFT / "bert" / "dora"
SEQ_BN = GOLDEN_HUB / "bert" / "seq_bn"
LN_AFTER = GOLDEN_HUB / "bert" / "ln_after"
GELU = GOLDEN_HUB / "bert" / "activation-gelu"
HEAD = GOLDEN_HUB / "bert" / "head-classification-lora"
TAGGER = GOLDEN_HUB / "bert" / "head-tagging"


@pytest.fixture(scope="module")
def lora_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as it is built by default. Shared, not to be changed."""
    target = tmp_path_factory.mktemp("cli") / "b.bundle"
    assert run("build", BASE, "-o", target).exit_code == 0
    return target


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a base whose heads all come with adapters. Shared, not to be changed."""
    target = tmp_path_factory.mktemp("cli") / "h.bundle"
    slots = "lora,scale,bottleneck,head"
    result = run("build", BASE, "--task", "text-classification", "--slots", slots, "-o", target)
    assert result.exit_code == 0, result.stderr
    return target


def mends(bundle: Path, adapter: Path, *also: Path) -> list[str]:
    """The commands that a refusal proposes, without what stands for another way."""
    problems = run_json("bind", adapter, "-b", bundle, "--name", "x", code=1)["problems"]
    commands = []
    for mend in dict.fromkeys(problem["mend"] for problem in problems):
        command = mend.partition(" (")[0].partition(", or")[0]
        likes = " ".join(f"--like {path}" for path in (adapter, *also))
        commands.append(command.replace("--like ADAPTER", likes).replace("BUNDLE", str(bundle)))
    return commands


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([IA3], id="scale"),
        pytest.param([BIAS], id="bias"),
        pytest.param([DORA], id="bias and scale"),
        pytest.param([SEQ_BN], id="bottleneck"),
        pytest.param([SEQ_BN, GELU], id="another activation"),
        pytest.param([SEQ_BN, GELU, LN_AFTER], id="another form"),
        pytest.param([SEQ_BN, IA3, DORA], id="kind after kind"),
    ],
)
def test_each_mend_works(lora_only: Path, tmp_path: Path, steps: list[Path]) -> None:
    """Refused, mended as the refusal says, bound; what was bound before stays."""
    bundle = Path(shutil.copytree(lora_only, tmp_path / "b.bundle"))
    for count, adapter in enumerate(steps):
        for command in mends(bundle, adapter, *steps[:count]):
            verb, *words = shlex.split(command)
            assert verb == "adexport"
            result = run(*words)
            assert result.exit_code == 0, result.stderr
        assert run("bind", adapter, "-b", bundle).exit_code == 0
    assert sorted(Bundle.open(bundle).adapters()) == sorted(path.name for path in steps)


def test_a_head_needs_another_trace(lora_only: Path, headless: Path, tmp_path: Path) -> None:
    (command,) = mends(lora_only, HEAD)
    assert command == "adexport build MODEL --task text-classification --slots lora,head"
    (command,) = mends(headless, TAGGER)
    assert command == "adexport build MODEL --task token-classification --slots lora,scale,bottleneck,head"
    refused = run_json("build", BASE, "--task", "text-classification", code=1)
    assert {problem["subject"] for problem in refused["problems"]} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert "--slots lora,head" in refused["problems"][0]["mend"]
    words = ("build", BASE, "--task", "text-classification", "--like", HEAD, "-o", tmp_path / "l.bundle")
    assert run_json(*words)["slots"] == ["lora", "head"]
    assert run("bind", HEAD, "-b", tmp_path / "l.bundle").exit_code == 0


def test_targets_without_linear_slots(lora_only: Path) -> None:
    refused = run_json("build", lora_only, "--slots", "bottleneck", "--targets", "query", code=1)
    assert [problem["subject"] for problem in refused["problems"]] == ["--targets"]


def test_bind_says_what_was_bound(headless: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(headless, tmp_path / "b.bundle"))
    for adapter, said in (
        (IA3, "peft:IA3, 8 of 12 sites, "),
        (SEQ_BN, "adapterhub:bottleneck, 2 of 4 bottlenecks, width 4, "),
        (HEAD, "adapterhub:lora, 4 of 12 sites, rank 2, a head of 5 labels, "),
    ):
        assert said in run("bind", adapter, "-b", bundle).stdout
    facts = run_json("bind", SEQ_BN, "-b", bundle, "--replace")
    assert (facts["sites"], facts["rank"], facts["bottlenecks"], facts["width"]) == (0, 0, 2, 4)
    assert facts["labels"] is None
    assert len(run_json("bind", HEAD, "-b", bundle, "--replace")["labels"]) == 5


def test_inspect_a_bundle(headless: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(headless, tmp_path / "b.bundle"))
    for adapter in (IA3, SEQ_BN, HEAD):
        run_json("bind", adapter, "-b", bundle)
    facts = run_json("inspect", bundle)
    assert facts["slots"] == ["lora", "scale", "bottleneck", "head"]
    assert facts["max_width"] == 64
    assert set(map(tuple, facts["site_kinds"].values())) == {("lora", "scale")}
    assert facts["site_kinds"].keys() == facts["sites"].keys()
    assert [form["input"] for form in facts["bottlenecks"]["forms"]] == ["hidden", "normed"]
    place = facts["bottlenecks"]["sites"]["encoder.layer.1.output.dense"]
    assert place == {"layer": 1, "location": "output", "features": 16}
    assert facts["head"]["inputs"] == ["first", "pooler"]
    assert facts["adapters"]["seq_bn"]["bottlenecks"] == 2
    text = run("inspect", bundle).stdout
    for line in (
        "  2 × encoder.layer.*.output.dense  24 → 16  lora, scale",
        "  2 × encoder.layer.*.output.dense  16 features, output",
        "bottlenecks       (plain) or (input=normed) with relu, silu",
        "head              on first or pooler with tanh, relu, gelu",
        "adapter ia3: 8 sites, rank 0, ",
        "adapter seq_bn: 2 bottlenecks, width 4, ",
        "adapter head-classification-lora: 4 sites, rank 2, a head of 5 labels, ",
    ):
        assert line in text


@pytest.mark.parametrize("bound", [False, True])
def test_inspect_adapters(headless: Path, tmp_path: Path, bound: bool) -> None:
    """A foreign adapter and what it becomes say the same of themselves."""
    bundle = Path(shutil.copytree(headless, tmp_path / "b.bundle"))

    def path(adapter: Path) -> Path:
        if bound and not Bundle.open(bundle).adapter_path(adapter.name).exists():
            run_json("bind", adapter, "-b", bundle)
        return Bundle.open(bundle).adapter_path(adapter.name) if bound else adapter

    ia3 = run_json("inspect", path(IA3))
    assert set(map(tuple, ia3["site_kinds"].values())) == {("scale",)}
    assert (ia3["bottleneck"], ia3["head"], ia3["widths"]) == (None, None, {})
    seq_bn = run_json("inspect", path(SEQ_BN))
    assert seq_bn["bottleneck"]["form"]["input"] == "normed"
    assert seq_bn["bottleneck"]["activation"] == "relu"
    assert list(seq_bn["widths"].values()) == [4, 4]
    head = run_json("inspect", path(HEAD))["head"]
    assert (head["feature"], len(head["labels"])) == ("first", 5)
    assert "2 × encoder.layer.*.attention.self.key  scale" in run("inspect", path(IA3)).stdout
    text = run("inspect", path(SEQ_BN)).stdout
    assert "bottleneck        (input=normed) with relu" in text
    assert "2 bottlenecks:" in text
    assert "width 4" in text
    text = run("inspect", path(HEAD)).stdout
    assert f"labels {', '.join(head['labels'])}" in text
    assert "rank 2" in text


def test_inspect_layers_that_replace_the_bases(headless: Path) -> None:
    facts = run_json("inspect", GOLDEN_PEFT / "bert-classifier" / "lora")
    assert facts["replaced"] == ["classifier"]
    assert "replaced          classifier" in run("inspect", GOLDEN_PEFT / "bert-classifier" / "lora").stdout


def test_a_lowering_that_would_drop_an_adapter(headless: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(headless, tmp_path / "b.bundle"))
    run_json("bind", SEQ_BN, "-b", bundle)
    before = (bundle / "manifest.json").read_bytes()
    for words in ((), ("-o", tmp_path / "other.bundle")):
        refused = run_json("build", bundle, "--slots", "lora,head", *words, code=1)
        assert Code.NO_SLOT in {problem["code"] for problem in refused["problems"]}
        assert all(problem["subject"].startswith("seq_bn: ") for problem in refused["problems"])
    assert (bundle / "manifest.json").read_bytes() == before
    assert not (tmp_path / "other.bundle").exists()


def test_labels_that_peft_does_not_store(tmp_path: Path) -> None:
    bundle, adapter = tmp_path / "heads.bundle", GOLDEN_PEFT / "bert-classifier" / "lora-5-labels"
    made = run("build", GOLDEN_PEFT / "bases" / "bert-classifier", "-o", bundle, "--slots", "lora,head")
    assert made.exit_code == 0, made.stderr
    assert run_json("bind", adapter, "-b", bundle, "--name", "plain")["labels"] == [
        f"LABEL_{index}" for index in range(5)
    ]
    named = run_json("bind", adapter, "-b", bundle, "--name", "named", "--labels", "a, b,c,d,e")
    assert named["labels"] == ["a", "b", "c", "d", "e"]
    wrong = run("bind", adapter, "-b", bundle, "--name", "wrong", "--labels", "a,b")
    assert wrong.exit_code == 1
    assert "2 names" in wrong.stderr
