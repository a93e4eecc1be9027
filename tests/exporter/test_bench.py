"""The benchmark measures what it says; nothing here asserts on time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from adexport import bench
from adexport.bench.contenders import CONTENDERS, OTHERS
from adexport.bench.measure import Quartiles, Samples, interleave, ratios
from adexport.bench.workload import Workload, make_workload
from adexport.build import lower_again
from adexport.options import TOLERANCE, BuildOptions
from adexport_runtime import BuildError, Bundle, Code, RequestError

SMALL = {"batch": 3, "seq": 5, "adapters": 2, "rank": 4, "repeats": 4}


def test_every_contender_runs_and_agrees(tiny_bundle: Path) -> None:
    report = bench.run_bench(tiny_bundle, **SMALL, against=tuple(CONTENDERS))
    assert set(report.against) == set(CONTENDERS) >= {*OTHERS, "without-kernels", "graph"}
    for found in report.against.values():
        assert found.difference <= 1e-6
        assert 0 < found.cpu_ratio.low <= found.cpu_ratio.median <= found.cpu_ratio.high
        assert found.wall_ms > 0
    data = report.to_dict()
    assert data["settings"] == {**SMALL, "threads": 1}
    assert data["machine"]["onnxruntime"]
    assert data["cold_bind"]["whole_ms"] > 0


def test_adapters_of_16_bits_are_rounded(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as that goes PEFT may differ; the base may not."""
    lower_again(tiny_bundle, tmp_path / "narrow", options=BuildOptions(bank_dtype="bf16"))
    monkeypatch.setitem(TOLERANCE, "fp32", 1e-6)  # on a model of this size the rounding is small too
    report = bench.run_bench(tmp_path / "narrow", **SMALL)
    assert report.against["base"].difference <= 1e-6
    assert 1e-6 < report.against["peft"].difference <= TOLERANCE["bf16"]


def test_nothing_is_left_in_the_bundle(bundle_copy: Path) -> None:
    before = sorted(bundle_copy.rglob("*"))
    bench.run_bench(bundle_copy, **SMALL, against=("base",))
    assert sorted(bundle_copy.rglob("*")) == before


def test_more_adapters_than_rows(tiny_bundle: Path) -> None:
    settings = {**SMALL, "adapters": 5}
    assert bench.run_bench(tiny_bundle, **settings, against=("ort-adapter",)).settings["adapters"] == 5


def test_a_contender_that_computes_something_else_is_not_timed(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        adapted = True

        def run(self) -> dict[str, np.ndarray]:
            return {
                "last_hidden_state": np.zeros((3, 5, 32), np.float32),
                "pooler_output": np.zeros((3, 32), np.float32),
            }

    @contextmanager
    def opened(name: str, workload: Workload) -> Iterator[Wrong]:
        yield Wrong()

    monkeypatch.setattr(bench, "open_contender", opened)
    with pytest.raises(BuildError) as caught:
        bench.run_bench(tiny_bundle, **SMALL, against=("base",))
    assert caught.value.codes == {Code.PARITY}


def test_what_the_bundle_does_not_take_is_named_together(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        bench.run_bench(tiny_bundle, seq=41, rank=17)
    assert {problem.subject for problem in caught.value.problems} == {"--seq", "--rank"}
    plain = tmp_path / "plain.bundle"
    lower_again(tiny_bundle, plain, options=BuildOptions(slots=()))
    with pytest.raises(RequestError) as caught:
        bench.run_bench(plain, **SMALL)
    assert "without slots" in str(caught.value)


def test_the_adapters_are_distinct_and_on_all_sites(tiny_bundle: Path, tmp_path: Path) -> None:
    workload = make_workload(
        Bundle.open(tiny_bundle), batch=3, seq=4, adapters=2, rank=3, threads=1, scratch=tmp_path
    )
    assert workload.rows == ("adapter0", "adapter1", "adapter0")
    files = [(folder / "adapter_model.safetensors").read_bytes() for folder in workload.adapters.values()]
    assert files[0] != files[1]
    assert {value.shape for value in workload.feeds.values()} == {(3, 4)}


def test_rounds_are_interleaved_and_start_in_turn() -> None:
    order: list[str] = []
    samples = interleave({name: lambda name=name: order.append(name) for name in "abc"}, 4, warmup=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {len(sample.cpu) for sample in samples.values()} == {4}


def test_cpu_time_is_not_wall_time() -> None:
    samples = interleave({"sleeps": lambda: time.sleep(0.02)}, 3, warmup=0)["sleeps"]
    assert samples.wall.min() >= 0.02
    assert samples.cpu.max() < 0.02


def test_ratios_are_taken_within_a_round() -> None:
    # the machine was four times slower in the second round: the ratio does not see it
    mine = Samples(np.array([1.0, 4.0, 1.0]), np.array([2.0, 8.0, 2.0]))
    other = Samples(np.array([2.0, 8.0, 2.0]), np.array([2.0, 8.0, 2.0]))
    assert ratios(mine, other) == (Quartiles(0.5, 0.5, 0.5), Quartiles(1.0, 1.0, 1.0))
    assert Quartiles.of(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == Quartiles(2.0, 3.0, 4.0)


def test_every_family_of_slots(tiny_bundle: Path) -> None:
    from adexport.bench.families import FAMILIES, run_families

    report = run_families(
        tiny_bundle, list(FAMILIES), batch=3, seq=5, adapters=2, rank=3, width=4, repeats=2
    )
    assert list(report.families) == list(FAMILIES)
    sites = {name: cost.sites for name, cost in report.families.items()}
    assert sites == {"lora": 12, "ia3": 8, "pfeiffer": 2, "houlsby": 4, "parallel": 2, "unused": 16}
    assert all(cost.cpu_ratio.median > 0 for cost in report.families.values())
    assert report.to_dict()["machine"]["python"]
