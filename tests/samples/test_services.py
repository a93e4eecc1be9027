"""The services of the samples answer mixed batches as the runtime does, and refuse what they should."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from adexport.build import build_model
from adexport.options import BuildOptions
from adexport_runtime import Bundle, Engine, bind_into_bundle, load_adapter
from adexport_runtime.tensors import peek_metadata
from tests.conftest import MakeLora
from tests.samples.services import KINDS, NATIVE, Service, Told, program, running

pytestmark = pytest.mark.slow

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(93))]
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w12 w13"]
TENANTS = [None, "acme", "globex", "initech"]


@pytest.fixture(scope="module")
def served(tiny_classifier: Path, make_lora: MakeLora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small.bundle`` with ``acme`` and ``globex``; in ``adapters``: ``initech`` and what is refused."""
    root = tmp_path_factory.mktemp("served")
    model, bundle, adapters = root / "model", root / "small.bundle", root / "adapters"
    shutil.copytree(tiny_classifier, model)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=special)
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(model)
    build_model(str(model), bundle, options=BuildOptions(slots=("lora", "head"), max_rank=8))
    adapters.mkdir()

    def lora(name: str, seed: int, **config: Any) -> Path:
        folder: Path = make_lora(
            name, model=model, auto=AutoModelForSequenceClassification, seed=seed, std=0.5, **config
        )
        return folder

    for seed, name in enumerate(("acme", "globex")):
        bind_into_bundle(Bundle.open(bundle), lora(name, seed))
    foreign = lora("initech", 2, task_type="SEQ_CLS")
    own = load_adapter("initech", foreign, Bundle.open(bundle), ("no", "yes", "so"))
    good = adapters / "initech.safetensors"
    own.save(good)
    tensors, metadata = load_file(good), dict(peek_metadata(good))
    save_file(tensors, adapters / "other-base.safetensors", metadata | {"base_fingerprint": "0" * 64})
    save_file(tensors, adapters / "foreign.safetensors", {"format": "pt"})
    (adapters / "damaged.safetensors").write_bytes(good.read_bytes()[:-100])
    shutil.copy(adapters / "damaged.safetensors", adapters / "acme.safetensors")
    return root


