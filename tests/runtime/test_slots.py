"""Adapters of every kind in one bundle: bound, moved, edited, side by side, and poisoned."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertModel

from adexport.build import lower_again
from adexport.options import TOLERANCE, BuildOptions
from adexport_runtime import AdapterError, BoundAdapter, Bundle, Code, Engine, Outputs, bind_into_bundle
from adexport_runtime.bind import load_adapter
from adexport_runtime.tensors import read_tensors
from tests.conftest import EVERY_SLOT

from .support import GOLDEN_HUB, GOLDEN_PEFT, Tensors, edit_tensors, subjects

FAMILIES = {
    "lora": GOLDEN_PEFT / "bert" / "lora-all-linear",
    "bias": GOLDEN_PEFT / "bert" / "bias-lora-only",
    "scale": GOLDEN_PEFT / "bert" / "ia3",
    "dora": GOLDEN_PEFT / "bert" / "dora-all-linear",
    "plain": GOLDEN_HUB / "bert" / "double_seq_bn",
    "normed": GOLDEN_HUB / "bert" / "seq_bn",
    "parallel": GOLDEN_HUB / "bert" / "par_bn",
    "open": GOLDEN_HUB / "bert" / "adapter_plus",
    "ln_after": GOLDEN_HUB / "bert" / "ln_after",
    "one_layer": GOLDEN_HUB / "bert" / "head-classification-1_layer",
    "two_layers": GOLDEN_HUB / "bert" / "head-classification",
    "pooler": GOLDEN_HUB / "bert" / "head-classification-pooler",
}
IDS = np.random.default_rng(0).integers(1, 40, (4, 7))
MASK = (np.arange(7) < np.array([[7], [3], [1], [5]])).astype(np.int64)
BATCH = {"input_ids": IDS, "attention_mask": MASK}


@pytest.fixture(scope="session")
def stored(every_slot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all families bound into it. Shared, not to be changed."""
    target = tmp_path_factory.mktemp("slots") / "stored.bundle"
    shutil.copytree(every_slot, target)
    for name, source in FAMILIES.items():
        bind_into_bundle(Bundle.open(target), source, name)
    return target


@pytest.fixture(scope="module")
def engine(stored: Path) -> Iterator[Engine]:
    """An engine with all families. Shared: a test that writes into its bank opens one of its own."""
    with Engine.open(stored, threads=1) as opened:
        yield opened


def equal(one: Outputs, other: Outputs) -> bool:
    return one.labels == other.labels and all(np.array_equal(one[name], other[name]) for name in one)


def difference(one: Outputs, other: Outputs, row: int = 0, other_row: int = 0) -> float:
    """The largest difference between two rows, relative to the largest value (at least 1)."""
    worst = 0.0
    for name, value in one.row(row).items():
        wanted = other.row(other_row)[name]
        if value.shape != wanted.shape:
            return np.inf
        if value.ndim == 2:  # tokens: nothing counts at padding
            value, wanted = value[MASK[row].astype(bool)], wanted[MASK[row].astype(bool)]
        if value.size:
            worst = max(worst, float(np.abs(value - wanted).max() / max(1.0, float(np.abs(wanted).max()))))
    return worst


