"""The quick look at inputs gives and refuses what the thorough one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adexport_runtime import Bundle, Manifest, RequestError, input_checker
from adexport_runtime.input_checker import InputChecker
from adexport_runtime.manifest import Input
from adexport_runtime.request import check_inputs

from .support import ids


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


NAMES = ("input_ids", "attention_mask", "token_type_ids", "strange")

values = st.one_of(
    st.none(),
    st.builds(
        lambda shape, dtype, seed, high, order: np.asarray(
            np.random.default_rng(seed).integers(0, high, shape).astype(dtype), order=order
        ),
        st.sampled_from([(2, 3), (2, 3), (2, 3), (1, 3), (2, 0), (3,), (2, 65), (2, 64), (2, 3, 1)]),
        st.sampled_from([np.int64, np.int64, np.int64, np.int32, np.uint64, np.float32, ">i8", bool]),
        st.integers(0, 9),
        st.sampled_from([1, 2, 2, 3, 90, 10**9]),
        st.sampled_from(["C", "F"]),
    ),
    st.builds(
        lambda value: np.full((2, 3), value), st.sampled_from([-(2**63), -1, 0, 1, 2, 99, 2**63 - 1])
    ),
    st.just([[1, 1, 0], [0, 1, 1]]),
)


@given(inputs=st.dictionaries(st.sampled_from(NAMES), values))
@example(inputs={"input_ids": ids(2, 3), "attention_mask": np.array([[0, 1, 1], [1, 1, 1]])})
@example(inputs={"input_ids": ids(2, 3), "attention_mask": np.array([[0, 0, 0], [1, 1, 1]])})
@example(inputs={"input_ids": ids(2, 3), "token_type_ids": None})
def test_as_the_thorough_one(inputs: dict[str, Any], manifest: Manifest) -> None:
    outcomes: list[Any] = []
    for check in (InputChecker(manifest), lambda given: check_inputs(given, manifest)):
        try:
            outcomes.append(check(inputs))
        except RequestError as error:
            outcomes.append(str(error))
    quick, thorough = outcomes
    if isinstance(thorough, str):
        assert quick == thorough
        return
    assert quick.keys() == thorough.keys()
    for name, array in thorough.items():
        np.testing.assert_array_equal(quick[name], array, strict=True)
        assert quick[name].flags.c_contiguous


def test_what_fits_is_looked_at_once(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_checker, "check_inputs", lambda *_: pytest.fail("looked at twice"))
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    inputs = {"input_ids": ids(2, 3), "attention_mask": mask}
    found = InputChecker(manifest)(inputs)
    assert found["input_ids"] is inputs["input_ids"]
    assert found["attention_mask"] is mask
    assert found["token_type_ids"].tolist() == [[0, 0, 0]] * 2
    assert inputs.keys() == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("low", "high", "value", "fits"),
    [(2, 9, 5, True), (2, 9, 1, False), (-3, 3, -2, True), (-3, 3, -4, False), (None, None, -5, True)],
)
def test_other_ranges(
    low: int | None, high: int | None, value: int, fits: bool, manifest: Manifest
) -> None:
    spec = Input(name="other", dtype="int64", shape=("batch",), low=low, high=high)
    check = InputChecker(manifest.model_copy(update={"inputs": (spec,)}))
    if fits:
        assert check({"other": np.array([value])})["other"].tolist() == [value]
    else:
        with pytest.raises(RequestError, match="other"):
            check({"other": np.array([value])})


def test_pixels_may_be_anything(manifest: Manifest) -> None:
    spec = Input(name="pixels", dtype="fp32", shape=("batch", 3))
    check = InputChecker(manifest.model_copy(update={"inputs": (spec,)}))
    pixels = np.array([[np.nan, np.inf, -1]], np.float32)
    assert check({"pixels": pixels})["pixels"] is pixels
    with pytest.raises(RequestError, match="pixels"):
        check({"pixels": pixels[:, :2]})