@pytest.fixture(scope="module", params=KINDS)
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[str]]:
    """A kind of service, and how it is started."""
    if request.param == "cpp" and not (NATIVE / "include" / "adexport" / "adexport.hpp").exists():
        pytest.skip(f"no libadexport in {NATIVE}: `make native-build` builds and installs it there")
    return request.param, program(request.param, tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def service(started, served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service as the README starts it."""
    with running(*started, tmp_path_factory.mktemp("log") / "log", *arguments(served)) as service:
        yield service


def arguments(served: Path) -> list[str]:
    return [str(served / "small.bundle"), "--adapters", str(served / "adapters")]


@pytest.fixture(scope="module")
def alone(served: Path) -> dict[tuple[str, str | None], dict[str, float]]:
    """What the runtime gives for each text and tenant, alone."""
    with Engine.open(served / "small.bundle", threads=1) as engine:
        engine.bind("initech", served / "adapters" / "initech.safetensors")
        found = {}
        for text in TEXTS:
            for tenant in TENANTS:
                outputs = engine.run_text([text], tenant)
                logits = outputs.row(0)["logits"].tolist()
                found[text, tenant] = dict(zip(outputs.labels[0], logits, strict=True))
        return found


def row(service: Service, text: str, tenant: object) -> dict[str, object]:
    return service.row([2, *(WORDS.index(word) for word in text.split()), 3], text, tenant)


def classify(service: Service, pairs: list[tuple[str, str | None]]) -> Told:
    return service.ask("POST", "/v1/classify", {"rows": [row(service, *pair) for pair in pairs]})


def check(told: Told, pairs: list[tuple[str, str | None]], alone) -> None:
    assert told.status == 200, told.body
    for pair, answer in zip(pairs, told.body["rows"], strict=True):
        assert answer["tenant"] == pair[1]
        assert list(answer["logits"]) == list(alone[pair])
        assert answer["label"] == max(alone[pair], key=alone[pair].__getitem__)
        np.testing.assert_allclose(
            list(answer["logits"].values()), list(alone[pair].values()), rtol=0, atol=1e-5
        )


def test_mixed_rows_are_what_each_tenant_gives_alone(service: Service, alone) -> None:
    assert service.ask("GET", "/v1/tenants").body == {"tenants": ["acme", "globex"]}
    told = service.ask("PUT", "/v1/tenants/initech")
    assert (told.status, told.body) == (200, {"bound": "initech"})
    assert service.ask("GET", "/v1/tenants").body == {"tenants": ["acme", "globex", "initech"]}
    pairs = [(text, tenant) for text in TEXTS for tenant in TENANTS]
    check(classify(service, pairs), pairs, alone)
    assert len({tuple(alone[TEXTS[0], tenant].values()) for tenant in TENANTS}) == len(TENANTS)
    told = service.ask("DELETE", "/v1/tenants/initech")
    assert (told.status, told.body) == (200, {"unbound": "initech"})
    told = classify(service, [(TEXTS[0], "initech"), (TEXTS[0], "acme")])
    assert (told.status, told.codes) == (404, {"unknown-adapter"})
    assert told.body["error"] == "UnknownAdapterError"
    assert [problem["subject"] for problem in told.body["problems"]] == ["initech"]


def test_neither_torch_nor_python_where_it_is_not_needed(service: Service) -> None:
    libraries = service.libraries()
    assert "onnxruntime" in libraries
    assert "libtorch" not in libraries
    if service.kind == "cpp":
        assert "libadexport" in libraries
        assert "libpython" not in libraries


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "bad-input"),
        ("GET", "/v1/classify", 405, "bad-input"),
        ("POST", "/v1/tenants", 405, "bad-input"),
        ("PUT", "/v1/tenants/absent", 404, "absent"),
        ("DELETE", "/v1/tenants/absent", 404, "unknown-adapter"),
        ("PUT", "/v1/tenants/.hidden", 422, "bad-name"),
        ("PUT", "/v1/tenants/..", 422, "bad-name"),
        ("PUT", "/v1/tenants/a%20b", 422, "bad-name"),
        ("PUT", "/v1/tenants/acme%00x", 422, "bad-name"),
        ("PUT", f"/v1/tenants/{'n' * 129}", 422, "bad-name"),
        ("PUT", "/v1/tenants/..%2Fadapters%2Finitech", 404, "bad-input"),
        ("PUT", "/v1/tenants/other-base", 409, "wrong-base"),
        ("PUT", "/v1/tenants/damaged", 422, None),
        ("PUT", "/v1/tenants/foreign", 422, None),
    ],
)
def test_refused_without_a_body(
    service: Service, method: str, path: str, status: int, code: str | None
) -> None:
    told = service.ask(method, path)
    assert told.status == status
    assert set(told.body) == {"error", "message", "problems"}
    assert all(problem["code"] in told.body["message"] for problem in told.body["problems"])
    assert told.codes
    assert code is None or told.codes == {code}
    assert service.ask("GET", "/v1/tenants").body == {"tenants": ["acme", "globex"]}


def test_a_refused_adapter_leaves_the_bound_one(service: Service, alone) -> None:
    assert service.ask("PUT", "/v1/tenants/acme").status == 422
    check(classify(service, [(TEXTS[0], "acme")]), [(TEXTS[0], "acme")], alone)


def bad_bodies(service: Service) -> dict[str, tuple[object, int]]:
    """Bodies that are refused, with their status, by what is wrong."""
    key = "text" if service.kind == "python" else "ids"
    fine = row(service, TEXTS[0], "acme")
    bodies: dict[str, tuple[object, int]] = {
        "no JSON": (b'{"rows": [', 422),
        "not UTF-8": (b'{"rows": "\xff"}', 400 if service.kind == "python" else 422),
        "nothing": (b"", 422),
        "a list": ([], 422),
        "no rows": ({"rows": []}, 422),
        "rows that are none": ({"rows": 7}, 422),
        "a row that is none": ({"rows": [fine, None]}, 422),
        "too many rows": ({"rows": [fine] * 33}, 422),
        "another key": ({"rows": [fine], "more": 1}, 422),
        "another key in a row": ({"rows": [fine | {"more": 1}]}, 422),
        "no tenant": ({"rows": [{key: fine[key]}]}, 422),
        "no input": ({"rows": [{"tenant": "acme"}]}, 422),
        "a tenant that is none": ({"rows": [fine | {"tenant": 7}]}, 422),
        "unbound tenants": ({"rows": [fine | {"tenant": "x"}, fine | {"tenant": "../x"}]}, 404),
        "too large": (b'{"rows": "' + b"x" * 70_000 + b'"}', 413),
        "much too large": (b'{"rows": "' + b"x" * 3_000_000 + b'"}', 413),
    }
    if service.kind == "python":
        bodies["no text"] = ({"rows": [fine | {"text": 7}]}, 422)
        bodies["no Unicode"] = (b'{"rows": [{"text": "\\ud800", "tenant": null}]}', 422)
    else:
        for name, ids in {
            "no ids": [],
            "text": "w1",
            "fractions": [1.5],
            "booleans": [True],
            "of another vocabulary": [97],
            "negative ids": [-1],
            "ids beyond int64": [2**63],
            "too many ids": [1] * 41,
        }.items():
            bodies[name] = ({"rows": [fine, {"ids": ids, "tenant": None}]}, 422)
        bodies["a NUL in a tenant"] = ({"rows": [fine | {"tenant": "acme\0x"}]}, 422)
    return bodies


def test_bad_bodies(service: Service, alone) -> None:
    for what, (body, status) in bad_bodies(service).items():
        told = service.ask("POST", "/v1/classify", body)
        assert told.status == status, f"{what}: {told}"
        assert set(told.body) == {"error", "message", "problems"}, what
        assert told.codes == ({"unknown-adapter"} if status == 404 else {"bad-input"}), what
    form = {"content-type": "application/x-www-form-urlencoded"}
    told = service.ask("POST", "/v1/classify", b"x=1", form)
    assert (told.status, told.codes) == (422, {"bad-input"})
    check(classify(service, [(TEXTS[0], "acme")]), [(TEXTS[0], "acme")], alone)


def test_every_culprit_of_a_body_is_named(service: Service) -> None:
    rows = [row(service, TEXTS[0], 7), row(service, TEXTS[0], "acme") | {"more": 1}]
    told = service.ask("POST", "/v1/classify", {"rows": rows})
    subjects = {problem["subject"] for problem in told.body["problems"]}
    assert subjects == {"body.rows.0.tenant", "body.rows.1.more"}


def test_requests_that_come_together_run_together(started, served: Path, alone, tmp_path: Path) -> None:
    """Four requests fill a batch, which then waits no longer; one of another four is refused alone."""
    with running(*started, tmp_path / "log", *arguments(served), "--wait", "30000") as service:
        pairs = [(text, tenant) for text in TEXTS[:4] for tenant in ("acme", None)]
        with ThreadPoolExecutor(4) as clients:
            for told in clients.map(lambda _: classify(service, pairs), range(4)):
                check(told, pairs, alone)
            assert service.health()["batches"] == 1
            asked = [pairs, pairs, pairs, [*pairs[:7], (TEXTS[0], "absent")]]
            *good, bad = clients.map(lambda some: classify(service, some), asked)
        for told in good:
            check(told, pairs, alone)
        assert (bad.status, bad.codes) == (404, {"unknown-adapter"})
        assert service.health()["batches"] == 1 + 1 + 4


def test_a_full_service_refuses_and_ends_well(started, served: Path, alone, tmp_path: Path) -> None:
    """One request is under way, another is refused; SIGTERM lets the first have its answer."""
    given = [*arguments(served), "--requests", "1", "--wait", "5000"]
    with running(*started, tmp_path / "log", *given) as service, ThreadPoolExecutor(1) as client:
        first = client.submit(classify, service, [(TEXTS[0], "acme")])
        while service.health()["requests"] == 0:
            time.sleep(0.01)
        told = classify(service, [(TEXTS[1], None)])
        assert (told.status, told.codes) == (503, {"session-full"})
        assert {key.lower(): value for key, value in told.headers.items()}["retry-after"] == "1"
        service.process.terminate()
        check(first.result(), [(TEXTS[0], "acme")], alone)


def test_tenants_come_and_go_while_others_ask(service: Service, alone) -> None:
    pairs = [(text, tenant) for text in TEXTS for tenant in (None, "acme", "globex")]

    def come_and_go() -> None:
        for _ in range(10):
            assert service.ask("PUT", "/v1/tenants/initech").status == 200
            told = classify(service, [(TEXTS[0], "initech")])
            check(told, [(TEXTS[0], "initech")], alone)
            assert service.ask("DELETE", "/v1/tenants/initech").status == 200

    with ThreadPoolExecutor(4) as clients:
        changing = clients.submit(come_and_go)
        for told in clients.map(lambda _: classify(service, pairs), range(30)):
            check(told, pairs, alone)
        changing.result()
    assert service.health()["requests"] == 0
