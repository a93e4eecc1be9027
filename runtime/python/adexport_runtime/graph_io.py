"""The inputs and outputs of a bundle's lowered graphs, as its manifest declares them."""

from __future__ import annotations

from collections.abc import Iterable

from .caches import Generation
from .manifest import Dtype, Manifest
from .schema import Positive, Schema, Text

INPUT_IDS = "input_ids"
#: names of sizes: the rows of a batch, of ``adapter_ids``, and of slot inputs
BATCH, IDS, ROWS = "batch", "ids", "rows"


class Tensor(Schema):
    """A graph input or output; names in ``shape`` are ragged sizes."""

    name: Text
    dtype: Dtype
    shape: tuple[Text | Positive, ...]


def kind_of(symbol: str) -> str:
    """The kind of a ragged size: ``encoder.layer.0.output.dense.rank`` is a rank."""
    return symbol.rsplit(".", 1)[-1]


def engine_inputs(manifest: Manifest) -> tuple[Tensor, ...]:
    """What a graph for TensorRT takes: no guards, and sizes that are named by their kind.

    An engine is built many times faster where a size has one name: all sites have one rank, and
    ``adapter_ids`` (with ``slot_rows`` ``batch``: the slot inputs) have a row for each of the batch.
    """
    guards = () if manifest.guards is None else manifest.guards.factors.values()
    unwanted = {guard.name for guard in guards}
    return tuple(
        tensor.model_copy(update={"shape": tuple(_engine_size(size, manifest) for size in tensor.shape)})
        for tensor in graph_inputs(manifest)
        if tensor.name not in unwanted
    )


def _engine_size(size: str | int, manifest: Manifest) -> str | int:
    if isinstance(size, int):
        return size
    same = {IDS: BATCH} | ({ROWS: BATCH} if manifest.slot_rows == "batch" else {})
    return same.get(size, kind_of(size))


def graph_inputs(manifest: Manifest) -> tuple[Tensor, ...]:
    """What ``model.onnx`` takes."""
    generation = manifest.generation
    taken = [Tensor(name=spec.name, dtype=spec.dtype, shape=spec.shape) for spec in manifest.inputs]
    if generation is not None:
        taken = [tensor for tensor in taken if tensor.name == INPUT_IDS]
        rows = (generation.lengths, generation.past_lengths)
        taken += [Tensor(name=name, dtype="int64", shape=(BATCH,)) for name in rows]
        taken.append(Tensor(name=generation.logits_at, dtype="int64", shape=(BATCH, "wanted")))
        taken += _caches(manifest, generation, generation.past)
    if manifest.adapter_ids is not None:
        taken.append(Tensor(name=manifest.adapter_ids, dtype="int64", shape=(IDS,)))
    taken += [
        Tensor(
            name=slot.name,
            dtype=manifest.base.dtype if slot.dtype == "float" else slot.dtype,
            shape=slot.shape,
        )
        for slot in manifest.slot_inputs
    ]
    return tuple(taken)


def graph_outputs(manifest: Manifest) -> tuple[Tensor, ...]:
    """What a graph gives; ``logits`` of a graph that generates are those at the places asked for."""
    generation = manifest.generation
    given = [Tensor(name=spec.name, dtype=spec.dtype, shape=spec.shape) for spec in manifest.outputs]
    if generation is not None:
        given = [spec.model_copy(update={"shape": (BATCH, "wanted", *spec.shape[2:])}) for spec in given]
        given += _caches(manifest, generation, generation.outputs)
    return tuple(given)


def _caches(manifest: Manifest, generation: Generation, names: Iterable[str]) -> list[Tensor]:
    caches = (cache for cache in generation.caches for _ in ("key", "value"))
    return [
        Tensor(name=name, dtype=manifest.base.dtype, shape=(BATCH, cache.kv_heads, "room", cache.size))
        for name, cache in zip(names, caches, strict=True)
    ]
