"""What one runtime refuses of adapters and requests, the other refuses: kind, codes and culprits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adexport_runtime import Bundle, Engine, bind_into_bundle
from tests.conftest import GOLDEN, MakeLora
from tests.runtime.spoiled_headers import FAULTS, MANY_FAULTS, WRONG_TYPES
from tests.runtime.support import QUERY, VALUE, Tensors, edit_tensors, entry, raw_safetensors

from .capi import NativeError, needs_native
from .native import NativeEngine
from .refusals import Found, found, open_once, read_bound, same

pytestmark = needs_native


def _spoil(name: str) -> Callable[[Tensors], None]:
    """An edit of a bound adapter's tensors."""
    query, value = QUERY.format(0), VALUE.format(1)

    def edit(tensors: Tensors) -> None:
        a, b = f"{query}.lora_A", f"{query}.lora_B"
        if name == "half":
            del tensors[a]
        elif name == "nan":
            tensors[b][0, 0] = np.nan
        elif name == "inf":
            tensors[b][0, 0] = -np.inf
        elif name == "features":
            tensors[a] = np.ones((31, 3), np.float32)
        elif name == "dimensions":
            tensors[a] = np.ones((32, 3, 1), np.float32)
        elif name == "ranks":
            tensors[a] = np.ones((32, 4), np.float32)
        elif name == "rank above":
            tensors[a], tensors[b] = np.ones((32, 17), np.float32), np.ones((17, 32), np.float32)
        elif name == "stranger":
            tensors["strange"] = np.ones(1, np.float32)
        elif name == "a name with a slash":
            tensors["a/b"] = np.ones(1, np.float32)
        elif name == "another factor":
            tensors[f"{query}.scale_in"] = np.ones(32, np.float32)
        elif name == "a guard":
            tensors["adapter_uses.linear"] = np.ones(1, np.float32)
        elif name == "empty":
            tensors[a] = np.ones((0, 3), np.float32)
        elif name in ("float16", "float64", "int32"):
            tensors[a] = tensors[a].astype(name)
        elif name == "everything":
            tensors[b][0, 0] = np.nan
            del tensors[f"{value}.lora_A"]
            tensors["strange"] = np.ones(1, np.float32)
        else:
            raise AssertionError(name)

    return edit


_EDITS = (
    "half", "nan", "inf", "features", "dimensions", "ranks", "rank above", "stranger",
    "a name with a slash", "another factor", "a guard", "empty", "float16", "float64", "int32",
    "everything",
)  # fmt: skip
_METADATA: tuple[dict[str, str | None], ...] = (
    {"format": None},
    {"format": "pt"},
    {"format_version": "3"},
    {"format_version": None},
    {"name": None},
    {"name": "../x"},
    {"name": ""},
    {"base_fingerprint": None},
    {"base_fingerprint": "sha256:" + "0" * 64},
    {"rank": None},
    {"source_type": None},
    {"surprise": "1"},
    {"format_version": "1", "head": "{}"},
    {"bottleneck": "{"},
    {"bottleneck": "[" * 5000},
    {"bottleneck": '{"form": {}, "form": {}, "activation": "relu"}'},
    {"bottleneck": '{"form": {}, "activation": "relu"}'},
    {"bottleneck": '{"form": {"input": "x"}, "activation": "elu", "more": 1}'},
    {"head": '{"feature": "first", "activation": null, "labels": ["a", "b"]}'},
    {"head": '{"feature": "last", "activation": 3, "labels": "ab"}'},
    {"head": '{"feature": "first", "activation": null, "labels": ["a", "b\\u0000c"]}'},
    {"bottleneck": '{"form": {"close": 1, "norm_before": "true"}, "activation": "relu"}'},
    {"name": "acme\0x"},
    {"source_type": "peft:LORA\0"},
    {"source_sha256": "\0", "rank": "3\0"},
    {"format_version": "2\0"},
    {"format_version": "2.0"},
    {"surprise\0": "1"},
)


