"""From what a caller wants to requests: prompts to ids, settings checked, the text of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError, Code, Problem, RequestError
from ..text import TextEncoder
from .chat import ChatTemplate
from .decoding import Detokenizer
from .request import Request
from .sampler import Sampler
from .settings import Sampling

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]

_HEADLINE = "the prompt does not fit"
_EXPECTED = "a text, token ids, or chat messages"


class Generator:
    """Makes requests for one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Keep the bundle.

        Raises:
            BundleError: it does not generate.
        """
        manifest = bundle.manifest
        if manifest.generation is None:
            causal = manifest.base.task == "text-generation"
            raise BundleError(
                "the bundle does not generate",
                Problem(
                    Code.UNSUPPORTED,
                    str(bundle.root),
                    got="a graph for prompts only, without a cache" if causal else manifest.base.task,
                    expected="text-generation, with a cache",
                    cause="an earlier adexport built it, or no cache is known for the model's attention"
                    if causal
                    else "",
                    mend="adexport build MODEL --task text-generation, and see its notes",
                ),
            )
        self.eos_ids = manifest.generation.eos_ids
        self._bundle = bundle
        self._vocabulary = next(i.high for i in manifest.inputs if i.name == "input_ids")

    @cached_property
    def text(self) -> TextEncoder:
        """The bundle's tokenizer."""
        return TextEncoder(self._bundle)

    @cached_property
    def chat(self) -> ChatTemplate:
        """The bundle's chat template."""
        return ChatTemplate.from_bundle(self._bundle)

    @cached_property
    def _detokenizer(self) -> Detokenizer | None:
        return None if self._bundle.manifest.tokenizer is None else Detokenizer(self.text.tokenizer)

    def request(self, prompt: object, adapter: str | None, settings: Sampling, room: int) -> Request:
        """A request of one prompt.

        Args:
            prompt: a text, token ids, or chat messages.
            adapter: a name, or None.
            settings: of the generation.
            room: tokens that the prompt and its continuation may have together.

        Raises:
            RequestError: an empty prompt, ids that the model does not know, a prompt that does not fit,
                stop strings without a tokenizer.
        """
        ids = self.ids(prompt)
        limit = settings.max_new_tokens
        if len(ids) + limit > room:
            positions = self._bundle.manifest.base.max_positions
            raise RequestError(
                _HEADLINE,
                Problem(
                    Code.BAD_INPUT,
                    "prompt",
                    got=f"{len(ids)} tokens, and {limit} new ones",
                    expected=f"at most {room} together",
                    mend="a shorter prompt, or a smaller max_new_tokens"
                    + ("" if room == positions else ", or more max_tokens for the session"),
                ),
            )
        if settings.stop and self._detokenizer is None:
            raise RequestError(
                "the settings of the generation do not fit",
                Problem(Code.BAD_INPUT, "stop", got="strings", expected="no strings without a tokenizer"),
            )
        return Request(
            ids=ids,
            adapter=adapter,
            limit=limit,
            eos_ids=frozenset(self.eos_ids if settings.eos is None else settings.eos),
            sampler=Sampler(settings, ids),
            stream=None if self._detokenizer is None else self._detokenizer.stream(settings.stop),
        )

    def ids(self, prompt: Any) -> list[int]:
        """The token ids of a prompt. Nothing is cut.

        Raises:
            RequestError: it is empty, of another kind, or has ids that the model does not know.
            BundleError: a text or messages, and the bundle has no tokenizer or no chat template.
        """
        if isinstance(prompt, str):
            ids = self.text.ids(prompt) if prompt else []
        elif isinstance(prompt, Sequence) and all(isinstance(part, Mapping) for part in prompt):
            ids = self.text.ids(self.chat.render(list(prompt)), special_tokens=False) if len(prompt) else []
        else:
            ids = self._checked(prompt)
        if not ids:
            raise RequestError(
                _HEADLINE, Problem(Code.BAD_INPUT, "prompt", got="an empty prompt", expected=_EXPECTED)
            )
        return ids

    def _checked(self, prompt: Any) -> list[int]:
        try:
            array = np.asarray(prompt)
        except ValueError:
            array = np.zeros(())
        array = array.astype(np.int64) if array.shape == (0,) else array  # numpy takes no ids for floats
        words = isinstance(prompt, bytes | bytearray | memoryview)
        truth = isinstance(prompt, Sequence) and any(isinstance(token, bool) for token in prompt)
        if words or truth or array.ndim != 1 or array.dtype.kind not in "iu":
            raise RequestError(
                _HEADLINE,
                Problem(Code.BAD_INPUT, "prompt", got=repr(prompt)[:80], expected=_EXPECTED),
            )
        last = self._vocabulary
        assert last is not None
        if array.size and (array.min() < 0 or array.max() > last):
            raise RequestError(
                _HEADLINE,
                Problem(
                    Code.BAD_INPUT,
                    "prompt",
                    got=f"ids from {array.min()} to {array.max()}",
                    expected=f"ids from 0 to {last}",
                    cause="ids of another tokenizer",
                ),
            )
        return [int(token) for token in array]
