"""What a backend cannot do is refused, by name, and what it could do before it does after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adexport_runtime import AdapterError, AdexportError, Code, RequestError
from tests.conftest import MakeLora
from tests.runtime.support import hidden, ids

from .backends import Gpu
from .conftest import Open

SMALL = {"batch": (1, 2, 4), "seq": (1, 4, 8), "rank": (1, 2, 4), "rows": (1, 2, 4)}


@pytest.fixture
def profiled(gpu: Gpu) -> Gpu:
    if not gpu.profiled:
        pytest.skip(f"{gpu.name} takes every size")
    return gpu


def test_outside_the_profile(profiled: Gpu, serve: Open, tiny_bundle: Path, make_lora: MakeLora) -> None:
    engine = serve(tiny_bundle, **SMALL)
    engine.bind("a", make_lora("a", r=4, std=0.2))
    before = hidden(engine, ids(4, 8), "a")
    for rows, length, wrong in ((5, 8, {"batch"}), (4, 9, {"seq"}), (5, 9, {"batch", "seq"})):
        with pytest.raises(RequestError) as caught:
            hidden(engine, ids(rows, length), "a")
        assert {problem.subject for problem in caught.value.problems} == wrong
    np.testing.assert_array_equal(hidden(engine, ids(4, 8), "a"), before)


def test_a_rank_above_the_profile(
    profiled: Gpu, serve: Open, tiny_bundle: Path, make_lora: MakeLora
) -> None:
    engine = serve(tiny_bundle, **SMALL)
    engine.bind("a", make_lora("a", r=4, std=0.2))
    before = hidden(engine, ids(2, 3), ["a", None])
    with pytest.raises(AdexportError) as caught:
        engine.bind("wide", make_lora("wide", r=5, std=0.2))
        hidden(engine, ids(2, 3), ["a", "wide"])
    assert caught.value.codes == {Code.RANK_ABOVE_MAX}
    np.testing.assert_array_equal(hidden(engine, ids(2, 3), ["a", None]), before)


def test_a_rank_above_the_bundle(serve: Open, tiny_bundle: Path, make_lora: MakeLora) -> None:
    engine = serve(tiny_bundle)
    with pytest.raises(AdapterError) as caught:
        engine.bind("wide", make_lora("wide", r=17))
    assert caught.value.codes == {Code.RANK_ABOVE_MAX}
    assert engine.adapters() == []


def test_closed(serve: Open, tiny_bundle: Path) -> None:
    engine = serve(tiny_bundle)
    hidden(engine, ids(1, 2))
    engine.close()
    with pytest.raises(RequestError) as caught:
        hidden(engine, ids(1, 2))
    assert caught.value.codes == {Code.CLOSED}