class TestAdapters:
    @pytest.fixture
    def bound(self, tiny_bundle: Path, tmp_path: Path, make_lora: MakeLora) -> Path:
        shutil.copytree(tiny_bundle, tmp_path / "x.bundle")
        bundle = Bundle.open(tmp_path / "x.bundle")
        bind_into_bundle(bundle, make_lora("acme", r=3, seed=5), "acme")
        return bundle.adapter_path("acme").rename(tmp_path / "bound.safetensors")

    @pytest.fixture
    def refuse(self, tiny_bundle: Path, bound: Path) -> Callable[[Path], Found]:
        """Both refuse it for one reason, and the tenant that was there serves on."""
        good = bound.with_name("good.safetensors")
        shutil.copy(bound, good)
        ids = {"input_ids": np.array([[1, 2, 3]])}

        def check(path: Path) -> Found:
            with Engine.open(tiny_bundle, threads=1) as python, NativeEngine(tiny_bundle) as native:
                for engine in (python, native):
                    engine.bind("tenant", good)  # type: ignore[attr-defined]
                before = native.run(ids, "tenant")["last_hidden_state"]
                error = same(lambda: read_bound(path, python.bundle), lambda: native.bind("tenant", path))
                assert found(lambda: python.bind("tenant", path)) is not None
                assert error is not None
                assert error[0] == "AdapterError"
                after = native.run(ids, "tenant")["last_hidden_state"]
                np.testing.assert_array_equal(after, before)
            return error

        return check

    @pytest.mark.parametrize("edit", _EDITS)
    def test_tensors(self, refuse: Callable[[Path], Found], bound: Path, edit: str) -> None:
        refuse(edit_tensors(bound, _spoil(edit)))

    @pytest.mark.parametrize("metadata", _METADATA, ids=lambda given: str(given)[:60])
    def test_metadata(
        self, refuse: Callable[[Path], Found], bound: Path, metadata: dict[str, str | None]
    ) -> None:
        refuse(edit_tensors(bound, lambda _: None, metadata))

    @pytest.mark.parametrize("name", WRONG_TYPES)
    def test_headers_with_values_of_other_types(self, tiny_bundle: Path, tmp_path: Path, name: str) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(WRONG_TYPES[name])
        python, native = open_once(tiny_bundle)
        error = same(lambda: read_bound(path, python.bundle), lambda: native.bind("x", path))
        assert error == ("AdapterError", {"damaged": {str(path)}})

    def test_all_faults_of_a_header_are_named_together(self, tiny_bundle: Path, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(MANY_FAULTS)
        _, native = open_once(tiny_bundle)
        with pytest.raises(NativeError) as caught:
            native.bind("x", path)
        assert all(fault in str(caught.value) for fault in FAULTS), str(caught.value)

    @pytest.mark.parametrize("name", ["a\0b", "\0"])
    def test_a_nul_in_the_name_of_a_tensor(self, tiny_bundle: Path, tmp_path: Path, name: str) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(raw_safetensors({name: entry("F32", [1], 0, 4)}, b"\0" * 4))
        python, native = open_once(tiny_bundle)
        error = same(lambda: read_bound(path, python.bundle), lambda: native.bind("x", path))
        assert error == ("AdapterError", {"bad-name": {f"tensor {name!r}"}})

    @pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 100, -1])
    def test_truncated(self, refuse: Callable[[Path], Found], bound: Path, cut: int) -> None:
        bound.write_bytes(bound.read_bytes()[:cut])
        assert set(refuse(bound)[1]) == {"damaged"}

    def test_trailing_bytes(self, refuse: Callable[[Path], Found], bound: Path) -> None:
        bound.write_bytes(bound.read_bytes() + b"\0")
        assert set(refuse(bound)[1]) == {"damaged"}

    def test_no_file(self, refuse: Callable[[Path], Found], tmp_path: Path) -> None:
        assert set(refuse(tmp_path / "absent.safetensors")[1]) == {"absent"}
        assert set(refuse(tmp_path / "x.bundle" / "weights")[1]) <= {"absent", "bad-config"}

    @pytest.mark.parametrize("name", ["", ".", "a/b", "../x", "-a", "a b", "ä", "a" * 129, "a\n"])
    def test_names(self, tiny_bundle: Path, bound: Path, name: str) -> None:
        with Engine.open(tiny_bundle) as python, NativeEngine(tiny_bundle) as native:
            error = same(lambda: python.bind(name, bound), lambda: native.bind(name, bound))
        assert error is not None
        assert set(error[1]) == {"bad-name"}

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
        head=st.booleans(),
    )
    def test_mutated_bytes(
        self, tiny_bundle: Path, bound: Path, edits: list[tuple[float, int]], head: bool
    ) -> None:
        """Mostly in the header, where one byte can change everything."""
        content = bytearray(bound.read_bytes())
        end = 8 + int.from_bytes(content[:8], "little") if head else len(content)
        for place, value in edits:
            content[int(place * (end - 1))] = value
        path = bound.with_name("mutated.safetensors")
        path.write_bytes(content)
        python, native = open_once(tiny_bundle)
        ours, theirs = found(lambda: read_bound(path, python.bundle)), found(lambda: native.bind("x", path))
        assert (ours is None) == (theirs is None), (ours, theirs)
        if ours is not None and theirs is not None:
            assert (theirs[0], set(theirs[1])) == (ours[0], set(ours[1]))


