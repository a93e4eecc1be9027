"""``adexport bench`` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

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
        assert "base, peft, ort-adapter" in result.stderr


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
