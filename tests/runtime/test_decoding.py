"""Ids to text in pieces: joined, they are what the tokenizers library decodes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from adexport_runtime.generation.decoding import Detokenizer
from adexport_runtime.generation.stops import StopFinder

TEXTS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? 12 + 30 = 42.",
    "  two leading spaces, a tab\tand\n\nlines",
    "猫が好きです。今日はいい天気ですね。",
    "Zażółć gęślą jaźń — “quoted” … naïve café",
    "emoji 🦙🔥 and 👩‍👩‍👧‍👦 families, flags 🇯🇵",
]
SPECIAL = ["<s>", "</s>", "<|end|>"]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen and SmolLM2 have it, with merges that cut emoji and kanji anywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return with_added(tokenizer)


def byte_fallback() -> Tokenizer:
    """As Llama 2, Mistral and Gemma have it: what the vocabulary lacks falls back to bytes."""
    plain = Tokenizer(models.BPE())
    plain.normalizer = normalizers.Replace(" ", "▁")
    plain.train_from_iterator(TEXTS[:2], trainers.BpeTrainer(vocab_size=100, show_progress=False))
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(plain.get_vocab())]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_added(tokenizer)


def metaspace() -> Tokenizer:
    """As T5 and XLM-R have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", show_progress=False)
    trainer.special_tokens = ["<unk>"]
    tokenizer.train_from_iterator(TEXTS, trainer)
    return with_added(tokenizer)


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    """Special tokens, and one added token that is none and keeps its text."""
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    return tokenizer


TRAINED = {"byte-level": byte_level(), "byte-fallback": byte_fallback(), "metaspace": metaspace()}


@pytest.fixture(scope="session")
def tokenizers(minilm: Path) -> dict[str, Tokenizer]:
    wordpiece = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    wordpiece.no_padding()
    wordpiece.no_truncation()
    return {**TRAINED, "wordpiece": wordpiece}


KINDS = [*TRAINED, "wordpiece"]


def pieces(
    tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()
) -> tuple[list[str], str | None]:
    stream = Detokenizer(tokenizer).stream(stop)
    parts = [stream.push(token) for token in ids]
    return [*parts, stream.finish()], stream.stopped


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_real_text(tokenizers: dict[str, Tokenizer], kind: str, text: str) -> None:
    ids = tokenizers[kind].encode(text, add_special_tokens=False).ids
    parts, stopped = pieces(tokenizers[kind], ids)
    assert "".join(parts) == tokenizers[kind].decode(ids)
    assert stopped is None
    if kind != "byte-fallback":  # there, a text without spaces can be bytes from end to end
        assert len([part for part in parts if part]) > 3
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_ids(tokenizers: dict[str, Tokenizer], kind: str, data: Any) -> None:
    """Torn characters, bytes that are no UTF-8, special tokens anywhere, ids without a token."""
    tokenizer = tokenizers[kind]
    size = tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 2) | st.integers(0, 300), max_size=30))
    parts, _ = pieces(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_ids_with_stop_strings(tokenizers: dict[str, Tokenizer], kind: str, data: Any) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode("".join(data.draw(st.lists(st.sampled_from(TEXTS), max_size=2)))).ids
    text = tokenizer.decode(ids)
    cuts = st.integers(0, max(len(text) - 1, 0))
    begins = data.draw(st.lists(cuts, max_size=3))
    stops = [text[begin : begin + data.draw(st.integers(1, 6))] for begin in begins]
    stops = [stop for stop in [*stops, data.draw(st.text("qxz🦙", min_size=1, max_size=3))] if stop]
    finder = StopFinder(stops)
    expected = finder.push(text) + finder.finish()
    parts, stopped = pieces(tokenizer, ids, tuple(stops))
    assert "".join(parts) == expected
    assert stopped == finder.found


def ids_of(tokenizer: Tokenizer, tokens: list[str]) -> list[int]:
    ids = [tokenizer.token_to_id(token) for token in tokens]
    assert None not in ids
    return ids


def test_text_comes_when_it_is_certain() -> None:
    tokenizer = TRAINED["byte-level"]
    ids = [tokenizer.token_to_id(unit) for unit in ("ð", "Ł", "¦", "Ļ", "a", "<s>", "b")]  # 🦙 byte by byte
    assert None not in ids
    assert pieces(tokenizer, ids)[0] == ["", "", "", "🦙", "a", "", "b", ""]


def test_bytes_that_fell_back_come_with_the_token_behind_them() -> None:
    """One more byte could still turn them all into replacement characters."""
    tokenizer = TRAINED["byte-fallback"]
    euro = [f"<0x{byte:02X}>" for byte in "€".encode()]
    ids = ids_of(tokenizer, [*euro, "a", *euro, "<s>", "<0xE2>", "b", *euro])
    replaced = "\ufffd" * 4
    assert pieces(tokenizer, ids)[0] == [
        *("", "", "", "€a"),
        *("", "", "", "", "", f"{replaced}b"),
        *("", "", "", "€"),
    ]


def test_what_is_torn_at_the_end_comes_last() -> None:
    tokenizer = TRAINED["byte-level"]
    ids = ids_of(tokenizer, ["a", "ð", "Ł"])
    assert pieces(tokenizer, ids)[0] == ["a", "", "", "\ufffd"]


def test_a_special_token_as_stop_string() -> None:
    tokenizer = TRAINED["byte-level"]
    ids = ids_of(tokenizer, ["a", "b", "</s>", "c"])
    assert pieces(tokenizer, ids, ("</s>",)) == (["a", "b", "", "", ""], "</s>")
    assert pieces(tokenizer, ids, ("<|end|>",)) == (["a", "b", "", "c", ""], None)
    # what was held back comes before it, and may itself complete nothing more
    assert pieces(tokenizer, ids, ("bx", "</s>")) == (["a", "", "b", "", ""], "</s>")
    torn = ids_of(tokenizer, ["a", "ð", "</s>"])
    assert pieces(tokenizer, torn, ("</s>",)) == (["a", "", "\ufffd", ""], "</s>")
    assert pieces(tokenizer, torn, ("</s>", "\ufffd")) == (["a", "", "", ""], "\ufffd")


def test_a_special_tokens_text_in_plain_tokens_is_a_stop_string_too() -> None:
    tokenizer = TRAINED["byte-level"]
    ids = ids_of(tokenizer, ["a", *"</s>", "c"])
    assert pieces(tokenizer, ids, ("</s>",)) == (["a", "", "", "", "", "", ""], "</s>")


def test_added_tokens_that_are_not_special_have_text() -> None:
    for tokenizer in TRAINED.values():
        ids = [tokenizer.token_to_id("<think>"), tokenizer.token_to_id("<s>")]
        assert "".join(pieces(tokenizer, ids)[0]).strip() == "<think>"


def test_a_tokenizer_without_a_decoder() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    assert pieces(tokenizer, [0, 1, 7, 0])[0] == ["a", " b", "", " a", ""]


def test_streams_of_one_detokenizer_do_not_meet() -> None:
    tokenizer = TRAINED["byte-level"]
    detokenizer = Detokenizer(tokenizer)
    encoded = [tokenizer.encode(text).ids for text in TEXTS]
    streams = [detokenizer.stream() for _ in TEXTS]
    texts = ["" for _ in TEXTS]
    for step in range(max(map(len, encoded))):
        for row, ids in enumerate(encoded):
            texts[row] += streams[row].push(ids[step]) if step < len(ids) else ""
    assert [text + stream.finish() for text, stream in zip(texts, streams, strict=True)] == TEXTS