class TestBound:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_from_the_file_as_from_the_folder(self, every_slot: Path, engine: Engine, name: str) -> None:
        with Engine.open(every_slot, threads=1) as foreign:
            foreign.bind(name, FAMILIES[name])
            expected = foreign.run(BATCH, name)
            assert difference(expected, foreign.run(BATCH)) > 1e-3
        assert equal(engine.run(BATCH, name), expected)

    @pytest.mark.parametrize(
        ("options", "limit"),
        [
            pytest.param(
                {
                    **EVERY_SLOT,
                    "bottlenecks": EVERY_SLOT["bottlenecks"][::-1],
                    "activations": EVERY_SLOT["activations"][::-1],
                },
                1e-6,
                id="other codes",
            ),
            pytest.param({"dtype": "fp16"}, 2 * TOLERANCE["fp16"], id="fp16"),
        ],
    )
    def test_moved(
        self, stored: Path, engine: Engine, tmp_path: Path, options: dict[str, Any], limit: float
    ) -> None:
        """A bundle whose codes mean other styles, or of another precision: the adapters mean the same."""
        again = lower_again(stored, tmp_path / "again.bundle", options=BuildOptions(**options)).bundle
        before = Bundle.open(stored).manifest.bottlenecks
        assert before is not None
        assert again.manifest.bottlenecks is not None
        style = BoundAdapter.read(stored / "adapters" / "normed.safetensors").bottleneck
        assert style is not None
        if "like" in options:
            assert again.manifest.bottlenecks.code(style) != before.code(style)
        with Engine.open(again.root, threads=1) as other:
            for name in FAMILIES:
                assert difference(other.run(BATCH, name), engine.run(BATCH, name)) <= limit, name

    def test_fewer_slots(self, stored: Path) -> None:
        """What no longer fits is named whole, by adapter, with nothing that is not so."""
        with pytest.raises(AdapterError) as caught:
            lower_again(stored, options=BuildOptions(bottlenecks=("double_seq_bn",), activations=("relu",)))
        found = subjects(caught.value, Code.NO_SLOT)
        assert found >= {"ln_after: bottleneck", "parallel: bottleneck", "normed: bottleneck"}
        assert caught.value.codes == {Code.NO_SLOT}
        assert "(input=residual) with relu" in str(caught.value)
        with pytest.raises(AdapterError) as caught:
            lower_again(stored, options=BuildOptions(slots=("lora", "scale", "bias", "head")))
        assert "normed: bottleneck" in subjects(caught.value, Code.NO_SLOT)
        assert {subject.partition(":")[0] for subject in subjects(caught.value, Code.UNKNOWN_SITE)} == {
            "plain", "normed", "parallel", "open", "ln_after", "one_layer", "two_layers"
        }  # fmt: skip


SITE = "encoder.layer.1.output.dense"
DOWN = f"{SITE}.bottleneck.down"
STYLE = json.loads('{"form": {"input": "normed"}, "activation": "relu"}')
HEAD = {"feature": "first", "activation": "tanh", "labels": ["a", "b"]}
Edit = Callable[[Tensors], Any]


def style(**form: Any) -> str:
    return json.dumps({**STYLE, "form": {**STYLE["form"], **form}})


def head(**changes: Any) -> str:
    return json.dumps({**HEAD, **changes})


def add(name: str, value: Any) -> Edit:
    return lambda tensors: tensors.update({name: np.asarray(value)})


def drop(*names: str) -> Edit:
    return lambda tensors: [tensors.pop(name) for name in names]


def narrow(tensors: Tensors) -> None:
    tensors["adapter_head.deep"] = tensors["adapter_head.deep"][:, :1].copy()


def nothing(tensors: Tensors) -> None:
    del tensors


def poison(tensors: Tensors) -> None:
    tensors[DOWN][0, 0] = np.nan