#: inputs of the tiny BERT: 97 tokens, 40 positions
_REQUESTS: dict[str, tuple[dict[str, Any], Any]] = {
    "nothing": ({}, None),
    "an unknown input": ({"input_ids": np.ones((1, 2), np.int64), "x": np.ones((1, 2), np.int64)}, None),
    "floats": ({"input_ids": np.ones((1, 2), np.float32)}, None),
    "one dimension": ({"input_ids": np.ones(2, np.int64)}, None),
    "no rows": ({"input_ids": np.ones((0, 2), np.int64)}, None),
    "no tokens": ({"input_ids": np.ones((2, 0), np.int64)}, None),
    "ids above": ({"input_ids": np.full((1, 2), 97, np.int64)}, None),
    "ids below": ({"input_ids": np.full((1, 2), -1, np.int64)}, None),
    "another shape": (
        {"input_ids": np.ones((2, 2), np.int64), "attention_mask": np.ones((2, 3), np.int64)}, None,
    ),
    "an empty row": (
        {"input_ids": np.ones((2, 2), np.int64), "attention_mask": np.array([[1, 1], [0, 0]])}, None,
    ),
    "too many tokens": ({"input_ids": np.ones((1, 41), np.int64)}, None),
    "too few adapters": ({"input_ids": np.ones((3, 2), np.int64)}, [None, None]),
    "unknown adapters": ({"input_ids": np.ones((2, 2), np.int64)}, ["who", "what"]),
    "everything": (
        {"input_ids": np.full((1, 2), 97, np.int32), "attention_mask": np.full((1, 3), 2, np.int64)}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _REQUESTS)
def test_requests(tiny_bundle: Path, name: str) -> None:
    inputs, adapters = _REQUESTS[name]
    python, native = open_once(tiny_bundle)
    error = same(lambda: python.run(inputs, adapters), lambda: native.run(inputs, adapters))
    assert error is not None


def test_a_bank_that_is_full(tiny_bundle: Path, tmp_path: Path, make_lora: MakeLora) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "x.bundle")
    bundle = Bundle.open(tmp_path / "x.bundle")
    for seed, name in enumerate("abc"):
        bind_into_bundle(bundle, make_lora(name, seed=seed), name)
    ids = {"input_ids": np.ones((3, 2), np.int64)}
    with Engine.open(bundle.root, rows=2) as python, NativeEngine(bundle.root, rows=2) as native:
        error = same(lambda: python.run(ids, list("abc")), lambda: native.run(ids, list("abc")))
        assert error is not None
        assert error[0] == "BankFullError"
        for pair in ("ab", "bc", "ca"):  # paged
            rows = [*pair, None]
            np.testing.assert_allclose(
                native.run(ids, rows)["last_hidden_state"],
                python.run(ids, rows)["last_hidden_state"],
                atol=1e-6,
            )


def test_unbinding_what_is_not_bound(tiny_bundle: Path) -> None:
    python, native = open_once(tiny_bundle)
    assert same(lambda: python.unbind("who"), lambda: native.unbind("who")) is not None


def test_adapters_without_slots(tmp_path: Path, tiny_bundle: Path) -> None:
    from adexport.build import lower_again
    from adexport.options import BuildOptions

    lower_again(tiny_bundle, tmp_path / "plain", options=BuildOptions(slots=()), adapters=False)
    ids = {"input_ids": np.ones((1, 2), np.int64)}
    with Engine.open(tmp_path / "plain") as python, NativeEngine(tmp_path / "plain") as native:
        assert same(lambda: python.run(ids, "a"), lambda: native.run(ids, "a")) is not None


@pytest.mark.parametrize("provider", ["cuda", "ort-tensorrt", "ort-tensorrt-rtx", "quantum"])
def test_providers(tiny_bundle: Path, provider: str) -> None:
    error = same(
        lambda: Engine.open(tiny_bundle, provider), lambda: NativeEngine(tiny_bundle, provider=provider)
    )
    assert error is not None
    assert error[0] == "ProviderError"


@pytest.mark.parametrize("case", ["bert/ln_after", "bert/compacter"])
def test_adapters_of_other_slots(tiny_bundle: Path, every_slot: Path, tmp_path: Path, case: str) -> None:
    """Bottlenecks bound for a bundle that has them, brought to one that does not."""
    shutil.copytree(every_slot, tmp_path / "every")
    bundle = Bundle.open(tmp_path / "every")
    bind_into_bundle(bundle, GOLDEN / "adapterhub" / case, "x")
    path = bundle.adapter_path("x")
    python, native = open_once(tiny_bundle)
    assert same(lambda: python.bind("x", path), lambda: native.bind("x", path)) is not None
