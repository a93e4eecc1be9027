"""The next token: transformers' own processors say what is right, and numbers whether draws are fair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from adexport_runtime import Code, RequestError
from adexport_runtime.generation.sampler import Sampler, _draw, _largest
from adexport_runtime.generation.settings import Sampling

#: how far sums of float32 probabilities of two libraries may lie apart
MARGIN = 2e-6
#: below it float32 has fewer digits, or none
SUBNORMAL = 1.2e-38
LAST_UNIFORM = 1 - 2.0**-53


def processed(logits: np.ndarray, ids: list[int], settings: Sampling) -> torch.Tensor:
    """The scores ``[vocab]`` that transformers samples from: minus infinity for what is out."""
    steps = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if not settings.greedy:
        steps.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k is not None:
            steps.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p is not None and settings.top_p < 1:
            steps.append(TopPLogitsWarper(settings.top_p))
    return steps(torch.tensor([ids], dtype=torch.int64), torch.from_numpy(logits.copy())[None])[0]


def reference(logits: np.ndarray, ids: list[int], settings: Sampling) -> np.ndarray:
    """The probabilities ``[vocab]`` that transformers samples from."""
    return processed(logits, ids, settings).softmax(-1).numpy()


def dense(logits: np.ndarray, ids: list[int], settings: Sampling) -> np.ndarray:
    """The probabilities ``[vocab]`` that the sampler draws from."""
    kept, probabilities = Sampler(settings, ids).distribution(logits)
    assert (np.diff(kept) > 0).all()
    full = np.zeros_like(logits)
    full[kept] = probabilities
    return full


@st.composite
def rows(draw: Any) -> tuple[np.ndarray, list[int], dict[str, Any]]:
    """Logits (smooth, or full of ties, some minus infinity), ids so far, and settings but top_p."""
    vocab = draw(st.sampled_from([1, 2, 3, 17, 300, 3100, 9000]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = random.normal(0, draw(st.sampled_from([0.5, 3.0, 20.0])), vocab)
    if draw(st.booleans()):
        logits = np.round(logits)
    if draw(st.booleans()):
        gone = random.random(vocab) < 0.3
        gone[random.integers(vocab)] = False
        logits[gone] = -np.inf
    ids = random.integers(0, vocab, draw(st.integers(1, 40))).tolist()
    settings = {
        "temperature": draw(st.sampled_from([0.1, 0.7, 1.0, 3.3])),
        "top_k": draw(st.sampled_from([None, 1, 2, 5, 50, 1000, 10**6])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.3, 0.6])),
    }
    return logits.astype(np.float32), ids, settings


@given(rows())
def test_probabilities_equal_transformers(row: Any) -> None:
    logits, ids, settings = row
    found = dense(logits, ids, Sampling(**settings))
    expected = reference(logits, ids, Sampling(**settings))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=SUBNORMAL)
    kept, _ = Sampler(Sampling(**settings), ids).distribution(logits)
    allowed = processed(logits, ids, Sampling(**settings)).isfinite().numpy()
    np.testing.assert_array_equal(kept[np.isfinite(logits[kept])], np.flatnonzero(allowed))


@given(rows(), st.floats(0.001, 0.999))
def test_top_p_equals_transformers(row: Any, top_p: float) -> None:
    """As many tokens, up to a sum that rounding puts on either side of the border; and the likeliest."""
    logits, ids, settings = row
    found = dense(logits, ids, Sampling(**settings, top_p=top_p))
    near = [max(top_p - MARGIN, 1e-9), min(top_p + MARGIN, 1.0)]
    counts = [int((reference(logits, ids, Sampling(**settings, top_p=each)) > 0).sum()) for each in near]
    count = int((found > 0).sum())
    assert counts[0] <= count <= counts[1]
    whole = reference(logits, ids, Sampling(**settings))
    # of equals at the border any may stay: torch's sort leaves that open
    kept = whole[found > 0]
    assert kept.min() >= whole[found == 0].max(initial=0) * (1 - 1e-5)
    np.testing.assert_allclose(
        found[found > 0], kept / kept.sum(dtype=np.float64), rtol=1e-5, atol=SUBNORMAL
    )


@pytest.mark.parametrize("top_p", [0.1, 0.25, 0.5, 0.6, 0.75, 0.9, 1.0, 1e-9])
@pytest.mark.parametrize("vocab", [1, 2, 4, 8, 10, 1024])
def test_top_p_among_equals(vocab: int, top_p: float) -> None:
    """As many stay as in transformers; the last ones, as where torch's sort is stable."""
    logits = np.zeros(vocab, np.float32)
    settings = Sampling(temperature=1.0, top_p=top_p)
    found, expected = dense(logits, [0], settings), reference(logits, [0], settings)
    np.testing.assert_allclose(found, np.sort(expected), rtol=1e-6)