EDITED: dict[str, tuple[str, Edit, dict[str, str | None], dict[Code, Set[str]]]] = {
    "half a bottleneck": ("normed", drop(DOWN), {}, {Code.HALF_MISSING: {SITE}}),
    "a bottleneck without a bias": ("normed", drop(f"{DOWN}_bias"), {}, {Code.HALF_MISSING: {SITE}}),
    "no style": ("normed", nothing, {"bottleneck": None}, {Code.BAD_CONFIG: {"bottleneck"}}),
    "a form with a norm": (
        "normed",
        nothing,
        {"bottleneck": style(norm_after="sum")},
        {Code.NO_SLOT: {"bottleneck"}},
    ),
    "a form without its norm": (
        "ln_after",
        nothing,
        {"bottleneck": style()},
        {
            Code.BAD_CONFIG: {
                f"encoder.layer.{n}.{part}output.dense" for n in range(2) for part in ("", "attention.")
            }
        },
    ),
    "a form that nothing is": (
        "normed",
        nothing,
        {"bottleneck": style(input="elsewhere")},
        {Code.BAD_CONFIG: {"bottleneck.form.input"}},
    ),
    "an unknown key": (
        "normed",
        nothing,
        {"bottleneck": style(x=1)},
        {Code.BAD_CONFIG: {"bottleneck.form.x"}},
    ),
    "a key twice": (
        "normed",
        nothing,
        {"bottleneck": '{"form": {}, "activation": "relu", "activation": "silu"}'},
        {Code.DUPLICATE_KEY: {"bottleneck: key activation"}},
    ),
    "no JSON": ("normed", nothing, {"bottleneck": "{"}, {Code.BAD_CONFIG: {"bottleneck"}}),
    "no object": ("normed", nothing, {"bottleneck": "[1]"}, {Code.BAD_CONFIG: {"bottleneck"}}),
    "deep JSON": ("normed", nothing, {"bottleneck": "[" * 100_000}, {Code.BAD_CONFIG: {"bottleneck"}}),
    "no tensors of a bottleneck": (
        "lora",
        nothing,
        {"bottleneck": style()},
        {Code.BAD_CONFIG: {"bottleneck"}},
    ),
    "no tensors of a head": ("lora", nothing, {"head": head()}, {Code.BAD_CONFIG: {"head"}}),
    "no style of the head": ("two_layers", nothing, {"head": None}, {Code.BAD_CONFIG: {"head"}}),
    "three label names": (
        "two_layers",
        nothing,
        {"head": head(labels=["a", "b", "c"])},
        {Code.BAD_CONFIG: {"labels"}},
    ),
    "no label names": ("two_layers", nothing, {"head": head(labels=[])}, {Code.BAD_CONFIG: {"labels"}}),
    "labels of no name": (
        "two_layers",
        nothing,
        {"head": head(labels=[1, 2])},
        {Code.BAD_CONFIG: {"head.labels.0", "head.labels.1"}},
    ),
    "a label with a NUL": (
        "two_layers",
        nothing,
        {"head": head(labels=["a", "b\0c"])},
        {Code.BAD_CONFIG: {"head.labels.1"}},
    ),
    "two layers said to be one": (
        "two_layers",
        nothing,
        {"head": head(activation=None)},
        {Code.HALF_MISSING: {"the head"}},
    ),
    "one layer said to be two": (
        "one_layer",
        nothing,
        {"head": head(labels=["a", "b", "c"])},
        {Code.HALF_MISSING: {"the head"}},
    ),
    "a head on tokens": ("two_layers", nothing, {"head": head(feature="tokens")}, {Code.NO_SLOT: {"head"}}),
    "half a head": (
        "two_layers",
        drop("adapter_head.dense"),
        {},
        {Code.HALF_MISSING: {"the head"}},
    ),
    "one layer too many": (
        "two_layers",
        add("adapter_head.out", np.ones((16, 2), np.float32)),
        {},
        {Code.BAD_CONFIG: {"the head"}},
    ),
    "fewer labels in one layer": ("two_layers", narrow, {}, {Code.WRONG_SHAPE: {"the head"}}),
    "a code": (
        "normed",
        add(f"{SITE}.bottleneck.code", np.float32(1)),
        {},
        {Code.UNKNOWN_SITE: {f"{SITE}.bottleneck.code"}},
    ),
    "a code that is an integer": (
        "normed",
        add(f"{SITE}.bottleneck.code", np.int64(1)),
        {},
        {Code.WRONG_DTYPE: {f"{SITE}.bottleneck.code"}},
    ),
    "NaN": ("normed", poison, {}, {Code.NOT_FINITE: {DOWN}}),
    "nothing in it": ("normed", add(DOWN, np.zeros((16, 0), np.float32)), {}, {Code.EMPTY_TENSOR: {DOWN}}),
    "too wide": (
        "normed",
        lambda t: t.update(
            {
                DOWN: np.ones((16, 65), np.float32),
                f"{DOWN}_bias": np.ones(65, np.float32),
                f"{SITE}.bottleneck.up": np.ones((65, 16), np.float32),
            }
        ),
        {},
        {Code.RANK_ABOVE_MAX: {SITE}},
    ),
    "metadata of nobody": ("normed", nothing, {"prompt": "x"}, {Code.BAD_CONFIG: {"prompt"}}),
    "a bottleneck of version 1": (
        "normed",
        nothing,
        {"format_version": "1"},
        {Code.BAD_CONFIG: {"bottleneck"}},
    ),
}


