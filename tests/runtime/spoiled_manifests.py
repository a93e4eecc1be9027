"""Edits that no reader of manifests may let pass, whatever language it is written in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

Data = dict[str, Any]


def put(*path: str | int, value: Any) -> Callable[[Data], None]:
    def edit(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return edit


def drop(*path: str | int) -> Callable[[Data], None]:
    def edit(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return edit


#: an edit, and where the error must say that it is
ONE_WRONG = {
    "unknown key": (put("surprise", value=1), "surprise"),
    "unknown nested key": (put("sites", 0, "linear", "g_out", value={}), "sites.0.linear.g_out"),
    "missing key": (drop("tools"), "tools"),
    "missing nullable key": (drop("adapter_ids"), "adapter_ids"),
    "missing nested key": (drop("base", "fingerprint"), "base.fingerprint"),
    "string for number": (put("opset", value="23"), "opset"),
    "float for integer": (put("limits", "max_rank", value=16.0), "limits.max_rank"),
    "bool for integer": (put("limits", "max_rank", value=True), "limits.max_rank"),
    "zero": (put("sites", 0, "in_features", value=0), "sites.0.in_features"),
    "negative size": (put("outputs", 0, "shape", 2, value=-32), "outputs.0.shape.2.constrained-int"),
    "null": (put("files", value=None), "files"),
    "list for object": (put("base", value=[]), "base"),
    "object for list": (put("inputs", value={}), "inputs"),
    "unknown dtype": (put("base", "dtype", value="fp8"), "base.dtype"),
    "unknown task": (put("base", "task", value="generation"), "base.task"),
    "unknown slot": (put("slots", 0, value="prefix"), "slots.0"),
    "quantized": (put("base", "quantization", value="int8"), "base.quantization"),
    "no fingerprint": (put("base", "fingerprint", value="sha256:" + "g" * 64), "base.fingerprint"),
    "short hash": (put("files", 0, "sha256", value="0" * 63), "files.0.sha256"),
    "hash and newline": (put("files", 0, "sha256", value="0" * 64 + "\n"), "files.0.sha256"),
    "negative bytes": (put("files", 0, "bytes", value=-1), "files.0.bytes"),
    "path up": (put("files", 0, "path", value="../x"), "files.0.path"),
    "path up inside": (put("files", 0, "path", value="a/../../x"), "files.0.path"),
    "absolute path": (put("files", 0, "path", value="/etc/passwd"), "files.0.path"),
    "path and newline": (put("files", 0, "path", value="a\n"), "files.0.path"),
    "path with a backslash": (put("files", 0, "path", value="a\\b"), "files.0.path"),
    "tool without version": (put("tools", "torch", value=None), "tools.torch"),
    "a NUL in the name of an input": (put("inputs", 0, "name", value="input_ids\0x"), "inputs.0.name"),
    "a NUL in the name of an output": (put("outputs", 0, "name", value="\0"), "outputs.0.name"),
    "a NUL in the name of a slot input": (
        put("sites", 0, "linear", "lora_A", "name", value="a\0b"),
        "sites.0.linear.lora_A.name",
    ),
    "a NUL in a label": (put("base", "labels", value=["good", "b\0d"]), "base.labels.1"),
    "a NUL in a version of a tool": (put("tools", "torch", value="2\0"), "tools.torch"),
}


#: a place in a document
Place = tuple[str | int, ...]


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value that is no list and no object, and where it is."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inner:
        if isinstance(part, dict | list):
            yield from leaves(part, (*place, key))
        else:
            yield (*place, key), part


def _others(kind: type, convert: Callable[[Any], Any]) -> Callable[[Data], list[tuple[Place, Any]]]:
    """Makes the edits that put what ``convert`` makes of it in the place of every value of a type."""
    return lambda data: [(place, convert(old)) for place, old in leaves(data) if type(old) is kind]


#: what readers that convert would take: every edit of a document, by what it does
LAX: dict[str, Callable[[Data], list[tuple[Place, Any]]]] = {
    "floats for integers": _others(int, float),
    "texts for integers": lambda data: [
        (place, str(value)) for place, value in _others(int, int)(data) if "shape" not in place[:-1]
    ],
    "bools for integers": _others(int, bool),
    "lists for integers": _others(int, lambda value: [value]),
    "integers beyond 64 bits": _others(int, lambda _: 2**63),
    "integers for bools": _others(bool, int),
    "texts for bools": _others(bool, lambda value: str(value).lower()),
    "bools for texts": _others(str, bool),
    "lists for texts": _others(str, list),
    "texts with a NUL": lambda data: [
        (place, value + "\0") for place, value in _others(str, str)(data) if place[-1] != "pad_token"
    ],
}


def whole_manifest(data: Data) -> Data:
    """A manifest of every kind of slot, with what is null in it filled in."""
    data["base"]["quantization"] = dict(QUANTIZATION)
    data["base"]["max_positions"] = 40
    data["inputs"][0].update(low=0, high=40, fill=1)
    data["tokenizer"] = {"file": "tokenizer.json", "pad_id": 0, "pad_token": "[PAD]", "max_length": 40}
    return data


QUANTIZATION = {
    "method": "weight-only",
    "bits": 8,
    "block_size": 32,
    "accuracy_level": 4,
    "embeddings": False,
    "lm_head": True,
}


#: changes of it, and where the error must say that it is
BAD_QUANTIZATIONS: list[tuple[Data, str]] = [
    ({"method": "static"}, "base.quantization.method"),
    ({"bits": 2}, "base.quantization.bits"),
    ({"bits": 8.0}, "base.quantization.bits"),
    ({"bits": True}, "base.quantization.bits"),
    ({"embeddings": 0}, "base.quantization.embeddings"),
    ({"zero_points": True}, "base.quantization.zero_points"),
    ({"accuracy_level": None}, "manifest"),
    ({"block_size": None}, "manifest"),
    ({"method": "dynamic"}, "manifest"),
    ({"method": "dynamic", "accuracy_level": None}, "manifest"),
    ({"method": "dynamic", "accuracy_level": None, "block_size": None, "bits": 4}, "manifest"),
    ({"method": "dynamic", "accuracy_level": None, "block_size": None, "embeddings": True}, "manifest"),
]

#: edits that keep every value's type and contradict one another
INCONSISTENT: dict[str, tuple[Callable[[Data], None], str]] = {
    "sites without adapter_ids": (put("adapter_ids", value=None), "adapter_ids"),
    "adapter_ids without sites": (put("sites", value=[]), "adapter_ids"),
    "sites without slots": (put("slots", value=[]), "slots"),
    "a site twice": (
        lambda data: data["sites"].append(copy.deepcopy(data["sites"][0])),
        "site is listed twice",
    ),
    "an input twice": (lambda data: data["inputs"].append(data["inputs"][0]), "input is listed twice"),
    "a slot input twice": (
        lambda data: put("sites", 1, "linear", "lora_A", value=data["sites"][0]["linear"]["lora_A"])(data),
        "input is listed twice",
    ),
    "a slot input named like an input": (
        put("sites", 0, "linear", "lora_A", "name", value="input_ids"),
        "input is listed twice",
    ),
    "adapter_ids named like an input": (put("adapter_ids", value="input_ids"), "input is listed twice"),
    "A of other features": (
        put("sites", 0, "in_features", value=33),
        "query.lora_A must be [rows, 33, rank]",
    ),
    "B of other features": (
        put("sites", 0, "out_features", value=9),
        "query.lora_B must be [rows, rank, 9]",
    ),
    "A of two dimensions": (
        put("sites", 0, "linear", "lora_A", "shape", value=["rows", 32]),
        "query.lora_A",
    ),
    "A and B of different ranks": (
        put("sites", 0, "linear", "lora_A", "shape", 2, value="another.rank"),
        "query.lora_",
    ),
}


#: the same where there is every kind of slot
INCONSISTENT_SLOTS: dict[str, tuple[Callable[[Data], None], str]] = {
    "bottlenecks that no slots name": (
        put("slots", value=["lora", "bias", "scale", "head"]),
        "name bottleneck",
    ),
    "a head that is not there": (put("head", value=None), "name head"),
    "a code of floats": (
        put("bottlenecks", "sites", 0, "slot", "code", "dtype", value="float"),
        "bottleneck.code must be int64",
    ),
    "a guard of floats": (
        put("guards", "linear", "dtype", value="float"),
        "adapter_uses.linear must be int64",
    ),
    "weights of integers": (
        put("bottlenecks", "sites", 0, "slot", "up", "dtype", value="int64"),
        "bottleneck.up must be float",
    ),
    "scales that erase": (
        put("sites", 0, "linear", "scale_out", "identity", value="zeros"),
        "query.scale_out must be float with ones",
    ),
    "a bias of ones": (
        put("head", "slot", "out_bias", "identity", value="ones"),
        "out_bias must be float with zeros",
    ),
    "a form twice": (
        lambda data: data["bottlenecks"]["forms"].append(data["bottlenecks"]["forms"][0]),
        "listed twice",
    ),
    "two bottlenecks at one place": (
        put("bottlenecks", "sites", 1, "location", value="mh"),
        "listed twice",
    ),
    "no neutral form first": (
        lambda data: data["bottlenecks"]["forms"].sort(key=lambda form: form["norm_after"] == "none"),
        "first form of the bottlenecks must be neutral",
    ),
    "nothing to pick by": (put("bottlenecks", "sites", 0, "slot", "code", value=None), "must have a code"),
    "a form without its norm": (
        put("bottlenecks", "sites", 0, "slot", "norm_after_bias", value=None),
        "must have the norms",
    ),
    "labels of another size": (
        put("head", "slot", "out_bias", "shape", 1, value="other"),
        "adapter_head.out_bias must be",
    ),
}


def narrow(data: Data) -> None:
    """Let one site's slot inputs be of 16 bits."""
    for factor in ("lora_A", "lora_B"):
        data["sites"][0]["linear"][factor]["dtype"] = "bf16"


