"""The inputs and outputs of a bundle's lowered graphs, as its manifest declares them."""

from __future__ import annotations

from collections.abc import Iterable

from .caches import Generation
from .manifest import Dtype, Manifest
from .schema import Positive, Schema

INPUT_IDS = "input_ids"


class Tensor(Schema):
    """A graph input or output; names in ``shape`` are ragged sizes."""

    name: str
    dtype: Dtype
    shape: tuple[str | Positive, ...]


def graph_inputs(manifest: Manifest, *, guarded: bool = True) -> tuple[Tensor, ...]:
    """What a graph takes. ``guarded``: with the guards, which graphs for TensorRT do without."""
    generation = manifest.generation
    taken = [Tensor(name=spec.name, dtype=spec.dtype, shape=spec.shape) for spec in manifest.inputs]
    if generation is not None:
        taken = [tensor for tensor in taken if tensor.name == INPUT_IDS]
        rows = (generation.lengths, generation.past_lengths)
        taken += [Tensor(name=name, dtype="int64", shape=("batch",)) for name in rows]
        taken.append(Tensor(name=generation.logits_at, dtype="int64", shape=("batch", "wanted")))
        taken += _caches(manifest, generation, generation.past)
    if manifest.adapter_ids is not None:
        taken.append(Tensor(name=manifest.adapter_ids, dtype="int64", shape=("ids",)))
    guards = () if manifest.guards is None else manifest.guards.factors.values()
    unwanted = set() if guarded else {guard.name for guard in guards}
    taken += [
        Tensor(
            name=slot.name,
            dtype=manifest.base.dtype if slot.dtype == "float" else "int64",
            shape=slot.shape,
        )
        for slot in manifest.slot_inputs
        if slot.name not in unwanted
    ]
    return tuple(taken)


def graph_outputs(manifest: Manifest) -> tuple[Tensor, ...]:
    """What a graph gives; ``logits`` of a graph that generates are those at the places asked for."""
    generation = manifest.generation
    given = [Tensor(name=spec.name, dtype=spec.dtype, shape=spec.shape) for spec in manifest.outputs]
    if generation is not None:
        given = [spec.model_copy(update={"shape": ("batch", "wanted", *spec.shape[2:])}) for spec in given]
        given += _caches(manifest, generation, generation.outputs)
    return tuple(given)


def _caches(manifest: Manifest, generation: Generation, names: Iterable[str]) -> list[Tensor]:
    caches = (cache for cache in generation.caches for _ in ("key", "value"))
    return [
        Tensor(name=name, dtype=manifest.base.dtype, shape=("batch", cache.kv_heads, "room", cache.size))
        for name, cache in zip(names, caches, strict=True)
    ]