@pytest.mark.parametrize("case", EDITED)
def test_edited_files(stored: Path, tmp_path: Path, case: str) -> None:
    name, edit, metadata, expected = EDITED[case]
    path = tmp_path / f"{name}.safetensors"
    shutil.copyfile(stored / "adapters" / path.name, path)
    edit_tensors(path, edit, metadata)
    with pytest.raises(AdapterError) as caught:
        BoundAdapter.from_file(read_tensors(path), Bundle.open(stored).manifest)
    assert {code: subjects(caught.value, code) for code in caught.value.codes} == expected


def test_a_nul_in_the_names_that_labels_are_given(stored: Path, tmp_path: Path) -> None:
    """What ``bind`` would write, no reader would take."""
    source = stored / "adapters" / "two_layers.safetensors"
    with pytest.raises(AdapterError) as caught:
        load_adapter("x", source, Bundle.open(stored), ["a", "b\0c"])
    assert caught.value.codes == {Code.BAD_INPUT}
    assert r"b\x00c" in str(caught.value)


class TestRows:
    def test_alone_and_side_by_side(self, engine: Engine) -> None:
        """Every family beside others; one adapter for the whole batch takes another path in the graph."""
        names = [None, *FAMILIES, None]
        picked = [row % len(IDS) for row in range(len(names))]
        mixed = engine.run({key: value[picked] for key, value in BATCH.items()}, names)
        for row, name in enumerate(names):
            whole = engine.run(BATCH, name)
            one = engine.run({key: value[picked[row], None] for key, value in BATCH.items()}, name)
            assert mixed.labels[row] == whole.labels[0] == one.labels[0]
            assert difference(whole, mixed, picked[row], row) <= 1e-6, name
            for key, value in one.row(0).items():
                there = MASK[picked[row]].astype(bool) if value.ndim == 2 else slice(None)
                np.testing.assert_allclose(value[there], mixed.row(row)[key][there], atol=2e-6)

    @pytest.mark.parametrize("name", [None, *FAMILIES])
    def test_one_token(self, engine: Engine, name: str | None) -> None:
        alone = engine.run({"input_ids": IDS[:1, :1]}, name)
        padded = engine.run(
            {"input_ids": IDS[:2], "attention_mask": (np.arange(7) < 1) * np.ones((2, 1), int)}, name
        )
        np.testing.assert_allclose(
            alone["last_hidden_state"][0, 0], padded["last_hidden_state"][0, 0], atol=2e-6
        )
        np.testing.assert_allclose(alone.row(0)["logits"], padded.row(0)["logits"], atol=2e-6)

    def test_logits_are_as_wide_as_the_widest_head(self, engine: Engine) -> None:
        names = ["one_layer", None, "two_layers", "lora"]
        outputs = engine.run(BATCH, names)
        counts = [len(labels) for labels in outputs.labels]
        assert counts[1] == counts[3] == 0
        assert outputs["logits"].shape == (4, max(counts))
        assert counts[0] > 0
        assert counts[2] > 0
        for row, count in enumerate(counts):
            assert outputs.row(row)["logits"].shape == (count,)
            assert np.isfinite(outputs["logits"][row, :count]).all()
            assert np.isneginf(outputs["logits"][row, count:]).all()

    def test_no_head_at_all(self, every_slot: Path) -> None:
        with Engine.open(every_slot, threads=1) as empty:
            for rows in (None, [None] * 4):
                outputs = empty.run(BATCH, rows)
                assert outputs["logits"].shape == (4, 0)
                assert outputs.labels == ((),) * 4
            empty.bind("lora", FAMILIES["lora"])
            assert empty.run(BATCH, ["lora", None, "lora", None])["logits"].shape == (4, 0)
            empty.bind("head", FAMILIES["two_layers"])
            assert empty.run(BATCH)["logits"].shape == (4, 0)
            outputs = empty.run(BATCH, ["lora", None, "head", None])
            assert [len(outputs.row(row)["logits"]) for row in range(4)] == [
                0,
                0,
                len(outputs.labels[2]),
                0,
            ]

    @pytest.mark.parametrize("rows", [None, [None, "normed", None, "two_layers"]])
    def test_base_rows_are_the_plain_base(self, engine: Engine, rows: list[str | None] | None) -> None:
        model = BertModel.from_pretrained(GOLDEN_PEFT / "bases" / "bert").eval()
        with torch.no_grad():
            plain = model(**{name: torch.from_numpy(value) for name, value in BATCH.items()})
        got = engine.run(BATCH, rows)
        for row in (0, 2):
            there = MASK[row].astype(bool)
            for name, kept in (("last_hidden_state", there), ("pooler_output", slice(None))):
                assert np.abs(got[name][row][kept] - plain[name][row].numpy()[kept]).max() <= 2e-6


