"""The matrix identities behind PEFT's methods, on any sizes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adexport_runtime.adapters.peft import numeric

SMALL = st.integers(1, 6)
SEEDS = st.integers(0, 2**32 - 1)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * max(1.0, np.abs(expected).max()))


@given(SMALL, SMALL, SMALL, SMALL, SEEDS)
def test_face_split(out: int, into: int, first: int, second: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((out, first)), random.standard_normal((first, into))
    c, d = random.standard_normal((out, second)), random.standard_normal((second, into))
    close(numeric.face_split(a, c) @ numeric.face_split(b.T, d.T).T, (a @ b) * (c @ d))


@given(SMALL, SMALL, st.integers(1, 12), SEEDS)
def test_thin(out: int, into: int, rank: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    left, right = random.standard_normal((out, rank)), random.standard_normal((rank, into))
    one, other = numeric.thin(left, right)
    assert one.shape[1] == other.shape[0] == min(out, into, rank)
    close(one @ other, left @ right)


@given(SMALL, SMALL, SMALL, SEEDS)
def test_block_diagonal(blocks: int, rows: int, columns: int, seed: int) -> None:
    stacked = np.random.default_rng(seed).standard_normal((blocks * rows, columns))
    expected = torch.block_diag(*torch.chunk(torch.from_numpy(stacked), blocks, dim=0)).numpy()
    np.testing.assert_array_equal(numeric.block_diagonal(stacked, blocks), expected)


@given(SMALL, SMALL, SEEDS)
def test_reflections(size: int, rank: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((size, rank))
    vectors /= np.linalg.norm(vectors, axis=0)
    expected = np.eye(size)
    for u in vectors.T:
        expected = expected @ (np.eye(size) - 2 * np.outer(u, u))
    close(np.eye(size) + numeric.reflections(vectors) @ vectors.T, expected)


@given(st.integers(1, 8), SMALL, SEEDS)
def test_orthonormal(size: int, rank: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((size, rank))
    assume(rank > size or np.linalg.cond(vectors) < 100)
    found = numeric.orthonormal(vectors)
    if rank > size:
        assert found is None
        return
    assert found is not None
    np.testing.assert_allclose(found.T @ found, np.eye(rank), atol=1e-9)
    # column by column in the span of the first ones, and on the same side
    triangle = found.T @ vectors
    np.testing.assert_allclose(np.tril(triangle, -1), 0, atol=1e-9)
    assert (np.diagonal(triangle) > 0).all()


def test_orthonormal_of_dependent_columns() -> None:
    column = np.arange(1.0, 5.0)[:, None]
    assert numeric.orthonormal(np.hstack([column, 2 * column])) is None
    assert numeric.orthonormal(np.zeros((4, 1))) is None


@given(SMALL, SMALL, SMALL, SEEDS)
def test_principal(out: int, into: int, rank: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((out, into))
    found = numeric.principal(matrix, rank)
    if rank > min(out, into):
        assert found is None
        return
    values = np.linalg.svd(matrix, compute_uv=False)
    assume(values[rank - 1] - np.append(values, 0)[rank] > 1e-3)
    assert found is not None
    rest = matrix - found[0] @ found[1]
    # nothing of this rank is closer (Eckart and Young)
    assert abs(np.linalg.norm(rest) - np.linalg.norm(values[rank:])) < 1e-9


def test_principal_where_several_are_as_close() -> None:
    assert numeric.principal(np.eye(3), 2) is None
    assert numeric.principal(np.zeros((3, 3)), 1) is None
    assert numeric.principal(np.eye(3), 3) is not None


@given(SMALL, SMALL, SMALL, SEEDS)
def test_leading(out: int, into: int, rank: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((out, into))
    assume(rank > min(out, into) or np.linalg.cond(matrix[:, :rank]) < 1e4)
    found = numeric.leading(matrix, rank)
    if rank > min(out, into):
        assert found is None
        return
    assert found is not None
    # the projection on the first columns, however Q and R are signed
    first = matrix[:, :rank]
    np.testing.assert_allclose(found[0] @ found[1], first @ np.linalg.pinv(first) @ matrix, atol=1e-9)


def test_leading_of_dependent_columns() -> None:
    matrix = np.random.default_rng(0).standard_normal((4, 4))
    matrix[:, 1] = 2 * matrix[:, 0]
    assert numeric.leading(matrix, 2) is None
    assert numeric.leading(matrix, 1) is not None


@settings(deadline=None)
@given(SMALL, st.integers(1, 6), st.integers(0, 4), SEEDS)
def test_mixture(rows: int, most: int, more: int, seed: int) -> None:
    """The softmax over the largest logits, as torch does it."""
    random = np.random.default_rng(seed)
    logits, bank = random.standard_normal((rows, 2, most + more)), random.standard_normal((most + more, 3))
    largest, indices = torch.from_numpy(logits).topk(most, dim=-1)
    weights = torch.softmax(largest, dim=-1)
    expected = (weights.unsqueeze(-1) * torch.from_numpy(bank)[indices]).sum(-2).numpy()
    found = numeric.mixture(logits, bank, most)
    assert found is not None
    close(found, expected)


def test_mixture_of_equal_logits() -> None:
    bank = np.eye(3)
    assert numeric.mixture(np.array([[1.0, 0.0, 0.0]]), bank, 2) is None
    np.testing.assert_allclose(numeric.mixture(np.array([[0.0, 1.0, 1.0]]), bank, 2), [[0, 0.5, 0.5]])


def test_a_nan_among_the_logits_is_not_passed_over() -> None:
    found = numeric.mixture(np.array([[3.0, np.nan, 1.0]]), np.eye(3), 1)
    assert found is not None
    assert np.isnan(found).all()
