"""The probe that tells whether a CPU saturates."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from adexport_runtime.backends import saturation
from adexport_runtime.backends.saturation import saturates


def test_the_graph_is_what_it_says() -> None:
    model = onnx.load_from_string(saturation._PROBE)
    (node,) = model.graph.node
    assert (node.op_type, node.domain) == ("MatMulIntegerToFloat", "com.microsoft")
    assert list(node.input) == ["a", "b", "s", "s", "z"]
    assert isinstance(saturates(onnxruntime), bool)  # it takes the graph


@pytest.mark.parametrize("lost", [0, 1])
def test_it_says_what_the_product_says(lost: int) -> None:
    """A kernel that adds pairs in 16 bits cuts 2 * 255 * 127 to 32767."""

    class Session:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def run(self, _: None, feeds: dict[str, Any]) -> list[Any]:
            a, b = feeds["a"].astype(int), feeds["b"].astype(int)
            pairs = (a[:, :, None] * b[None]).reshape(len(a), -1, 2, b.shape[1]).sum(axis=2)
            sums = np.minimum(pairs, 32767 if lost else pairs).sum(axis=1)
            return [(sums - int(feeds["z"]) * b.sum(axis=0)).astype(np.float32) * feeds["s"] ** 2]

    class Runtime:
        SessionOptions = onnxruntime.SessionOptions
        InferenceSession = Session

    assert saturates(Runtime) == bool(lost)
