"""What a build can choose, and the defaults. Imports nothing heavy: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adexport_runtime.engine_file import CacheForm
from adexport_runtime.matching import Targets
from adexport_runtime.slots import Activation

DEFAULT_OPSET = 23
MIN_OPSET = 20

#: the largest difference allowed, as a part of the largest value (at least 1)
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}
#: the same between a row alone and in a batch, on a quantized base: where other sizes of the batch end in
#: another last bit of a float, that may tip the rounding to an integer
QUANTIZED_TOLERANCE = 1e-2


@dataclass(frozen=True)
class BuildOptions:
    """Sites, slots and precision; None keeps the default (or, lowering again, what the bundle has).

    ``slots`` are kinds (``lora``, ``bias``, ``scale``, ``bottleneck``, ``head``; none: the plain base).
    ``targets`` are the linear layers, by names or a regex as PEFT takes them; ``like`` are adapters for
    which exactly the slots that they need are made. ``bottlenecks`` names forms as the adapters
    library does (``seq_bn``, …), ``activations`` what stands between the layers of bottlenecks and
    heads. ``tolerance`` is the largest difference from torch, as a part of the largest value (at
    least 1). ``bank_dtype`` is ``fp16`` or ``bf16`` for adapters in 16 bits under a float32 base, which
    rounds them; ``fp32`` for none of that. ``quantize`` is ``int8``, ``int4`` or ``none``,
    ``quantize_method`` ``weight-only`` or ``dynamic``, ``quantize_also`` which of ``embeddings`` and
    ``lm_head`` go along, ``min_cosine`` how near the quantized outputs must come to the float ones.
    """

    slots: tuple[str, ...] | None = None
    targets: Targets | None = None
    like: tuple[Path, ...] = ()
    max_rank: int | None = None
    max_width: int | None = None
    bottlenecks: tuple[str, ...] | None = None
    activations: tuple[Activation, ...] | None = None
    dtype: str | None = None
    bank_dtype: str | None = None
    quantize: str | None = None
    quantize_method: str | None = None
    quantize_also: tuple[str, ...] | None = None
    min_cosine: float | None = None
    tolerance: float = TOLERANCE["fp32"]


@dataclass(frozen=True)
class EngineOptions:
    """Which builder, for which GPUs, for which sizes.

    ``engine`` is ``rtx`` or ``tensorrt`` (None: what is installed, TensorRT-RTX first).
    ``compute_capabilities`` are those of the GPUs, as ``sm86`` (none: what the builder takes by itself).
    ``profiles`` are texts for :func:`adexport_runtime.profiles.parse_profiles`. ``memory_limit`` is the
    scratch memory in bytes that a layer may take on the GPU. ``tf32`` lets products of float32 be rounded
    to TF32. ``caches`` is how a graph that generates writes its caches.
    """

    engine: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    memory_limit: int | None = None
    tf32: bool = False
    caches: CacheForm = "copied"