#: the same where slot inputs have a type of their own
INCONSISTENT_BANKS: dict[str, tuple[Callable[[Data], None], str]] = {
    "an older version": (put("format_version", value=3), "not known to version 3"),
    "a base of 16 bits": (put("base", "dtype", value="fp16"), "under float32 only"),
    "scales that erase": (
        put("sites", 0, "linear", "lora_A", "identity", value="ones"),
        "lora_A must be float with zeros",
    ),
}


def make_generating(data: Data) -> None:
    """Let the manifest be that of a graph with one cache, whose slots have the batch's rows."""
    cache = {"past_key": "pk", "past_value": "pv", "present_key": "k", "present_value": "v"}
    names = {"lengths": "lengths", "past_lengths": "past", "logits_at": "at"}
    data["base"]["task"] = "text-generation"
    data["inputs"] = [spec for spec in data["inputs"] if spec["name"] != "token_type_ids"]
    data["outputs"] = [{"name": "logits", "dtype": "fp32", "shape": ["batch", "seq", 9]}]
    data["generation"] = {
        **names,
        "caches": [{**cache, "kv_heads": 2, "size": 8, "window": None}],
        "eos_ids": [2],
    }
    data["adapter_ids"], data["slot_rows"] = None, "batch"


#: the same where there are caches
INCONSISTENT_GENERATION: dict[str, tuple[Callable[[Data], None], str]] = {
    "no caches": (put("generation", "caches", value=[]), "needs caches"),
    "a cache twice": (put("generation", "caches", 0, "past_key", value="pv"), "pv is listed twice"),
    "a cache named like an input": (
        put("generation", "caches", 0, "past_key", value="input_ids"),
        "input is listed twice",
    ),
    "another task": (put("base", "task", value="feature-extraction"), "text-generation alone"),
    "an older version": (put("format_version", value=2), "not known to version 2"),
    "no end of positions": (put("base", "max_positions", value=None), "needs max_positions"),
    "no inputs": (put("inputs", value=[]), "input_ids and attention_mask alone"),
    "no end of ids": (put("inputs", 0, "high", value=None), "the high of input_ids"),
    "no logits": (put("outputs", value=[]), "the output logits alone"),
    "rows of the batch without caches": (put("generation", value=None), "slot_rows must be batch"),
    "rows of the bank with caches": (
        lambda data: data.update(slot_rows="bank", adapter_ids="ids"),
        "slot_rows must be batch",
    ),
}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["fp32", "rows", "input_ids", "encoder.layer.0.attention.self.query.lora_A"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4)
    ),
    max_leaves=12,
)
