"""The engine: an adapter for each row, rows that never touch one another, and many threads."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adexport_runtime import (
    AdapterError,
    BankFullError,
    Bundle,
    BundleError,
    Code,
    Engine,
    ProviderError,
    RequestError,
    UnknownAdapterError,
    bind_into_bundle,
)
from tests.conftest import MakeLora

from .support import edit_tensors, hidden, ids


@pytest.fixture
def engine(tiny_bundle: Path, make_lora: MakeLora) -> Engine:
    """An engine with the adapters a, b and c, of ranks 2, 5 and 16."""
    opened = Engine.open(tiny_bundle, threads=1)
    for seed, (name, rank) in enumerate({"a": 2, "b": 5, "c": 16}.items()):
        opened.bind(name, make_lora(name, seed=seed, r=rank, std=0.2))
    return opened


def test_names_none_and_one_for_all(engine: Engine) -> None:
    given = ids(1, 6).repeat(4, axis=0)
    mixed = hidden(engine, given, ["a", None, "b", "a"])
    np.testing.assert_array_equal(mixed[0], mixed[3])
    assert np.abs(mixed[0] - mixed[1]).max() > 1e-3
    assert np.abs(mixed[0] - mixed[2]).max() > 1e-3
    for rows, expected in (
        (None, mixed[1]),
        ("a", mixed[0]),
        ([None] * 4, mixed[1]),
        (["b"] * 4, mixed[2]),
    ):
        for row in hidden(engine, given, rows):
            assert np.abs(row - expected).max() <= 1e-6
    assert engine.adapters() == ["a", "b", "c"]
    assert engine.provider == "CPUExecutionProvider"


def test_a_row_alone_and_in_a_batch(engine: Engine) -> None:
    given = ids(7, 9, seed=3)
    lengths = [9, 1, 4, 7, 2, 9, 3]
    mask = (np.arange(9)[None] < np.array(lengths)[:, None]).astype(np.int64)
    rows = ["a", None, "b", "c", "c", "a", None]
    mixed = hidden(engine, {"input_ids": given, "attention_mask": mask}, rows)
    for row, (name, length) in enumerate(zip(rows, lengths, strict=True)):
        alone = hidden(engine, given[row : row + 1, :length], name)
        assert np.abs(mixed[row, :length] - alone[0]).max() <= 1e-6


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_adapter_leaves_other_rows_bit_equal(engine: Engine, poison: float) -> None:
    given = ids(6, 8)
    rows = ["a", "c", None, "c", "b", None]
    before = hidden(engine, given, rows)
    bank = engine._bank
    row = bank._entries["c"].row
    assert row is not None
    for array in bank._arrays.values():
        if array.dtype.kind == "f":
            array[row] = poison
    after = hidden(engine, given, rows)
    assert np.isnan(after[[1, 3]]).all()
    kept = [0, 2, 4, 5]
    np.testing.assert_array_equal(after[kept], before[kept])


def test_a_rebind_is_for_later_runs(engine: Engine, make_lora: MakeLora) -> None:
    given = ids(2, 5)
    before = hidden(engine, given, "a")
    engine.bind("a", make_lora("a", seed=9, r=7, std=0.2))
    after = hidden(engine, given, "a")
    assert np.abs(after - before).max() > 1e-3
    engine.unbind("a")
    assert engine.adapters() == ["b", "c"]
    with pytest.raises(UnknownAdapterError):
        hidden(engine, given, "a")
    with pytest.raises(UnknownAdapterError):
        engine.unbind("a")


def test_unknown_adapters_are_all_named(engine: Engine) -> None:
    with pytest.raises(UnknownAdapterError) as caught:
        hidden(engine, ids(4, 3), ["x", "a", None, "y"])
    assert [problem.subject for problem in caught.value.problems] == ["x", "y"]
    assert isinstance(caught.value, RequestError)


def test_a_bad_request_leaves_the_engine_usable(engine: Engine) -> None:
    for inputs, rows in (
        ({"input_ids": [[97]]}, None),
        ({"input_ids": [[1]], "strange": [[1]]}, None),
        ({"input_ids": [[1]]}, ["a", "b"]),
        ({"input_ids": [[1, 2], [3]]}, None),
        ({"input_ids": [[1] * 41]}, None),
    ):
        with pytest.raises(RequestError):
            engine.run(inputs, rows)
    assert hidden(engine, ids(2, 3), ["a", None]).shape == (2, 3, 32)


def test_outputs_are_the_callers_own(engine: Engine) -> None:
    first = hidden(engine, ids(2, 4), "a")
    kept = first.copy()
    for length in (3, 4, 5, 4):
        hidden(engine, ids(2, length, seed=length), ["b", None])
    np.testing.assert_array_equal(first, kept)


class TestBoundInTheBundle:
    def test_they_are_there(self, bundle_copy: Path, make_lora: MakeLora) -> None:
        bind_into_bundle(Bundle.open(bundle_copy), make_lora("stored", std=0.2))
        with Engine.open(bundle_copy) as engine:
            assert engine.adapters() == ["stored"]
            assert np.abs(hidden(engine, ids(), "stored") - hidden(engine, ids())).max() > 1e-3

    def test_one_bound_later_is_taken_by_its_name(self, bundle_copy: Path, make_lora: MakeLora) -> None:
        with Engine.open(bundle_copy) as engine:
            bind_into_bundle(Bundle.open(bundle_copy), make_lora("later"))
            assert engine.adapters() == []
            engine.bind("later")
            hidden(engine, ids(), "later")
            with pytest.raises(AdapterError) as caught:
                engine.bind("never")
            assert caught.value.codes == {Code.ABSENT}

    def test_a_damaged_one_is_refused_for_its_own_rows_only(
        self, bundle_copy: Path, make_lora: MakeLora
    ) -> None:
        bundle = Bundle.open(bundle_copy)
        for seed, name in enumerate(("good", "bad")):
            bind_into_bundle(bundle, make_lora(name, seed=seed, std=0.2))
        path = bundle.adapter_path("bad")
        path.write_bytes(path.read_bytes()[:-3])
        with Engine.open(bundle_copy) as engine:
            good = hidden(engine, ids(), "good")
            for rows in ("bad", ["good", "bad", None]):
                with pytest.raises(AdapterError) as caught:
                    hidden(engine, ids(), rows)
                assert caught.value.codes == {Code.DAMAGED}
            np.testing.assert_array_equal(hidden(engine, ids(), "good"), good)
            engine.bind("bad", make_lora("mended", seed=1, std=0.2))
            hidden(engine, ids(), ["good", "bad", None])

    def test_a_poisoned_file_is_refused(self, bundle_copy: Path, make_lora: MakeLora) -> None:
        bundle = Bundle.open(bundle_copy)
        bind_into_bundle(bundle, make_lora("acme"))

        def spoil(tensors: dict[str, np.ndarray]) -> None:
            next(iter(tensors.values()))[0] = np.nan

        edit_tensors(bundle.adapter_path("acme"), spoil)
        with Engine.open(bundle_copy) as engine, pytest.raises(AdapterError) as caught:
            hidden(engine, ids(), "acme")
        assert caught.value.codes == {Code.NOT_FINITE}


def test_few_rows_serve_many_adapters(tiny_bundle: Path, make_lora: MakeLora) -> None:
    folders = {f"n{seed}": make_lora(f"n{seed}", seed=seed, r=1 + seed, std=0.2) for seed in range(6)}
    with Engine.open(tiny_bundle, rows=2) as paged, Engine.open(tiny_bundle) as whole:
        for engine in (paged, whole):
            for name, folder in folders.items():
                engine.bind(name, folder)
        for rows in (["n0", "n5", "n0"], ["n1", None, "n2"], ["n3", "n3", "n3"], ["n5", "n4", None]):
            difference = hidden(paged, ids(), rows) - hidden(whole, ids(), rows)
            assert np.abs(difference).max() <= 1e-6
        with pytest.raises(BankFullError):
            hidden(paged, ids(), ["n0", "n1", "n2"])


class TestOpening:
    def test_a_provider_that_nobody_knows(self, tiny_bundle: Path) -> None:
        with pytest.raises(ProviderError) as caught:
            Engine.open(tiny_bundle, provider="tpu")
        assert "cpu, cuda, tensorrt, ort-tensorrt, ort-tensorrt-rtx" in str(caught.value)

    def test_bfloat16_on_the_cpu(self, bf16_bundle: Path) -> None:
        with pytest.raises(ProviderError) as caught:
            Engine.open(bf16_bundle)
        assert "bfloat16" in str(caught.value)

    @pytest.mark.parametrize("settings", [{"rows": 0}, {"rows": -1}, {"threads": -1}])
    def test_bad_settings(self, tiny_bundle: Path, settings: dict[str, Any]) -> None:
        with pytest.raises(RequestError) as caught:
            Engine.open(tiny_bundle, **settings)
        assert [problem.subject for problem in caught.value.problems] == list(settings)

    def test_a_graph_that_does_not_load(self, bundle_copy: Path) -> None:
        model = bundle_copy / "model.onnx"
        model.write_bytes(bytes(model.stat().st_size))
        with pytest.raises(BundleError) as caught:
            Engine.open(bundle_copy)
        assert caught.value.codes == {Code.DAMAGED}

    def test_closed(self, tiny_bundle: Path) -> None:
        with Engine.open(tiny_bundle) as engine:
            hidden(engine, ids())
        with pytest.raises(RequestError) as caught:
            hidden(engine, ids())
        assert caught.value.codes == {Code.CLOSED}
        engine.close()

    def test_without_slots(self, plain_bundle: Path, tiny_bundle: Path, make_lora: MakeLora) -> None:
        with Engine.open(plain_bundle) as plain, Engine.open(tiny_bundle) as slotted:
            np.testing.assert_allclose(hidden(plain, ids()), hidden(slotted, ids()), atol=1e-6)
            with pytest.raises(RequestError):
                hidden(plain, ids(), "a")
            with pytest.raises(AdapterError):
                plain.bind("a", make_lora())


@pytest.mark.slow
def test_many_threads_see_whole_generations(tiny_bundle: Path, make_lora: MakeLora) -> None:
    """Eight threads run while another binds and unbinds for ten seconds."""
    versions = [make_lora(f"v{seed}", seed=seed, r=2 + 3 * seed, std=0.3) for seed in range(4)]
    given = ids(1, 6)
    engine = Engine.open(tiny_bundle, threads=1)
    expected = []
    for folder in versions:
        engine.bind("fixed", folder)
        expected.append(hidden(engine, given, "fixed")[0])
    base = hidden(engine, given)[0]
    truth = np.stack([*expected, base])
    distances = np.abs(truth[:, None] - truth[None]).max(axis=(2, 3))
    assert distances[~np.eye(len(truth), dtype=bool)].min() > 1e-3
    engine.bind("fixed", versions[0])
    engine.bind("moving", versions[1])

    ended = threading.Event()
    errors: list[BaseException] = []
    seen: set[int] = set()
    counts = [0] * 8

    def run(worker: int) -> None:
        rows = ["fixed", "moving", None, "moving"]
        batch = given.repeat(4, axis=0)
        try:
            while not ended.is_set():
                try:
                    outputs = hidden(engine, batch, rows)
                except UnknownAdapterError:
                    continue
                found = [
                    int(np.flatnonzero(np.abs(truth - row).max(axis=(1, 2)) <= 1e-5)[0]) for row in outputs
                ]
                assert found[0] == 0
                assert found[2] == len(versions)
                assert found[1] == found[3]  # one run sees one generation
                assert found[1] < len(versions)
                seen.add(found[1])
                counts[worker] += 1
        except BaseException as error:
            errors.append(error)
            ended.set()

    workers = [threading.Thread(target=run, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 10
    turn = 0
    while time.monotonic() < deadline and not ended.is_set():
        engine.bind("moving", versions[turn % len(versions)])
        engine.bind(f"other{turn % 5}", versions[(turn + 1) % len(versions)])
        if turn % 3 == 0:
            engine.unbind("moving")
            engine.bind("moving", versions[(turn + 2) % len(versions)])
        turn += 1
    ended.set()
    for worker in workers:
        worker.join()
    assert not errors, errors[0]
    assert min(counts) > 0
    assert seen == set(range(len(versions)))
    assert turn > 20
