"""Headers of safetensors files with values of types that no reader may take, whatever language it is in."""

from __future__ import annotations

from typing import Any

from .support import entry, raw_safetensors

_VALUES: list[Any] = [
    None, True, False, 0, 4, 4.0, "F32", "4", "", [], ["F32"], [True], [4.0], ["1"], [None], [[1]], [-1],
    [2**64], [0, 4.0], [False, 4], ["0", "4"], [0, 4, 8], [0], {}, {"F32": None}, {"0": 0, "1": 4},
    ["F32", [1], [0, 4]], [["format", "x"]],
]  # fmt: skip
_ONE = entry("F32", [1], 0, 4)


def _headers() -> dict[str, dict[str, Any]]:
    headers: dict[str, dict[str, Any]] = {}
    for value in _VALUES:
        for field in _ONE:
            # a shape without sizes is that of one number
            if value != _ONE[field] and not (field == "shape" and value == []):
                headers[f"{field} {value!r}"] = {"a": {**_ONE, field: value}}
        headers[f"entry {value!r}"] = {"a": value}
        if value != {}:
            headers[f"metadata {value!r}"] = {"a": _ONE, "__metadata__": value}
        if not isinstance(value, str):
            headers[f"metadata of {value!r}"] = {"a": _ONE, "__metadata__": {"format": value}}
    return headers


#: the bytes of files with one value of another type, by what it is
WRONG_TYPES = {name: raw_safetensors(header, b"\0" * 4) for name, header in _headers().items()}

#: four faults in one header, and what must be said of them
MANY_FAULTS = raw_safetensors(
    {"a": {**_ONE, "dtype": {"F32": None}}, "b": 1, "c": {**_ONE, "shape": None}, "__metadata__": None},
    b"\0" * 4,
)
FAULTS = ("dtype of 'a'", "tensor 'b' is no object", "shape of 'c'", "__metadata__ is no object")
