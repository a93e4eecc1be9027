"""The matrix identities behind PEFT's methods; everything is float64."""

from __future__ import annotations

import numpy as np

from ...tensors import Array

#: below this, relative to the largest, what PEFT decomposes in float32 is not determined
_DEGENERATE = 1e-6


def face_split(left: Array, right: Array) -> Array:
    """Row by row, all products of the columns: ``[n, p]`` and ``[n, q]`` become ``[n, p q]``.

    With it ``(a b) * (c d) = face_split(a, c) @ face_split(b.T, d.T).T`` (Khatri and Rao, 1968).
    """
    rows = left.shape[0]
    product: Array = (left[:, :, None] * right[:, None, :]).reshape(rows, -1)
    return product


def thin(left: Array, right: Array) -> tuple[Array, Array]:
    """``left @ right`` with no more columns between them than the product has rows or columns."""
    rows, rank = left.shape
    columns = right.shape[1]
    if rank <= min(rows, columns):
        return left, right
    product = left @ right
    return (np.eye(rows), product) if rows <= columns else (product, np.eye(columns))


def block_diagonal(stacked: Array, blocks: int) -> Array:
    """Blocks that lie one below the other, ``[rows, columns / blocks]``, put on the diagonal."""
    rows, columns = stacked.shape
    height = rows // blocks
    dense = np.zeros((rows, columns * blocks))
    for index in range(blocks):
        here = slice(index * height, (index + 1) * height)
        dense[here, index * columns : (index + 1) * columns] = stacked[here]
    return dense


def reflections(vectors: Array) -> Array:
    """``M`` ``[n, r]`` with ``(I - 2 u1 u1ᵀ) … (I - 2 ur urᵀ) = I + M Uᵀ`` for the columns of unit length.

    The compact form of a product of Householder reflections (Bischof and Van Loan, 1987).
    """
    found = np.zeros_like(vectors)
    for index in range(vectors.shape[1]):
        u = vectors[:, index]
        found[:, index] = -2 * (u + found[:, :index] @ (vectors[:, :index].T @ u))
    return found


def orthonormal(vectors: Array) -> Array | None:
    """The columns after Gram and Schmidt, in their order; None if one depends on those before it."""
    found = np.zeros_like(vectors)
    for index in range(vectors.shape[1]):
        u = vectors[:, index]
        rest = u.copy()
        for before in range(index):
            rest -= (found[:, before] @ rest) * found[:, before]
        length = np.linalg.norm(rest)
        if length <= _DEGENERATE * np.linalg.norm(u):
            return None
        found[:, index] = rest / length
    return found


def principal(matrix: Array, rank: int) -> tuple[Array, Array] | None:
    """The closest matrix of a rank as a product ``[n, rank] @ [rank, m]``; None if there are several."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    after = s[rank] if rank < s.size else -1.0
    if rank > s.size or not s[rank - 1] - after > _DEGENERATE * s[0]:
        return None
    root = np.sqrt(s[:rank])
    return u[:, :rank] * root, root[:, None] * v[:rank]


def leading(matrix: Array, rank: int) -> tuple[Array, Array] | None:
    """The first columns of Q and rows of R; None if the first columns of the matrix do not fix them."""
    q, r = np.linalg.qr(matrix)
    diagonal = np.abs(np.diagonal(r))
    if rank > diagonal.size or not diagonal[:rank].min() > _DEGENERATE * diagonal.max():
        return None
    return q[:, :rank], r[:rank]


def mixture(logits: Array, bank: Array, most: int) -> Array | None:
    """Of every row of logits ``[…, n]``, the softmax of the largest as a mixture of the bank's vectors.

    Args:
        logits: one for each vector.
        bank: ``[n, length]``.
        most: how many of the largest count.

    Returns:
        ``[…, length]``, NaN if any logit is; None if equal logits leave open which are the largest.
    """
    if np.isnan(logits).any():
        return np.full((*logits.shape[:-1], bank.shape[1]), np.nan)
    order = np.argsort(-logits, axis=-1, kind="stable")
    ordered = np.take_along_axis(logits, order, axis=-1)
    kept = ordered[..., :most]
    if most < logits.shape[-1] and np.any(kept[..., -1] == ordered[..., most]):
        return None
    weights = np.exp(kept - kept[..., :1])
    weights /= weights.sum(axis=-1, keepdims=True)
    return weighted(weights, order[..., :most], bank)


def weighted(weights: Array, indices: Array, bank: Array) -> Array:
    """Sums of the bank's vectors, ``[n, length]``, with weights ``[…, k]`` at indices ``[…, k]``."""
    found: Array = np.einsum("...k,...kl->...l", weights, bank[indices])
    return found