@pytest.mark.parametrize("top_p", [np.nextafter(1.0, 0), 1 - 1e-12, 1e-300])
def test_top_p_at_its_ends(top_p: float) -> None:
    """What may go is less than what float64 adds up to: all that has any weight stays, or the likeliest."""
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(0, 12, 5000).astype(np.float32)
        found = dense(logits, [0], Sampling(temperature=1.0, top_p=float(top_p)))
        expected = reference(logits, [0], Sampling(temperature=1.0, top_p=float(top_p)))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-11)
        assert (found > 0).sum() == 1 if top_p < 0.5 else (found > 0).sum() > 10


def test_top_p_over_a_flat_and_large_vocabulary() -> None:
    """The tokens that are kept are many more than the sampler looks at first."""
    logits = np.random.default_rng(0).normal(0, 0.1, 60_000).astype(np.float32)
    settings = Sampling(temperature=1.0, top_p=0.8)
    found, expected = dense(logits, [0], settings), reference(logits, [0], settings)
    assert abs(int((found > 0).sum()) - int((expected > 0).sum())) <= 1
    assert (found > 0).sum() > 256 * 16
    np.testing.assert_allclose(found.sum(), 1, atol=1e-5)
    assert logits[found > 0].min() >= logits[found == 0].max()


def test_ties_at_the_kth_place_all_stay() -> None:
    logits = np.array([2, 1, 3, 1, 1, 0], np.float32)
    settings = Sampling(temperature=1.0, top_k=3)
    np.testing.assert_array_equal(dense(logits, [0], settings) > 0, [True, True, True, True, True, False])


@given(st.integers(1, 6000), st.integers(1, 300), st.integers(0, 2**32), st.booleans())
def test_largest_is_what_sorting_finds(size: int, count: int, seed: int, ties: bool) -> None:
    scores = np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)
    scores = np.round(scores) if ties else scores
    last = np.sort(scores)[max(size - count, 0)]
    np.testing.assert_array_equal(_largest(scores, count), np.flatnonzero(scores >= last))


@given(rows())
def test_greedy_equals_transformers(row: Any) -> None:
    logits, ids, settings = row
    greedy = Sampling(repetition_penalty=settings["repetition_penalty"], top_k=settings["top_k"])
    before = logits.copy()
    found = Sampler(greedy, ids).next(logits)
    np.testing.assert_array_equal(logits, before)
    scores = processed(logits, ids, greedy).numpy()
    assert found == np.flatnonzero(scores == scores.max())[0]


def test_the_first_of_equals_is_greedy() -> None:
    assert Sampler(Sampling(), [0]).next(np.array([0, 2, 1, 2], np.float32)) == 1


def test_the_penalty_sees_what_was_generated() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0), [4])
    logits = np.array([1.0, 3.0, 2.9, -1.0, 5.0], np.float32)
    # 4 becomes 2.5; then 1 is taken and becomes 1.5, then 2, and so on: the largest of what is left
    assert [sampler.next(logits) for _ in range(4)] == [1, 2, 4, 4]