#: a factor -> an adapter whose rows it reaches
POISONED: Mapping[str, str] = {
    "lora_A": "lora",
    "lora_B": "lora",
    "adapter_bias": "bias",
    "scale_in": "scale",
    "scale_out": "scale",
    "down": "normed",
    "down_bias": "plain",
    "up": "open",
    "up_bias": "parallel",
    "norm_after_weight": "ln_after",
    "norm_after_bias": "ln_after",
    "dense": "two_layers",
    "dense_bias": "two_layers",
    "deep": "two_layers",
    "out": "one_layer",
    "out_bias": "one_layer",
}


@pytest.mark.parametrize("factor", POISONED)
def test_a_poisoned_factor_leaves_other_rows_bit_equal(stored: Path, factor: str) -> None:
    culprit = POISONED[factor]
    with Engine.open(stored, threads=1) as opened:
        names = [None, culprit, *(name for name in FAMILIES if name != culprit), None]
        batch = {key: np.resize(value, (len(names), 7)) for key, value in BATCH.items()}
        before = opened.run(batch, names)
        row = opened._bank._entries[culprit].row
        poisoned = [name for name in opened._bank._arrays if name.rpartition(".")[2] == factor]
        assert poisoned
        for name in poisoned:
            opened._bank._arrays[name][row] = np.nan
        after = opened.run(batch, names)
    assert any(np.isnan(value).any() for value in after.row(1).values())
    for name, value in after.items():
        kept = [at for at in range(len(names)) if at != 1]
        np.testing.assert_array_equal(value[kept], before[name][kept])


def test_few_rows_serve_every_kind(stored: Path, engine: Engine) -> None:
    """Rows that held one kind hold another; sizes grow and shrink with what is resident."""
    names = list(FAMILIES)
    with Engine.open(stored, rows=2, threads=1) as paged:
        for first, second in itertools.pairwise([*names, *names[::-1], *names[::5]]):
            rows = [first, None, second, first]
            expected, got = engine.run(BATCH, rows), paged.run(BATCH, rows)
            assert got.labels == expected.labels
            for row in range(4):
                assert difference(got, expected, row, row) <= 1e-6, rows


@pytest.mark.slow
def test_threads_see_whole_adapters_of_any_kind(stored: Path) -> None:
    """Eight threads run while a name is bound to kind after kind: tensors, codes and labels agree."""
    names = list(FAMILIES)
    one = {"input_ids": IDS[:1]}
    batch = {"input_ids": IDS[:1].repeat(4, axis=0)}
    ended = threading.Event()
    errors: list[BaseException] = []
    seen: set[int] = set()
    with Engine.open(stored, rows=3, threads=1) as opened:
        runs = [opened.run(one, name) for name in (*names, None)]
        truth = np.stack([run["last_hidden_state"][0] for run in runs])
        logits = [run.row(0)["logits"] for run in runs]
        opened.bind("moving", FAMILIES["lora"])

        def work(worker: int) -> None:
            try:
                while not ended.is_set():
                    fixed = worker % len(names)
                    outputs = opened.run(batch, [names[fixed], "moving", None, "moving"])
                    found = []
                    for row in range(4):
                        distances = np.abs(truth - outputs["last_hidden_state"][row]).max(axis=(1, 2))
                        near = np.flatnonzero(distances <= 1e-5)
                        found.append(next(at for at in near if runs[at].labels[0] == outputs.labels[row]))
                        np.testing.assert_allclose(
                            outputs.row(row)["logits"], logits[found[row]], atol=1e-5
                        )
                    assert found[0] == fixed
                    assert found[2] == len(names)
                    assert found[1] == found[3]  # one run sees one generation
                    seen.add(found[1])
            except BaseException as error:
                errors.append(error)
                ended.set()

        workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for worker in workers:
            worker.start()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not ended.is_set():
            for source in FAMILIES.values():
                opened.bind("moving", source)
        ended.set()
        for worker in workers:
            worker.join()
    assert not errors, errors[0]
    assert len(seen) > 1
