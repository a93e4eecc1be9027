"""Texts to inputs, with the tokenizer that the bundle carries (the ``tokenizers`` library)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from .bundle import Bundle
from .errors import BundleError, Code, DependencyError, Problem, RequestError
from .tensors import Array


class TextEncoder:
    """Tokenizes, truncates to the model's length, and pads to the longest row."""

    def __init__(self, bundle: Bundle) -> None:
        """Load the tokenizer of a bundle.

        Raises:
            BundleError: the bundle has none.
            DependencyError: the ``tokenizers`` package is not installed.
        """
        spec = bundle.manifest.tokenizer
        if spec is None:
            raise BundleError(
                "no tokenizer",
                Problem(
                    Code.ABSENT,
                    str(bundle.root),
                    got="a bundle without a tokenizer",
                    cause="the model's folder had none when the bundle was built",
                    mend="pass input_ids, or build from a folder with a tokenizer",
                ),
            )
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise DependencyError(
                "the tokenizers package is needed",
                Problem(Code.PACKAGE_MISSING, "tokenizers", mend="pip install adexport[cpu]"),
            ) from error
        self._inputs = [spec.name for spec in bundle.manifest.inputs]
        self._load: Callable[[], Any] = partial(Tokenizer.from_file, str(bundle.root / spec.file))
        self._max_length = spec.max_length
        self._tokenizer = self._load()
        self._tokenizer.enable_padding(pad_id=spec.pad_id, pad_token=spec.pad_token)
        if spec.max_length is None:
            self._tokenizer.no_truncation()  # whatever the file says: nothing is cut unseen
        else:
            self._tokenizer.enable_truncation(spec.max_length)

    def __call__(self, texts: Sequence[str]) -> dict[str, Array]:
        """int64 ``[batch, seq]`` arrays for the inputs that the bundle has.

        Raises:
            RequestError: there are no texts, or something that is none.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise RequestError(
                "the texts do not fit",
                Problem(Code.BAD_INPUT, "texts", got=repr(texts)[:80], expected="a list of strings"),
            )
        problems = [
            Problem(Code.BAD_INPUT, f"text {row}", got=repr(text)[:80], expected="a string of Unicode text")
            for row, text in enumerate(texts)
            if not _is_unicode(text)
        ]
        if problems:
            raise RequestError("the texts do not fit", problems)
        encodings = self._tokenizer.encode_batch(list(texts))
        fields = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        return {name: np.array(values, np.int64) for name, values in fields.items() if name in self._inputs}

    @cached_property
    def tokenizer(self) -> Any:
        """The bundle's ``tokenizers.Tokenizer``, that neither pads nor truncates; not to be changed."""
        # one of its own: padding and truncation are state of a tokenizer, and calls come from many threads
        tokenizer = self._load()
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def ids(self, text: str, special_tokens: bool = True) -> list[int]:
        """The token ids of one text, whole; for no text there may be none.

        ``special_tokens``: add those that the tokenizer puts around a text. What a chat template renders
        has its own.

        Raises:
            RequestError: this is no text, or it is longer than the model takes.
        """
        if not isinstance(text, str) or not _is_unicode(text):
            raise RequestError(
                "the text does not fit",
                Problem(Code.BAD_INPUT, "text", got=repr(text)[:80], expected="a string of Unicode text"),
            )
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special_tokens).ids
        if self._max_length is not None and len(ids) > self._max_length:
            raise RequestError(
                "the text does not fit",
                Problem(
                    Code.BAD_INPUT,
                    "text",
                    got=f"{len(ids)} tokens",
                    expected=f"at most {self._max_length}",
                    cause="a text longer than the model's context",
                    mend="shorten it",
                ),
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def _is_unicode(text: str) -> bool:
    """Whether there is no lone surrogate, which no UTF-8 has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
