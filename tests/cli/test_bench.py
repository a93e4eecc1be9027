"""``adexport bench`` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from adexport.build import build_model, lower_again
from adexport.options import BuildOptions
from tests.exporter.families import CAUSAL, FAMILIES

from .support import run, run_json, run_without

SMALL = ["--batch", "2", "--seq", "4", "--adapters", "2", "--rank", "2", "--repeats", "2"]


def test_table_and_json(tiny_bundle: Path) -> None:
    shown = run("bench", tiny_bundle, *SMALL, "--against", "base,ort-adapter")
    assert shown.exit_code == 0, shown.stderr
    assert "ort-adapter" in shown.stdout
    assert "cold bind" in shown.stdout
    data = run_json("bench", tiny_bundle, *SMALL, "--against", "base")
    assert set(data["against"]) == {"base"}
    assert set(data["against"]["base"]["cpu_ratio"]) == {"low", "median", "high"}


def test_no_contender(tiny_bundle: Path) -> None:
    assert run_json("bench", tiny_bundle, *SMALL, "--against", "")["against"] == {}


@pytest.mark.parametrize(
    "words", [["--against", "vllm"], ["--batch", "0"], ["--repeats", "0"], ["--threads", "-1"]]
)
def test_wrong_usage(tiny_bundle: Path, words: list[str]) -> None:
    result = run("bench", tiny_bundle, *words)
    assert result.exit_code == 2
    if words[0] == "--against":
        assert "base, peft, ort-adapter, without-kernels, graph" in result.stderr


def test_what_does_not_fit_is_refused(tiny_bundle: Path) -> None:
    data = run_json("bench", tiny_bundle, "--rank", "17", "--against", "base", code=1)
    assert [problem["subject"] for problem in data["problems"]] == ["--seq", "--rank"]


def test_only_peft_needs_torch(tiny_bundle: Path) -> None:
    torch = ["torch", "transformers", "peft", "onnxscript"]
    done = run_without(torch, "bench", tiny_bundle, *SMALL, "--against", "base,ort-adapter")
    assert done.returncode == 0, done.stderr
    done = run_without(torch, "bench", tiny_bundle, *SMALL)
    assert done.returncode == 1
    assert "adexport[verify]" in done.stderr


def test_slots_by_family(tiny_bundle: Path) -> None:
    small = [
        "--batch",
        "2",
        "--seq",
        "4",
        "--adapters",
        "2",
        "--repeats",
        "2",
        "--rank",
        "2",
        "--width",
        "3",
    ]
    result = run("bench", tiny_bundle, "--slots", "lora,pfeiffer,unused", *small)
    assert result.exit_code == 0, result.stderr
    for name in ("base", "lora", "pfeiffer", "unused"):
        assert name in result.stdout
    again = run_json("bench", tiny_bundle, "--slots", "houlsby", *small)
    assert set(again["families"]) == {"houlsby"}
    wrong = run("bench", tiny_bundle, "--slots", "houlsbie")
    assert wrong.exit_code == 2
    assert "houlsbie" in wrong.stderr


def test_generation(tmp_path: Path, tiny_bundle: Path) -> None:
    folder = FAMILIES["Llama"].save(CAUSAL, tmp_path / "model")
    build_model(str(folder), tmp_path / "b", options=BuildOptions(max_rank=4))
    small = [
        "--task",
        "generate",
        "--batch",
        "3",
        "--seq",
        "6",
        "--past",
        "9",
        "--prompt",
        "5",
        "--new",
        "4",
    ]
    small += ["--adapters", "2", "--rank", "4", "--repeats", "2"]
    report = run_json("bench", tmp_path / "b", *small)
    assert report["decode"]["cpu_ratio"]["median"] > 0
    assert report["prefill"]["cpu_ratio"]["median"] > 0
    assert report["throughput"]["same_tokens"] is True
    assert report["settings"]["past"] == 9
    shown = run("bench", tmp_path / "b", *small).stdout
    assert "decode step" in shown
    assert "tokens per second" in shown
    too_long = run_json("bench", tmp_path / "b", *small, "--past", "60", code=1)
    assert too_long["problems"][0]["subject"] == "--seq"
    refused = run_json("bench", tiny_bundle, "--task", "generate", code=1)
    assert "does not generate" in refused["problems"][0]["got"]
    other = run_json("bench", tmp_path / "b", "--rank", "4", "--seq", "6", code=1)
    assert "--task generate" in other["problems"][0]["mend"]


def test_a_quantized_bundle_beside_its_own_base(tiny_bundle: Path, tmp_path: Path) -> None:
    lower_again(tiny_bundle, tmp_path / "q", options=BuildOptions(quantize="int8"))
    report = run_json("bench", tmp_path / "q", *SMALL, "--against", "base,ort-adapter")
    assert all(found["difference"] <= 1e-5 for found in report["against"].values())
