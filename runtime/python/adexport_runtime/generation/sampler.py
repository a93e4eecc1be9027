"""From the logits of one row to its next token, as transformers' ``generate`` picks it.

The steps and their order are those of transformers 5 (``generation/logits_process.py``): the repetition
penalty (Keskar et al. 2019, CTRL, section 4.1), the temperature, top-k (Fan et al. 2018), top-p (Holtzman
et al. 2020). Arithmetic is float32 as there, so that ties fall alike.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import Code, Problem, RequestError
from ..tensors import Array
from .settings import Sampling

#: how many logits one block of :func:`_largest` and :func:`_draw` covers
BLOCK = 256
#: how finely :func:`_nucleus` sorts logits first; beyond 50 below the best, hardly any is left
BINS, BINS_PER_UNIT = 2000, 40


class Sampler:
    """Picks the tokens of one request. It has a generator of its own: no other row plays a part."""

    def __init__(self, settings: Sampling, prompt: Iterable[int]) -> None:
        """Start a request whose prompt has these token ids."""
        self._settings = settings
        self._random = np.random.Generator(np.random.PCG64(settings.seed))
        self._seen = {int(token) for token in prompt} if self._penalizes else set()
        self._seen_ids = np.array(list(self._seen), np.int64)
        self._scores = np.empty(
            0, np.float32
        )  # kept: fresh memory for every token takes longer than its use

    @property
    def _penalizes(self) -> bool:
        return self._settings.repetition_penalty != 1.0

    def next(self, logits: Array) -> int:
        """The next token's id, from float32 logits ``[vocab]``, which are left as they are.

        The greedy choice among equals is the first.

        Raises:
            RequestError: the logits hold NaN or plus infinity, or nothing but minus infinity.
        """
        if self._settings.greedy:
            scores = self._penalized(logits)
            token = int(scores.argmax())  # of a NaN, if there is one
            _check(scores[token])
        else:
            ids, weights = self._weights(logits)
            place = _draw(weights, self._random.random())
            token = place if ids is None else int(ids[place])
        if self._penalizes and token not in self._seen:
            self._seen.add(token)
            self._seen_ids = np.append(self._seen_ids, token)
        return token

    def distribution(self, logits: Array) -> tuple[Array, Array]:
        """What :meth:`next` samples from, with a temperature: ids, ascending, and their probabilities.

        int64 and float32, both ``[kept]``. Raises as :meth:`next` does.
        """
        ids, weights = self._weights(logits)
        return np.arange(weights.size) if ids is None else ids, weights / weights.sum()

    def _weights(self, logits: Array) -> tuple[Array | None, Array]:
        """The ids that are kept, ascending (None: all), and numbers in proportion to their probabilities.

        The numbers hold until the next call.
        """
        settings = self._settings
        if self._scores.shape != logits.shape:
            self._scores = np.empty_like(logits)
        with np.errstate(over="ignore"):  # infinity is refused below
            scores = np.divide(
                self._penalized(logits), np.float32(settings.temperature or 1), out=self._scores
            )
        best = scores.max()  # NaN, if there is one
        _check(best)
        ids = None
        if settings.top_k is not None and settings.top_k < scores.size:
            ids = _largest(scores, settings.top_k)
            scores = scores[ids]
        scores -= best
        if settings.top_p is None or settings.top_p == 1:
            return ids, np.exp(scores, out=scores)
        weights = np.exp(scores)
        kept = _nucleus(scores, weights, settings.top_p)
        return kept if ids is None else ids[kept], weights[kept]

    def _penalized(self, logits: Array) -> Array:
        """The logits, with those of seen tokens made smaller; a copy if anything differs."""
        if not self._penalizes:
            return logits
        penalty = np.float32(self._settings.repetition_penalty)
        seen = self._seen_ids[self._seen_ids < logits.size]  # an embedding may have more rows
        old = logits[seen]
        scores = logits.copy()
        with np.errstate(over="ignore"):
            scores[seen] = np.where(old < 0, old * penalty, old / penalty)
        return scores


def _check(best: np.float32) -> None:
    """Refuse logits whose largest is ``best``: NaN is the largest of all."""
    if np.isfinite(best):
        return
    got = "NaN" if np.isnan(best) else "infinity" if best > 0 else "minus infinity for every token"
    raise RequestError(
        "no next token can be picked",
        Problem(
            Code.NOT_FINITE,
            "logits",
            got=got,
            expected="finite numbers",
            cause="weights of the row's adapter that are damaged or far too large",
            mend="train or convert the adapter again",
        ),
    )


def _largest(scores: Array, count: int) -> Array:
    """The places, ascending, of the ``count`` largest and of all that equal the last of them."""
    size = scores.size
    if count >= size:
        return np.arange(size)
    blocks = size // BLOCK
    places = None
    if 4 * count <= blocks:
        # so many blocks reach this bound that fewer than `count` scores cannot: the rest need no sorting
        tops = scores[: blocks * BLOCK].reshape(blocks, BLOCK).max(axis=1)
        places = np.flatnonzero(scores >= np.partition(tops, blocks - count)[blocks - count])
        scores = scores[places]
    last = np.partition(scores, scores.size - count)[scores.size - count]
    kept = np.flatnonzero(scores >= last)
    return kept if places is None else places[kept]


def _nucleus(scores: Array, weights: Array, top_p: float) -> Array:
    """The places, ascending, of the fewest likeliest that together have the probability ``top_p``.

    ``scores`` are the logarithms of ``weights``, the largest 0.

    From the least likely up, one goes while the sum of those gone, itself included, is at most
    ``1 - top_p``; the likeliest stays. Of equals the first goes first (torch's sort lets any).
    """
    # all below this go: together they have less than half of what may go
    some = np.flatnonzero(scores >= np.log((1 - top_p) / (2 * scores.size)))
    whole, limit = weights.sum(), np.float32(1 - top_p)
    gone = (weights.sum(dtype=np.float64) - weights[some].sum(dtype=np.float64)) / whole
    scores, probabilities = scores[some], weights[some] / whole
    # the others are sorted into bins, and only those of the bin that is cut one by one
    below = np.minimum(scores * np.float32(-BINS_PER_UNIT), BINS - 1).astype(np.intp)
    masses = np.bincount(below, weights=probabilities, minlength=BINS)
    sums = gone + np.cumsum(masses[::-1])[::-1]  # from the least likely bin up, each included
    stay = np.flatnonzero((sums.astype(np.float32) > limit) & (masses > 0))
    cut = int(stay[-1]) if stay.size else 0
    places = np.flatnonzero(below == cut)
    order = places[np.argsort(scores[places], kind="stable")]
    before = sums[cut + 1] if cut + 1 < BINS else gone
    kept = (before + np.cumsum(probabilities[order], dtype=np.float64)).astype(np.float32) > limit
    kept[-1] = True  # their sum is over the limit but for rounding
    mask = below < cut
    mask[order[kept]] = True
    return some[mask]


def _draw(weights: Array, uniform: float) -> int:
    """The place where the share ``uniform``, from 0 to below 1, of all weights falls; none of weight 0."""
    starts = np.arange(0, weights.size, BLOCK)
    ends = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    wanted = uniform * ends[-1]  # rounds to less than the whole
    block = int(np.searchsorted(ends, wanted, side="right"))
    inside = weights[starts[block] : starts[block] + BLOCK]
    before = ends[block - 1] if block else 0.0
    place = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), wanted - before, side="right"))
    # rounding may carry it past the block's end: then its last that has any weight
    return int(starts[block]) + min(place, int(np.flatnonzero(inside)[-1]))
