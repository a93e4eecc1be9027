"""The engine: a bundle, its bank of adapters, and a backend; one adapter for each row."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from . import dtypes
from .backends import Backend, Binding
from .backends.kernels import Kernels
from .backends.open import Settings, open_backend
from .bank import IDENTITY_ROW, Bank, Lease, Row, sizes_of
from .batch_rows import BatchRows
from .bind import load_adapter
from .bundle import Bundle
from .caches import Generation
from .errors import Code, Problem, RequestError
from .generation import Batch, Generated, Generator, Prompt, Request, Sampling, Session, WhenFull
from .generation.settings import SEEDS
from .input_checker import InputChecker
from .limits import PROMPTS, check_adapter, most_adapters
from .names import check_name
from .outputs import LOGITS, Outputs, cut_logits
from .request import Adapters, check_adapters, check_prompts, check_size, prompt_lengths
from .tensors import Array
from .text import TextEncoder

#: of a step, unless said otherwise
PROMPT_TOKENS = 512


class Engine:
    """Runs one frozen base for many tenants. Safe to use from several threads.

    >>> engine = Engine.open("minilm.bundle")
    >>> engine.bind("acme", "path/to/peft_adapter")
    >>> engine.run({"input_ids": ids}, adapters=["acme", None, "other"])
    """

    def __init__(self, bundle: Bundle, backend: Backend, bank: Bank) -> None:
        """Put the parts together; use :meth:`open`."""
        self.bundle = bundle
        self._backend: Backend | None = backend
        self._bank = bank
        self._checker = InputChecker(bundle.manifest)

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str],
        provider: str = "cpu",
        rows: int | None = None,
        threads: int = 0,
        spin: bool = True,
        *,
        profile: Sequence[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        kernels: Kernels = None,
    ) -> Engine:
        """Open a bundle, with the adapters that were bound into it.

        Args:
            bundle: the folder that ``adexport build`` wrote.
            provider: ``cpu``; ``tensorrt``: the engine that was built into the bundle; or ONNX Runtime's
                ``cuda``, ``ort-tensorrt`` and ``ort-tensorrt-rtx``. Asked for and not there is an error.
            rows: how many adapters may be resident at once (None: as many as are bound, or as the
                engine of ``tensorrt`` can take). Others wait in host memory and take the place of the
                least recently used.
            threads: threads of one operator on the CPU; 0 lets ONNX Runtime choose.
            spin: let idle threads wait busily: faster alone, slower beside other work.
            profile: the sizes that ``ort-tensorrt`` or ``ort-tensorrt-rtx`` builds its engine for, as in
                ``batch=1:8:32,seq=1:128:512``; what is left out is as usual.
            cache: where that engine is kept, or the kernels that TensorRT-RTX compiles while it first runs
                one of ``tensorrt``; None: in the bundle, if it can be written.
            kernels: the kernel library for ``cpu``, or ``none``; None: ``$ADEXPORT_KERNELS``, else the one
                in the package, if it is there.

        Raises:
            BundleError: the bundle is absent, damaged or of another version, or has no engine.
            ProviderError: the provider is not to be had, or cannot run this bundle.
            DependencyError: a package or the kernel library that was named is not to be had.
            RequestError: ``rows`` is less than 1 or more than the engine takes, or ``threads`` less than 0;
                ``profile`` or ``cache`` does not fit, or is not the provider's.
        """
        opened = Bundle.open(bundle)
        if rows is not None and rows < 1:
            raise RequestError(
                "the engine is not opened",
                Problem(Code.BAD_INPUT, "rows", got=str(rows), expected="at least 1, or None"),
            )
        if threads < 0:
            raise RequestError(
                "the engine is not opened",
                Problem(Code.BAD_INPUT, "threads", got=str(threads), expected="0 or more"),
            )
        manifest = opened.manifest
        backend = open_backend(opened, provider, Settings(threads, spin, profile, cache, kernels))
        try:
            most = most_adapters(rows, backend.limits) if manifest.slot_rows == "bank" else None
        except RequestError:
            backend.close()
            raise
        bank = Bank(manifest.slot_inputs, dtypes.NUMPY[manifest.base.dtype], rows, most)
        engine = cls(opened, backend, bank)
        for name, path in opened.adapters().items():
            engine._bind_lazily(name, path)
        return engine

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def provider(self) -> str:
        """What the graph runs on, as its library names it."""
        return self._running.provider

    @cached_property
    def text(self) -> TextEncoder:
        """The bundle's tokenizer, for inputs from text."""
        return TextEncoder(self.bundle)

    def bind(
        self,
        name: str,
        source: str | os.PathLike[str] | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        """Bind an adapter, or bind the name anew; runs under way keep what they have.

        Args:
            name: the tenant's id.
            source: a folder of PEFT or AdapterHub, its tensor file, or a bound adapter's. None takes
                what ``adexport bind`` wrote into the bundle under this name.

            labels: names for the labels of the adapter's own head, which PEFT does not store.

        Raises:
            AdapterError: the adapter does not fit; what was bound before still serves.
            BundleError: its factors depend on frozen weights, and the bundle's cannot be read.
        """
        check_name(name)
        path = self.bundle.adapter_path(name) if source is None else Path(source)
        row = self._load(name, path, labels, foreign=source is not None)
        self._bank.put(name, row.tensors, row.info)

    def unbind(self, name: str) -> None:
        """Forget an adapter. Runs under way finish with it.

        Raises:
            UnknownAdapterError: nothing is bound under that name.
        """
        self._bank.drop(name)

    def adapters(self) -> list[str]:
        """The names that a run may ask for."""
        return sorted(self._bank.generations())

    def run(self, inputs: Mapping[str, Any], adapters: Adapters = None) -> Outputs:
        """Run one batch, with an adapter for each row.

        Args:
            inputs: arrays (or nested lists) by input name, as the manifest declares them;
                ``input_ids`` is int64 ``[batch, seq]``. Inputs with a default may be left out.
            adapters: a name or None (the base) for all rows, or a sequence with one for each.

        Returns:
            The outputs by name, as float32 arrays with the batch first, and each row's labels.

        Raises:
            RequestError: inputs or adapters that do not fit; UnknownAdapterError and
                BankFullError are such.
        """
        manifest = self.bundle.manifest
        feeds = self._checker(inputs)
        batch = next(iter(feeds.values())).shape[0]
        names = check_adapters(adapters, batch, manifest)
        if manifest.generation is not None:
            return self._run_prompts(manifest.generation, feeds, names)
        with self._bank.lease({name for name in names if name is not None}) as lease:
            if manifest.adapter_ids is not None:
                ids = [IDENTITY_ROW if name is None else lease.rows[name] for name in names]
                if len(set(ids)) == 1:
                    ids = ids[:1]  # one adapter for the whole batch is one matrix product, not many
                feeds[manifest.adapter_ids] = np.array(ids, np.int64)
            arrays = self._running.run(feeds, lease)
            labels = self._labels(names, lease)
        if manifest.head is not None:
            cut_logits(arrays, labels)
        return Outputs(arrays, labels, classified=manifest.head is not None or bool(manifest.base.labels))

    def run_text(self, texts: Sequence[str], adapters: Adapters = None) -> Outputs:
        """Run texts, tokenized with the bundle's tokenizer. See :meth:`run`."""
        return self.run(self.text(texts), adapters)

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        adapters: Adapters = None,
        *,
        max_batch: int = 8,
        on_text: Callable[[int, str], None] | None = None,
        **settings: Any,
    ) -> list[Generated]:
        """Continue prompts, all in one batch, with an adapter for each.

        A prompt that fails while it runs has its error in its own result; the others go on.

        Args:
            prompts: for each row a text, token ids, or chat messages (``{"role": …, "content": …}``).
            adapters: as in :meth:`run`. A row keeps the weights that it started with.
            max_batch: rows that decode at once; more prompts wait for a free one.
            on_text: called with a row's number and the next piece of its text, as it becomes certain.
            settings: as in :class:`~adexport_runtime.Sampling`; row ``i`` takes the seed ``seed + i``.

        Raises:
            RequestError: a prompt, adapters or settings that do not fit, before anything runs.
            BundleError: the bundle does not generate.
        """
        rows = check_prompts(prompts)
        names = check_adapters(adapters, len(rows), self.bundle.manifest)
        asked = Sampling(**settings)
        room = self._room(None)
        results: dict[int, Generated] = {}
        requests = []
        for row, (prompt, name) in enumerate(zip(rows, names, strict=True)):
            seed = None if asked.seed is None else (asked.seed + row) % SEEDS
            request = self.generator.request(prompt, name, replace(asked, seed=seed), room)
            request.on_end = partial(results.__setitem__, row)
            if on_text is not None:
                request.on_text = partial(on_text, row)
            requests.append(request)
        self._bank.check({name for name in names if name is not None})
        if requests:
            rows_at_once = min(check_size("max_batch", max_batch), len(requests))
            batch = self._batch(
                min(rows_at_once, self._running.limits.get("batch", rows_at_once)),
                max(len(request.ids) + request.limit for request in requests),
            )
            for request in requests:
                batch.add(request)
            while batch.step():
                pass
        return [results[row] for row in range(len(rows))]

    def session(
        self,
        max_batch: int = 8,
        max_tokens: int | None = None,
        *,
        when_full: WhenFull = "wait",
        prompt_tokens: int = PROMPT_TOKENS,
    ) -> Session:
        """Open a session that accepts requests while others decode. Close it, or use it with ``with``.

        Args:
            max_batch: rows that decode at once.
            max_tokens: the longest request, prompt and continuation together; None: the model's
                positions, or what the engine of ``tensorrt`` can take. The KV caches take
                ``max_batch * max_tokens`` tokens (``session.nbytes``).
            when_full: requests that find no free row ``wait`` for one, or are refused.
            prompt_tokens: the most that a step takes in of prompts: how long texts under way may wait.

        Raises:
            RequestError: a size is out of range.
            BundleError: the bundle does not generate.
        """
        rows = check_size("max_batch", max_batch)
        generator, room = self.generator, self._room(max_tokens)
        if when_full not in ("wait", "refuse"):
            raise RequestError(
                "the session is not opened",
                Problem(Code.BAD_INPUT, "when_full", got=repr(when_full), expected="wait or refuse"),
            )

        def prepare(prompt: object, adapter: str | None, settings: dict[str, Any]) -> Request:
            (name,) = check_adapters([adapter], 1, self.bundle.manifest)
            self._bank.check([] if name is None else [name])
            return generator.request(prompt, name, Sampling(**settings), room)

        batch = self._batch(rows, room, check_size("prompt_tokens", prompt_tokens))
        return Session(batch, prepare, rows, when_full)

    @cached_property
    def generator(self) -> Generator:
        """What makes requests of prompts."""
        return Generator(self.bundle)

    def close(self) -> None:
        """Free the session. A closed engine refuses to run."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    @property
    def _running(self) -> Backend:
        if self._backend is None:
            raise RequestError("the engine is closed", Problem(Code.CLOSED, str(self.bundle.root)))
        return self._backend

    def _room(self, max_tokens: int | None) -> int:
        """Tokens of a request's row."""
        limit = self.bundle.manifest.base.max_positions
        assert self.generator is not None
        assert limit is not None
        if max_tokens is None:
            return min(limit, self._running.limits.get("room", limit))
        return check_size("max_tokens", max_tokens, limit)

    def _batch(self, rows: int, room: int, prompt_tokens: int = PROMPT_TOKENS) -> Batch:
        def backend() -> Backend:
            return self._running

        manifest = self.bundle.manifest
        limits = self._running.limits
        prompt_tokens = min(prompt_tokens, limits.get("seq", prompt_tokens))
        prompts = limits.get(PROMPTS, rows)
        try:
            return Batch(backend, manifest, self._put_adapter, rows, room, prompt_tokens, prompts)
        except MemoryError as error:
            mend = "fewer rows (max_batch), or shorter ones (max_tokens)"
            raise self._no_memory(rows, room, mend) from error

    def _no_memory(self, rows: int, room: int, mend: str) -> RequestError:
        """What to say where the caches of a batch have no memory."""
        manifest = self.bundle.manifest
        assert manifest.generation is not None
        values = rows * room * manifest.generation.values_per_token
        return RequestError(
            "the batch does not fit",
            Problem(
                Code.BAD_INPUT,
                f"{rows} rows of {room} tokens",
                got=f"{values * dtypes.NUMPY[manifest.base.dtype].itemsize} bytes of KV cache",
                expected="what the memory holds",
                mend=mend,
            ),
        )

    def _put_adapter(self, rows: BatchRows, row: int, name: str) -> None:
        shapes = {slot.name: slot.shape[1:] for slot in self.bundle.manifest.slot_inputs}
        with self._bank.lease({name}) as lease:
            rows.put(row, lease.tensors(shapes, name))

    def _run_prompts(
        self, generation: Generation, feeds: Mapping[str, Array], names: Sequence[str | None]
    ) -> Outputs:
        """The logits at every position of prompts, with caches that are thrown away."""
        manifest = self.bundle.manifest
        ids, lengths = feeds["input_ids"], prompt_lengths(feeds["attention_mask"])
        batch, seq = ids.shape
        same = len(set(names)) == 1
        slots = BatchRows(manifest.slot_inputs, dtypes.NUMPY[manifest.base.dtype], 1 if same else batch)
        for row, name in enumerate(names[:1] if same else names):
            if name is not None:
                self._put_adapter(slots, row, name)
        backend = self._running
        try:
            caches = backend.caches(batch, seq)
        except MemoryError as error:
            raise self._no_memory(batch, seq, "run fewer rows at once, or shorter ones") from error
        logits = backend.step(
            {
                "input_ids": ids,
                generation.lengths: lengths,
                generation.past_lengths: np.zeros(batch, np.int64),
                generation.logits_at: np.tile(np.arange(seq), (batch, 1)),
            },
            slots,
            caches,
            slice(0, batch),
            Binding(),
        )
        return Outputs({LOGITS: logits}, [()] * batch, classified=False)

    def _bind_lazily(self, name: str, path: Path) -> None:
        self._bank.put_lazily(name, lambda: self._load(name, path, foreign=False))

    def _load(self, name: str, path: Path, labels: Sequence[str] | None = None, *, foreign: bool) -> Row:
        adapter = load_adapter(name, path, self.bundle, labels, foreign=foreign)
        tensors = adapter.rows(self.bundle.manifest)
        shapes = {slot.name: slot.shape[1:] for slot in self.bundle.manifest.slot_inputs}
        check_adapter(name, sizes_of(shapes, tensors), self._running.limits)
        return Row(tensors, adapter.head)

    def _labels(self, names: Sequence[str | None], lease: Lease) -> list[tuple[str, ...]]:
        """The label names of each row: its adapter's own head's, or the base's."""
        base = self.bundle.manifest.base.labels
        if self.bundle.manifest.head is None:
            return [base] * len(names)
        heads = {name: info for name, info in lease.infos.items() if info is not None}
        return [heads[name].labels if name in heads else base for name in names]
