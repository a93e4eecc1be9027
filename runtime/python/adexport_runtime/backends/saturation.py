"""Whether this CPU adds products uint8 · int8 in 16 bits, where they do not fit.

x86 CPUs without VNNI do (``vpmaddubsw`` saturates). ONNX Runtime then needs the session option
``session.x64quantprecision``, which makes it multiply uint8 · uint8. It does not look whether the CPU
needs that, and on one with VNNI the option costs all that quantization gains: so the CPU is asked.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

#: an ONNX graph of one node: y = MatMulIntegerToFloat(a, b, scale s, scale s, zero point z)
_PROBE = (
    b'\x08\t\x12\x00:w\n7\n\x01a\n\x01b\n\x01s\n\x01s\n\x01z\x12\x01y"\x14MatMulIntegerToFloat:\rcom.microsoft'
    b"\x12\x01pZ\t\n\x01a\x12\x04\n\x02\x08\x02Z\t\n\x01b\x12\x04\n\x02\x08\x03Z\x0b\n\x01s\x12\x06\n\x04\x08"
    b"\x01\x12\x00Z\x0b\n\x01z\x12\x06\n\x04\x08\x02\x12\x00b\t\n\x01y\x12\x04\n\x02\x08\x01B\x04\n\x00\x10"
    b"\x14B\x11\n\rcom.microsoft\x10\x01"
)
#: rows, inner size and columns of a product that no kernel for single rows takes
_SIZES = (8, 64, 16)


@cache
def saturates(ort: Any) -> bool:
    """Run a product of the largest values there are; ``ort`` is the imported ``onnxruntime``."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(_PROBE, options, providers=["CPUExecutionProvider"])
    rows, inner, columns = _SIZES
    feeds = {
        "a": np.full((rows, inner), 255, np.uint8),
        "b": np.full((inner, columns), 127, np.int8),
        "s": np.array(1, np.float32),
        "z": np.array(128, np.uint8),
    }
    (found,) = session.run(None, feeds)
    return bool((found != (255 - 128) * 127 * inner).any())
