"""Where a trace's frozen weights lie, for readers that know no ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from adexport_runtime.bundle import TRACE_FILE, WEIGHTS_FOLDER
from adexport_runtime.manifest import FrozenWeight

from .lower.graph import opaque
from .ops import LINEAR

#: copies of the few weights that are so small that they lie in the graph's own file
_SMALL = f"{WEIGHTS_FOLDER}/small.bin"


def frozen_weights(bundle: Path) -> tuple[FrozenWeight, ...]:
    """The weights and biases of all linear layers of a written trace, in graph order.

    Those that lie in the graph's file are copied to a file of their own.
    """
    graph = ir.load(bundle / TRACE_FILE).graph
    found: dict[str, FrozenWeight] = {}
    small = bytearray()
    for node in opaque(graph, LINEAR):
        transposed, in_checkpoint = (
            bool(node.attributes[name].as_int()) for name in ("transposed", "checkpoint_transposed")
        )
        for index, value in enumerate(node.inputs[1:]):
            tensor = None if value is None else value.const_value
            if value is None or value.name in found or tensor is None:
                continue
            assert value.name is not None
            if isinstance(tensor, ir.ExternalTensor):
                path, offset = Path(tensor.location).as_posix(), int(tensor.offset or 0)
            else:
                path, offset = _SMALL, len(small)
                small += np.ascontiguousarray(tensor.numpy(), "<f4").tobytes()
            shape = tuple(int(size) for size in tensor.shape.numpy())
            found[value.name] = FrozenWeight(
                name=value.name,
                path=path,
                offset=offset,
                shape=shape,
                transposed=transposed and index == 0,
                checkpoint_transposed=in_checkpoint and index == 0,
            )
    if small:
        (bundle / _SMALL).write_bytes(small)
    return tuple(found.values())
