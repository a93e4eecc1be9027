"""What ONNX Runtime's GPU providers are told: shapes, caches of engines, and to stay exact."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...engine_file import bundle_digest
from ...graph_io import graph_inputs
from ...manifest import Manifest
from ...profiles import Profile
from ..kept import keep_folder
from ..shapes import envelope

#: provider -> how its options begin, for those that build an engine for profiles
ENGINE_PREFIXES = {"ort-tensorrt": "trt", "ort-tensorrt-rtx": "nv"}
#: run option of TensorRT for RTX: which of several profiles a run belongs to
PROFILE_INDEX = "nv_profile_index"

#: TensorRT rounds products of float32 to TF32 unless this is 0, and ONNX Runtime has no option for it
TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"

_DIGITS = 16


def provider_options(
    provider: str, manifest: Manifest, profiles: Sequence[Profile] = (), cache: Path | None = None
) -> dict[str, str]:
    """The options of a provider, by ONNX Runtime's names.

    No precision is asked for: without ``trt_fp16_enable`` and its like TensorRT keeps to the types of the
    graph, which has casts where sums need float32 (see :func:`forbid_tf32`). No EP context is dumped: it
    would be a second copy of the weights beside the engine's, and what it saves, parsing, takes seconds.

    Args:
        provider: ``cpu``, ``cuda``, ``ort-tensorrt`` or ``ort-tensorrt-rtx``.
        manifest: of the bundle.
        profiles: as :func:`engine_profiles` gives them.
        cache: a folder for what the provider builds; None: it builds anew in every process.
    """
    if provider == "cuda":
        return {
            "device_id": "0",
            "use_tf32": "0",
        }  # TF32 keeps ten bits of a fraction
    prefix = ENGINE_PREFIXES.get(provider)
    if prefix is None:
        return {}
    options = {"device_id": "0"}
    for at in ("min", "opt", "max"):
        options[f"{prefix}_profile_{at}_shapes"] = _shapes(manifest, profiles, at)
    if prefix == "nv":
        options["nv_multi_profile_enable"] = str(int(len(profiles) > 1))
        return options if cache is None else options | {"nv_runtime_cache_path": str(cache)}
    if cache is None:
        return options
    return options | {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(cache),
    }


def forbid_tf32() -> None:
    """Have TensorRT compute float32 in float32, unless the environment says otherwise.

    To be called before the first session of the process: NVIDIA's libraries read it once, all of them.
    """
    os.environ.setdefault(TF32_OVERRIDE, "0")


def engine_profiles(provider: str, profiles: Sequence[Profile]) -> tuple[Profile, ...]:
    """The profiles that a provider's engine has; none if it builds none.

    ``ort-tensorrt`` parses several and runs the first alone, so it gets one that spans them all.
    """
    if provider not in ENGINE_PREFIXES:
        return ()
    return (envelope(profiles),) if provider == "ort-tensorrt" else tuple(profiles)


def cache_folder(root: Path, provider: str, cache: str | os.PathLike[str] | None) -> Path | None:
    """Where a provider keeps what it built for a bundle; None if nowhere can be written.

    The folder has its name from the manifest: a bundle that is lowered again never meets an old engine.
    Engines that may round to TF32 have one of their own.

    Args:
        root: the bundle.
        provider: one that builds engines; others keep nothing.
        cache: a folder to keep them in, for any number of bundles; None: ``engines/`` of the bundle.

    Raises:
        RequestError: the folder that was asked for cannot be written.
    """
    if provider not in ENGINE_PREFIXES:
        return None
    kind = provider if os.environ.get(TF32_OVERRIDE, "0") == "0" else f"{provider}-tf32"
    return keep_folder(root, f"{kind}/{bundle_digest(root).removeprefix('sha256:')[:_DIGITS]}", cache)


def _shapes(manifest: Manifest, profiles: Sequence[Profile], at: str) -> str:
    """``input:1x8,other:8,…`` for every input with a ragged size, profile after profile."""
    return ",".join(
        f"{tensor.name}:{'x'.join(str(size) for size in getattr(profile.shapes(tensor), at))}"
        for profile in profiles
        for tensor in graph_inputs(manifest)
        if any(isinstance(size, str) for size in tensor.shape)
    )
