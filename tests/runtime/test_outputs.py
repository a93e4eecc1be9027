"""Outputs of rows with different heads: each row's logits are its own, and the batch's no wider."""

from __future__ import annotations

import numpy as np
import pytest

from adexport_runtime.outputs import LOGITS, Outputs, cut_logits

LABELS = (("a", "b"), (), ("a", "b", "c"))


@pytest.mark.parametrize("tokens", [(), (4,)], ids=["rows", "tokens"])
def test_logits_of_different_heads(tokens: tuple[int, ...]) -> None:
    resident = np.random.default_rng(0).normal(size=(3, *tokens, 8)).astype(np.float32)
    arrays = {LOGITS: resident.copy()}
    cut_logits(arrays, LABELS)
    assert arrays[LOGITS].shape == (3, *tokens, 3)
    outputs = Outputs(arrays, LABELS, classified=True)
    assert outputs.labels == LABELS
    for row, names in enumerate(LABELS):
        np.testing.assert_array_equal(outputs.row(row)[LOGITS], resident[row][..., : len(names)])
        assert np.isneginf(outputs[LOGITS][row][..., len(names) :]).all()


def test_a_batch_without_heads_has_no_logits() -> None:
    arrays = {LOGITS: np.zeros((2, 8), np.float32)}
    cut_logits(arrays, ((), ()))
    assert arrays[LOGITS].shape == (2, 0)


def test_one_head_for_all_is_left_as_it_is() -> None:
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {LOGITS: given}
    cut_logits(arrays, [("a", "b", "c")] * 2)
    np.testing.assert_array_equal(arrays[LOGITS], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert np.shares_memory(arrays[LOGITS], given)


def test_logits_that_are_no_labels_are_whole() -> None:
    logits = np.zeros((2, 5, 97), np.float32)
    assert Outputs({LOGITS: logits}, ((), ()), classified=False).row(0)[LOGITS].shape == (5, 97)
