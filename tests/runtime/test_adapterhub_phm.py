"""Hypercomplex bottlenecks of AdapterHub (Compacter), made dense: against torch.kron."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adexport_runtime.adapters import read_adapter
from adexport_runtime.errors import Code

from .adapterhub_files import (
    NAME,
    OUTPUT,
    SEQ_BN,
    compacter,
    culprits,
    edit,
    problems,
    read,
    seq_bn,
    tensors_of,
)

PHM: dict[str, dict[str, Any]] = {
    "compacter": {},
    "own rule": {"shared_phm_rule": False},
    "factorized rule": {"factorized_phm_rule": True},
    "own factorized rule": {"shared_phm_rule": False, "factorized_phm_rule": True},
    "full W": {"factorized_phm_W": False},
    "shared W": {"shared_W_phm": True},
    "all shared": {"shared_W_phm": True, "factorized_phm_rule": True},
    "rank 3": {"phm_rank": 3},
    "no bias": {"phm_bias": False},
    "dimension 2": {"phm_dim": 2},
}


class TestHypercomplex:
    @pytest.mark.parametrize("name", PHM)
    def test_is_the_sum_of_kronecker_products(self, tmp_path: Path, name: str) -> None:
        folder = compacter(tmp_path / "a", **PHM[name])
        tensors = {key: torch.from_numpy(array).double() for key, array in tensors_of(folder).items()}
        config = {**SEQ_BN, **PHM[name]}

        def stack(own: str, shared: str, is_shared: bool) -> torch.Tensor:
            path = f"bert.shared_parameters.{NAME}.{shared}" if is_shared else own
            if path in tensors:
                return tensors[path]
            return torch.bmm(tensors[f"{path}_left"], tensors[f"{path}_right"])

        for layer in (0, 1):
            factors = read(folder).bottlenecks[layer, "output"].factors
            for side, part in (("down", "adapter_down.0"), ("up", "adapter_up")):
                where = f"bert.{OUTPUT.format(layer)}.adapters.{NAME}.{part}"
                rules = stack(f"{where}.phm_rule", "phm_rule", config["shared_phm_rule"])
                matrices = stack(f"{where}.W", f"W_{side}", config["shared_W_phm"])
                expected = sum(torch.kron(r, w) for r, w in zip(rules, matrices, strict=True))
                np.testing.assert_allclose(factors[side], expected, rtol=1e-6, atol=1e-6)
                bias = tensors[f"{where}.b"] if config["phm_bias"] else torch.zeros(factors[side].shape[1])
                np.testing.assert_array_equal(factors[f"{side}_bias"], bias.float())

    def test_the_library_forgot_what_is_shared(self, tmp_path: Path) -> None:
        folder = compacter(tmp_path / "a")
        edit(folder, **{f"bert.shared_parameters.{NAME}.phm_rule": None})
        assert culprits(folder) == {(Code.HALF_MISSING, "shared_parameters")}
        assert "BertAdapterModel" in problems(folder)[0].cause
        assert read_adapter(folder).bottlenecks == {}

    def test_shared_tensors_that_nothing_uses(self, tmp_path: Path) -> None:
        name = f"bert.shared_parameters.{NAME}.phm_rule"
        folder = edit(seq_bn(tmp_path / "a"), **{name: np.ones((4, 4, 4), np.float32)})
        assert culprits(folder) == {(Code.UNKNOWN_TENSOR, name)}

    def test_a_dimension_that_divides_nothing(self, tmp_path: Path) -> None:
        assert (Code.BAD_CONFIG, "phm_dim") in culprits(compacter(tmp_path / "a", phm_dim=3))

    def test_what_the_library_fails_with(self, tmp_path: Path) -> None:
        folder = compacter(tmp_path / "a", shared_W_phm=True, factorized_phm_W=False)
        assert culprits(folder) == {(Code.UNSUPPORTED, "shared_W_phm")}