def test_the_penalty_passes_over_ids_beyond_the_logits() -> None:
    logits = np.array([1.0, 2.0], np.float32)
    assert Sampler(Sampling(repetition_penalty=3.0), [1, 2, 99]).next(logits) == 0


LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.8}, {"temperature": 2.0}])
def test_draws_follow_the_probabilities(settings: dict[str, Any]) -> None:
    """Chi-square with at most 4 degrees of freedom: 23.5 is passed once in 10,000; the seed is fixed."""
    settings = {"temperature": 1.0, **settings}
    sampler = Sampler(Sampling(**settings, seed=7), [0])
    draws = 20_000
    counts = np.bincount([sampler.next(LOGITS) for _ in range(draws)], minlength=5)
    expected = reference(LOGITS, [0], Sampling(**settings)) * draws
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < 23.5


@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-30, 0.25, 1.0, 3.5]), min_size=1, max_size=600),
    st.one_of(st.floats(0, LAST_UNIFORM), st.sampled_from([0.0, 0.25, 0.5, LAST_UNIFORM])),
)
def test_a_draw_falls_where_the_sums_say(weights: list[float], uniform: float) -> None:
    array = np.array([*weights, 1.0], np.float32)
    place = _draw(array, uniform)
    assert array[place] > 0
    ends = np.cumsum(array, dtype=np.float64)
    assert ends[place] - array[place] - 1e-9 <= uniform * ends[-1] <= ends[place] + 1e-9


def run(sampler: Sampler, rows: np.ndarray) -> list[int]:
    return [sampler.next(row) for row in rows]


def test_the_seed_decides() -> None:
    rows = np.random.default_rng(1).normal(0, 1, (40, 500)).astype(np.float32)
    settings = Sampling(temperature=1.0, seed=3, repetition_penalty=1.1)
    first = run(Sampler(settings, [1]), rows)
    assert first == run(Sampler(settings, [1]), rows)
    assert first != run(Sampler(Sampling(temperature=1.0, seed=4, repetition_penalty=1.1), [1]), rows)
    afresh = Sampling(temperature=1.0)
    assert run(Sampler(afresh, [1]), rows) != run(Sampler(afresh, [1]), rows)


def test_rows_do_not_see_each_other() -> None:
    rows = np.random.default_rng(1).normal(0, 1, (30, 400)).astype(np.float32)
    settings = [Sampling(temperature=1.0, top_k=40, seed=seed) for seed in (5, 5, 6)]
    alone = [run(Sampler(each, [0]), rows) for each in settings]
    samplers = [Sampler(each, [0]) for each in settings]
    together: list[list[int]] = [[], [], []]
    for row in rows:
        for tokens, sampler in zip(together, samplers, strict=True):
            tokens.append(sampler.next(row))
    assert together == alone
    assert alone[0] == alone[1] != alone[2]


BROKEN = {
    "NaN": [0.0, np.nan, 9.0],
    "infinity": [0.0, np.inf, 9.0],
    "minus infinity for every token": [-np.inf] * 3,
}


@pytest.mark.parametrize("got", BROKEN)
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("others", [{}, {"top_k": 1, "top_p": 0.5}, {"repetition_penalty": 1.5}])
def test_logits_that_are_not_finite(got: str, temperature: float, others: dict[str, Any]) -> None:
    sampler = Sampler(Sampling(temperature=temperature, seed=0, **others), [2])
    with pytest.raises(RequestError) as caught:
        sampler.next(np.array(BROKEN[got], np.float32))
    assert [(p.code, p.got) for p in caught.value.problems] == [(Code.NOT_FINITE, got)]


def test_logits_that_the_settings_make_infinite() -> None:
    logits = np.array([1e37, 0], np.float32)
    with pytest.raises(RequestError) as caught:
        Sampler(Sampling(temperature=1e-3), [0]).next(logits)
    assert caught.value.codes == {Code.NOT_FINITE}
