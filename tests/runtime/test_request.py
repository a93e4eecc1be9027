"""What a call brings: filled in, or refused with every culprit named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adexport_runtime import Bundle, Code, Manifest, RequestError
from adexport_runtime.manifest import Input
from adexport_runtime.request import check_adapters, check_inputs

from .support import ids, subjects


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def refused(inputs: dict[str, Any], manifest: Manifest) -> RequestError:
    with pytest.raises(RequestError) as caught:
        check_inputs(inputs, manifest)
    assert caught.value.codes == {Code.BAD_INPUT}
    return caught.value


def culprits(inputs: dict[str, Any], manifest: Manifest) -> set[str]:
    return subjects(refused(inputs, manifest), Code.BAD_INPUT)


def test_fills(manifest: Manifest) -> None:
    given = ids(2, 5)
    arrays = check_inputs({"input_ids": given}, manifest)
    assert arrays.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    np.testing.assert_array_equal(arrays["input_ids"], given)
    np.testing.assert_array_equal(arrays["attention_mask"], np.ones((2, 5), np.int64), strict=True)
    np.testing.assert_array_equal(arrays["token_type_ids"], np.zeros((2, 5), np.int64), strict=True)


def test_what_is_given_is_not_filled(manifest: Manifest) -> None:
    mask = [[1, 1, 0], [1, 0, 0]]
    arrays = check_inputs({"input_ids": ids(2, 3), "attention_mask": mask}, manifest)
    assert arrays["attention_mask"].tolist() == mask


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16, np.int8, np.uint8, np.uint64, ">i8"])
def test_any_integers_become_int64(manifest: Manifest, dtype: Any) -> None:
    given = ids(2, 5).astype(dtype)
    array = check_inputs({"input_ids": given}, manifest)["input_ids"]
    np.testing.assert_array_equal(array, ids(2, 5), strict=True)
    assert array.flags.c_contiguous


def test_lists_bool_masks_and_strided_arrays(manifest: Manifest) -> None:
    arrays = check_inputs(
        {
            "input_ids": [[1, 2], [3, 4]],
            "attention_mask": np.array([[True, False], [True, True]]),
            "token_type_ids": np.zeros((2, 4), np.int64)[:, ::2],
        },
        manifest,
    )
    assert arrays["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}
    assert all(array.flags.c_contiguous for array in arrays.values())


def test_the_caller_keeps_the_inputs(manifest: Manifest) -> None:
    inputs = {"input_ids": ids()}
    check_inputs(inputs, manifest)
    assert inputs.keys() == {"input_ids"}


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(ids().astype(np.float32), id="float32"),
        pytest.param(ids().astype(np.float64), id="float64"),
        pytest.param([[1.0, 2.0]], id="list of floats"),
        pytest.param([["a", "b"]], id="strings"),
        pytest.param("some text", id="a string"),
        pytest.param([[None, 1]], id="None inside"),
        pytest.param(None, id="None"),
        pytest.param([[2**70, 1]], id="beyond 64 bits"),
        pytest.param([[1, 2, 3], [4]], id="ragged"),
        pytest.param([[1], 2], id="ragged depth"),
        pytest.param([1, 2, 3], id="one dimension"),
        pytest.param([[[1, 2]]], id="three dimensions"),
        pytest.param(7, id="a number"),
        pytest.param([], id="empty"),
        pytest.param([[]], id="no tokens"),
        pytest.param(np.zeros((0, 5), np.int64), id="empty batch"),
        pytest.param(np.zeros((2, 0), np.int64), id="empty rows"),
        pytest.param([[1, 97]], id="out of the vocabulary"),
        pytest.param([[1, 2**40]], id="far out of the vocabulary"),
        pytest.param([[-1, 5]], id="negative"),
        pytest.param(np.array([[2**63 + 1]], np.uint64), id="wraps to a negative number"),
        pytest.param(np.array([[1j]]), id="complex"),
        pytest.param(np.array([["2020-01-01"]], "datetime64[D]"), id="dates"),
    ],
)
def test_ids_that_do_not_fit(manifest: Manifest, value: Any) -> None:
    assert culprits({"input_ids": value}, manifest) == {"input_ids"}


def test_unknown_and_missing_are_named_together(manifest: Manifest) -> None:
    wrong = {"inputs_ids": ids(), "position_ids": ids(), "attention_mask": np.ones((3, 7), int)}
    assert culprits(wrong, manifest) == {"inputs_ids", "position_ids", "input_ids"}


def test_nothing_at_all(manifest: Manifest) -> None:
    assert culprits({}, manifest) == {"input_ids"}


def test_slot_inputs_are_no_inputs(manifest: Manifest) -> None:
    name = manifest.slot_inputs[0].name
    assert culprits({"input_ids": ids(), name: np.zeros((1, 32, 1), np.float32)}, manifest) == {name}
    ids_name = str(manifest.adapter_ids)
    assert culprits({"input_ids": ids(), ids_name: [0, 1, 0]}, manifest) == {ids_name}


@pytest.mark.parametrize("shape", [(2, 7), (3, 6), (3, 8), (1, 7), (3, 1)])
def test_shapes_must_agree(manifest: Manifest, shape: tuple[int, int]) -> None:
    wrong = {"input_ids": ids(3, 7), "token_type_ids": np.zeros(shape, np.int64)}
    assert culprits(wrong, manifest) == {"token_type_ids"}


def test_every_wrong_input_is_named(manifest: Manifest) -> None:
    wrong = {
        "input_ids": [[1, 2, 999]],
        "attention_mask": [[1, 1, 2]],
        "token_type_ids": [[0.5, 0.5, 0.5]],
        "extra": 1,
    }
    assert culprits(wrong, manifest) == set(wrong)


def test_rows_without_a_token_are_named(manifest: Manifest) -> None:
    mask = np.ones((4, 7), np.int64)
    mask[[1, 3]] = 0
    error = refused({"input_ids": ids(4, 7), "attention_mask": mask}, manifest)
    assert subjects(error, Code.BAD_INPUT) == {"attention_mask"}
    assert "1, 3" in error.problems[0].got


def test_length(manifest: Manifest) -> None:
    limit = manifest.base.max_positions
    assert limit == 40
    assert check_inputs({"input_ids": ids(1, limit)}, manifest)["input_ids"].shape == (1, limit)
    error = refused({"input_ids": ids(1, limit + 1)}, manifest)
    assert subjects(error, Code.BAD_INPUT) == {"input_ids"}
    assert f"{limit + 1} tokens" in error.problems[0].got


def test_nothing_wraps_into_a_narrow_type(manifest: Manifest) -> None:
    spec = Input(name="input_ids", dtype="int32", shape=("batch", "seq"), low=0, high=96)
    narrow = manifest.model_copy(update={"inputs": (spec,)})
    array = check_inputs({"input_ids": [[1, 96]]}, narrow)["input_ids"]
    np.testing.assert_array_equal(array, np.array([[1, 96]], np.int32), strict=True)
    assert culprits({"input_ids": [[2**32 + 5]]}, narrow) == {"input_ids"}


def test_fixed_sizes(manifest: Manifest) -> None:
    spec = Input(name="pixels", dtype="fp32", shape=("batch", 3))
    fixed = manifest.model_copy(update={"inputs": (spec,)})
    assert check_inputs({"pixels": [[1, 2, 3]]}, fixed)["pixels"].dtype == np.float32
    assert culprits({"pixels": np.zeros((2, 4), np.float32)}, fixed) == {"pixels"}


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (None, [None, None]),
        ("a", ["a", "a"]),
        (["a", None], ["a", None]),
        (("a", "b"), ["a", "b"]),
        (np.array(["a", "b"]), ["a", "b"]),
    ],
)
def test_adapters(manifest: Manifest, given: Any, rows: list[str | None]) -> None:
    assert check_adapters(given, 2, manifest) == rows


@pytest.mark.parametrize(
    "given",
    [[], ["a"], ["a", "b", "c"], [1, 2], ["a", 1], [["a"], ["b"]], [b"a", b"b"], b"ab", 5, 1.5, True],
)
def test_adapters_that_do_not_fit(manifest: Manifest, given: Any) -> None:
    with pytest.raises(RequestError) as caught:
        check_adapters(given, 2, manifest)
    assert subjects(caught.value, Code.BAD_INPUT) == {"adapters"}


def test_a_set_has_no_order(manifest: Manifest) -> None:
    with pytest.raises(RequestError) as caught:
        check_adapters({"a", "b"}, 2, manifest)  # type: ignore[arg-type]
    assert subjects(caught.value, Code.BAD_INPUT) == {"adapters"}


def test_a_bundle_without_slots_takes_no_adapters(plain_bundle: Path) -> None:
    plain = Bundle.open(plain_bundle).manifest
    assert check_adapters(None, 2, plain) == [None, None]
    assert check_adapters([None, None], 2, plain) == [None, None]
    for given in ("a", [None, "a"]):
        with pytest.raises(RequestError) as caught:
            check_adapters(given, 2, plain)
        assert subjects(caught.value, Code.BAD_INPUT) == {"adapters"}
