"""Texts to inputs: as transformers' tokenizer does it, truncated where the bundle says and nowhere else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from adexport_runtime import Bundle, BundleError, Code, RequestError
from adexport_runtime.text import TextEncoder

TEXTS = ["Hello, world!", "a", "Ünïcode — and 日本語, too", "x" * 300, "two  spaces\nand a line", ""]


@pytest.fixture
def with_limit(minilm_bundle: Path, tmp_path: Path):
    """``with_limit(n)``: the tokenizer of MiniLM in a bundle that truncates to n tokens (None: never)."""

    def make(limit: int | None) -> TextEncoder:
        shutil.copy(minilm_bundle / "tokenizer.json", tmp_path)
        manifest = Bundle.open(minilm_bundle).manifest
        assert manifest.tokenizer is not None
        tokenizer = manifest.tokenizer.model_copy(update={"max_length": limit})
        return TextEncoder(Bundle(tmp_path, manifest.model_copy(update={"tokenizer": tokenizer})))

    return make


def test_equals_transformers(minilm_bundle: Path, minilm: Path) -> None:
    found = TextEncoder(Bundle.open(minilm_bundle))(TEXTS)
    expected = AutoTokenizer.from_pretrained(minilm)(TEXTS, padding=True, return_tensors="np")
    assert found.keys() == expected.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    for name, array in found.items():
        assert array.dtype == np.int64
        np.testing.assert_array_equal(array, expected[name])


def test_the_models_length(minilm_bundle: Path) -> None:
    found = TextEncoder(Bundle.open(minilm_bundle))(["word " * 2000])
    assert found["input_ids"].shape == (1, 512)
    assert found["input_ids"][0, -1] == 102  # [SEP] stays


def test_padding_is_to_the_longest_only(minilm_bundle: Path) -> None:
    encoder = TextEncoder(Bundle.open(minilm_bundle))
    assert encoder(["one"])["input_ids"].shape == (1, 3)
    mask = encoder(["one", "one two three"])["attention_mask"]
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize(("limit", "tokens"), [(7, 7), (700, 602), (None, 602)])
def test_nothing_but_the_bundle_truncates(with_limit, limit: int | None, tokens: int) -> None:
    """The file itself truncates to 128 tokens: that was a setting of its author."""
    assert with_limit(limit)(["word " * 600])["input_ids"].shape == (1, tokens)


@pytest.mark.parametrize(
    "texts", [[], "a text", ["a", 1], [None], [b"a"], ("a", ["b"]), ["a", "lone \ud800 surrogate"]]
)
def test_what_is_no_list_of_texts(minilm_bundle: Path, texts: object) -> None:
    with pytest.raises(RequestError) as caught:
        TextEncoder(Bundle.open(minilm_bundle))(texts)  # type: ignore[arg-type]
    assert caught.value.codes == {Code.BAD_INPUT}


def test_a_bundle_without_a_tokenizer(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError) as caught:
        TextEncoder(Bundle.open(tiny_bundle))
    assert caught.value.codes == {Code.ABSENT}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_one_text(minilm_bundle: Path, minilm: Path, text: str, special: bool) -> None:
    found = TextEncoder(Bundle.open(minilm_bundle)).ids(text, special_tokens=special)
    reference = AutoTokenizer.from_pretrained(minilm)
    assert found == reference(text, add_special_tokens=special)["input_ids"]


@pytest.mark.parametrize(("limit", "fits"), [(602, True), (None, True), (601, False), (7, False)])
def test_ids_are_never_cut(with_limit, limit: int | None, fits: bool) -> None:
    encoder = with_limit(limit)
    if fits:
        assert len(encoder.ids("word " * 600)) == 602
        return
    with pytest.raises(RequestError) as caught:
        encoder.ids("word " * 600)
    (problem,) = caught.value.problems
    assert (problem.code, problem.got) == (Code.BAD_INPUT, "602 tokens")
    assert problem.expected == f"at most {limit}"


def test_ids_and_batches_do_not_disturb_each_other(with_limit) -> None:
    encoder = with_limit(7)
    batch = encoder(["word " * 600, "a"])["input_ids"]
    assert encoder.ids("a") == [101, 1037, 102]
    np.testing.assert_array_equal(encoder(["word " * 600, "a"])["input_ids"], batch)
    assert batch.shape == (2, 7)


@pytest.mark.parametrize("text", [None, 7, b"a", ["a"], "lone \ud800 surrogate"])
def test_ids_of_what_is_no_text(minilm_bundle: Path, text: object) -> None:
    with pytest.raises(RequestError) as caught:
        TextEncoder(Bundle.open(minilm_bundle)).ids(text)  # type: ignore[arg-type]
    assert caught.value.codes == {Code.BAD_INPUT}
