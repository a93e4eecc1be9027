"""What a native engine's profiles allow, and what is said of the rest; simulated on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adexport_runtime import (
    AdapterError,
    BankFullError,
    Bundle,
    Code,
    Engine,
    RequestError,
    bind_into_bundle,
)
from tests.conftest import MakeLora

from .simulated_engine import Graph, Simulation
from .support import hidden, ids, subjects


def simulate(root: Path, graph: Graph, *profiles: str) -> Simulation:
    return Simulation(root, graph, profiles, "copied")


def native_again(native: Simulation) -> Simulation:
    profiles = [str(profile) for profile in native.record.profiles]
    return simulate(native.bundle.root, native.executable.graph, *profiles)


class TestLimits:
    def test_the_bank_is_as_large_as_the_profile(
        self, tiny_bundle: Path, native_graph: Graph, ranked: dict[str, Path], ranked_cpu: Engine
    ) -> None:
        """Without ``rows``, what is bound beyond the engine's rows is paged."""
        native = simulate(tiny_bundle, native_graph, "rows=1:2:3")
        with native.open() as engine:
            for name, folder in ranked.items():
                engine.bind(name, folder)
            for rows in (["a", "b", None], ["c", None, "a"], ["b", "b", "c"]):
                assert np.abs(hidden(engine, ids(), rows) - hidden(ranked_cpu, ids(), rows)).max() <= 1e-5
            with pytest.raises(BankFullError):
                hidden(engine, ids(), ["a", "b", "c"])
        with native_again(native).open(rows=2) as engine:
            assert engine._bank.capacity == 2
        with pytest.raises(RequestError) as caught:
            native_again(native).open(rows=3)
        (problem,) = caught.value.problems
        assert problem.subject == "rows"
        assert "at most 2" in problem.expected
        assert "--profile rows=1:4:4" in problem.mend

    def test_an_adapter_above_every_profile(
        self, tiny_bundle: Path, native_graph: Graph, ranked: dict[str, Path], make_lora: MakeLora
    ) -> None:
        """Refused when it is bound, and what was bound before still serves."""
        native = simulate(tiny_bundle, native_graph, "rank=1:2:8", "rank=1:8:12,batch=1")
        with native.open() as engine:
            engine.bind("x", ranked["a"])
            before = hidden(engine, ids(), "x")
            with pytest.raises(AdapterError) as caught:
                engine.bind("x", ranked["c"])
            assert caught.value.codes == {Code.RANK_ABOVE_MAX}
            assert len(subjects(caught.value, Code.RANK_ABOVE_MAX)) == 4  # query and value of two layers
            assert "at most 12" in str(caught.value)
            assert "--profile rank=1:16:16" in str(caught.value)
            np.testing.assert_array_equal(hidden(engine, ids(), "x"), before)
            engine.bind("y", make_lora("y", r=11))
            hidden(engine, ids(1, 4), ["y"])
            with pytest.raises(RequestError) as refused:  # each by a profile, and not both by one
                hidden(engine, ids(3, 4), ["y", None, None])
            assert subjects(refused.value, Code.RANK_ABOVE_MAX) == {"rank"}
            assert subjects(refused.value, Code.BAD_INPUT) == {"batch"}

    def test_one_bound_into_the_bundle_is_refused_when_it_is_asked_for(
        self, bundle_copy: Path, native_graph: Graph, ranked: dict[str, Path]
    ) -> None:
        for name in ("a", "c"):
            bind_into_bundle(Bundle.open(bundle_copy), ranked[name], name)
        with simulate(bundle_copy, native_graph, "rank=1:2:8").open() as engine:
            for rows in ("c", ["a", "c", None]):
                with pytest.raises(AdapterError) as caught:
                    hidden(engine, ids(), rows)
                assert caught.value.codes == {Code.RANK_ABOVE_MAX}
            hidden(engine, ids(), "a")

    def test_a_rank_that_the_host_has_rounded_up(
        self, tiny_bundle: Path, native_graph: Graph, ranked: dict[str, Path], ranked_cpu: Engine
    ) -> None:
        with simulate(tiny_bundle, native_graph, "rank=1:5:5").open() as engine:
            for name in ("a", "b"):
                engine.bind(name, ranked[name])
            rows = ["a", "b", None]
            assert np.abs(hidden(engine, ids(), rows) - hidden(ranked_cpu, ids(), rows)).max() <= 1e-5

    def test_every_size_that_does_not_fit_is_named(self, tiny_bundle: Path, native_graph: Graph) -> None:
        native = simulate(tiny_bundle, native_graph, "batch=2:4:4,seq=1:8:16", "batch=2:8:8,seq=1:4:4")
        with native.open() as engine:
            hidden(engine, ids(4, 16))
            hidden(engine, ids(8, 4))
            for batch, length, wrong in (
                (8, 16, {"batch", "seq"}),
                (9, 17, {"batch", "seq"}),
                (1, 3, {"batch"}),
                (3, 17, {"seq"}),
            ):
                with pytest.raises(RequestError) as caught:
                    hidden(engine, ids(batch, length))
                assert subjects(caught.value, Code.BAD_INPUT) == wrong
                for problem in caught.value.problems:
                    assert problem.got == str({"batch": batch, "seq": length}[problem.subject])
                    assert " or " in problem.expected
                    assert "adexport build BUNDLE --target tensorrt --profile" in problem.mend
            assert len(native.executable.contexts) == 1  # a refusal costs none
            hidden(engine, ids(2, 2))

    def test_the_nearest_profile_is_chosen(self, tiny_bundle: Path, native_graph: Graph) -> None:
        native = simulate(
            tiny_bundle, native_graph, "batch=1:1:32,seq=1:4:40", *["batch=1:16:32,seq=1:32:40"] * 2
        )
        with native.open() as engine:
            for batch, length in ((1, 3), (2, 4), (16, 40), (14, 30), (1, 1)):
                hidden(engine, ids(batch, length))
        assert native.runs == [0, 1, 0]

    def test_no_row_but_the_bases(
        self, tiny_bundle: Path, native_graph: Graph, ranked: dict[str, Path], ranked_cpu: Engine
    ) -> None:
        with simulate(tiny_bundle, native_graph, "rows=1").open() as engine:
            engine.bind("a", ranked["a"])
            with pytest.raises(BankFullError):
                hidden(engine, ids(), "a")
            assert np.abs(hidden(engine, ids()) - hidden(ranked_cpu, ids())).max() <= 1e-5
