"""Whether the factors of an adapter fit a site: shapes, rank, and values."""

from __future__ import annotations

import numpy as np

from . import dtypes
from .errors import Code, Problem
from .manifest import Manifest, Site
from .tensors import Array


def linear_problems(
    site: Site, lora_A: Array, lora_B: Array, names: tuple[str, str], manifest: Manifest
) -> list[Problem]:
    """Everything that keeps ``lora_A`` ``[in, rank]`` and ``lora_B`` ``[rank, out]`` off a site.

    ``names`` are what the two are called in the file they came from.
    """
    problems = []
    for name, got, expected in (
        (names[0], lora_A.shape[0], site.in_features),
        (names[1], lora_B.shape[1], site.out_features),
    ):
        if got != expected:
            problems.append(
                Problem(
                    Code.WRONG_SHAPE,
                    name,
                    got=f"{got} features",
                    expected=str(expected),
                    cause=f"trained on another base than {manifest.base.name}",
                    mend="bind it to a bundle of its own base",
                )
            )
    problems += value_problems(names[0], lora_A, manifest)
    problems += value_problems(names[1], lora_B, manifest)
    if lora_A.shape[1] > manifest.limits.max_rank:
        problems.append(
            Problem(
                Code.RANK_ABOVE_MAX,
                site.path,
                got=f"rank {lora_A.shape[1]}",
                expected=f"at most {manifest.limits.max_rank}",
                cause="the bundle was built for smaller adapters",
                mend="adexport build BUNDLE with a larger --max-rank",
            )
        )
    return problems


def value_problems(name: str, tensor: Array, manifest: Manifest) -> list[Problem]:
    """NaN, Inf, and what would become Inf in the bundle's element type."""
    largest = float(np.abs(tensor).max())
    if not np.isfinite(largest):
        count = int(tensor.size - np.isfinite(tensor).sum())
        return [
            Problem(
                Code.NOT_FINITE,
                name,
                got=f"{count} NaN or Inf of {tensor.size} values (scaling included)",
                expected="finite values",
                cause="training diverged, or a damaged file",
                mend="train it again, or copy it again",
            )
        ]
    if largest > dtypes.largest(manifest.base.dtype):
        return [
            Problem(
                Code.OVERFLOW,
                name,
                got=f"{largest:.6g} after scaling",
                expected=f"at most {dtypes.largest(manifest.base.dtype):.6g} ({manifest.base.dtype})",
                cause="the element type of the bundle is too small for these values",
                mend="adexport build BUNDLE --dtype bf16 (or fp32)",
            )
        ]
    return []
