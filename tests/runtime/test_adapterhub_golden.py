"""AdapterHub's own files (``tests/golden/adapterhub``): read whole, or refused by what is to be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adexport_runtime.adapters import read_adapter
from adexport_runtime.errors import Code

from .adapterhub_files import culprits, read
from .support import names_in

ROOT = Path(__file__).parent.parent / "golden" / "adapterhub"
CASES: list[dict[str, Any]] = json.loads((ROOT / "index.json").read_text())
LAYERS = range(2)

#: start of the names of cases that are to be refused -> culprits, of which there is one at least
REFUSED = {
    "activation": (Code.UNSUPPORTED, "non_linearity"),
    "gating": (Code.UNSUPPORTED, "use_gating"),
    "seq_bn_inv": (Code.UNSUPPORTED, "inv_adapter"),
    "double_seq_bn_inv": (Code.UNSUPPORTED, "inv_adapter"),
    "glow": (Code.UNSUPPORTED, "inv_adapter"),
    "prefix_tuning": (Code.UNSUPPORTED, "architecture"),
    "prompt_tuning": (Code.UNSUPPORTED, "architecture"),
    "loreft": (Code.UNSUPPORTED, "architecture"),
    "noreft": (Code.UNSUPPORTED, "architecture"),
    "direft": (Code.UNSUPPORTED, "architecture"),
    "mam": (Code.UNSUPPORTED, "architecture"),
    "unipelt": (Code.UNSUPPORTED, "architecture"),
    "union": (Code.UNSUPPORTED, "architecture"),
    "mtl_lora": (Code.UNSUPPORTED, "architecture"),
    "incomplete": (Code.HALF_MISSING, "shared_parameters"),
    "lora-gating": (Code.UNSUPPORTED, "use_gating"),
    "ia3-gating": (Code.UNSUPPORTED, "use_gating"),
    "fusion": (Code.UNSUPPORTED, "adapter_fusion_config.json"),
    "head-classification-3_layers": (Code.UNSUPPORTED, "layers"),
    "head-static": (Code.UNSUPPORTED, "head_config.json: config"),
    "head-": (Code.UNSUPPORTED, "head_type"),
}
#: the same for models behind an interface, by base
REFUSED_BASES = {
    "gemma2": (Code.UNSUPPORTED, "model_type"),
    "modernbert": (Code.UNSUPPORTED, "attn_qkv_proj"),
}


def cases(kind: str) -> list[Any]:
    chosen = [case for case in CASES if case["kind"] == kind]
    assert chosen
    return [pytest.param(case, id=f"{case['base']}-{case['case']}") for case in chosen]


def folder_of(case: dict[str, Any]) -> Path:
    return ROOT / case["base"] / case["case"]


def modules_of(base: str) -> set[str]:
    """The modules of a base, by its weights."""
    names = names_in(ROOT / "bases" / base / "model.safetensors")
    return {name.removesuffix(".weight") for name in names if name.endswith(".weight")}


@pytest.mark.parametrize("case", cases("serve"))
def test_served(case: dict[str, Any]) -> None:
    adapter = read(folder_of(case))
    assert bool(adapter.bottlenecks) != bool(adapter.linears)
    assert (adapter.head is not None) == case["case"].startswith("head-")
    if adapter.claims is not None:
        places = {(i, place) for i in LAYERS for place in ("mh", "output") if adapter.claims(i, place)}  # type: ignore[arg-type]
        assert places == set(adapter.bottlenecks)
    if adapter.covers is not None:
        # with and without the prefix that the base has under a head
        paths = {module for module in modules_of(case["base"]) if adapter.covers(module)}
        tails = {path.split(".", 1)[1] for path in adapter.linears} | set(adapter.linears)
        assert len(paths) == len(adapter.linears)
        assert all(path in tails or path.split(".", 1)[1] in tails for path in paths)


@pytest.mark.parametrize("case", cases("refuse"))
def test_refused(case: dict[str, Any]) -> None:
    by_name = (culprit for start, culprit in REFUSED.items() if case["case"].startswith(start))
    expected = REFUSED_BASES.get(case["base"]) or next(by_name)
    assert expected in culprits(folder_of(case))


@pytest.mark.parametrize("case", cases("bin"))
def test_pickles(case: dict[str, Any]) -> None:
    assert culprits(folder_of(case)) == {(Code.NOT_SAFETENSORS, "pytorch_adapter.bin")}


def test_equal_computations_are_equal_forms() -> None:
    """Two of the eight orders are the same as two others: the residual before an LN that is not before."""
    styles = {
        case["case"]: read_adapter(folder_of(case)).style
        for case in CASES
        if case["base"] == "bert" and case["case"].startswith(("order-", "parallel-"))
    }
    assert styles["order--ar"] == styles["order--a-"]
    assert styles["order---r"] == styles["order----"]
    assert styles["parallel-ignored"] == styles["parallel-ln_after"]
    assert len({str(style) for name, style in styles.items() if name.startswith("order-")}) == 6
