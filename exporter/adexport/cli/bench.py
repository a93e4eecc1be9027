"""``adexport bench``: how a bundle's time compares with other ways to run the same batch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import json_option, need, out, print_json, print_table, quiet_transformers, refusals, steps

if TYPE_CHECKING:
    from ..bench import BenchReport
    from ..bench.measure import Quartiles


def _slots(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    need("onnx_ir", "lower", "lowering a graph")
    from ..bench.families import FAMILIES

    return _known(value, FAMILIES)


def _against(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    from ..bench.contenders import CONTENDERS

    return _known(value, CONTENDERS)


def _known(value: str, choices: Iterable[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    choices = tuple(choices)
    unknown = [name for name in names if name not in choices]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(choices)}")
    return names


@click.command(epilog="Example: adexport bench minilm.bundle --batch 8 --seq 128 --against base,peft")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Rows.")
@click.option("--seq", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens in a row.")
@click.option("--adapters", type=click.IntRange(min=1), default=8, show_default=True, help="How many.")
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True, help="Of each.")
@click.option("--threads", type=click.IntRange(min=0), default=1, show_default=True, help="Of an operator.")
@click.option("--repeats", type=click.IntRange(min=1), default=30, show_default=True, help="Rounds.")
@click.option(
    "--against",
    default="base,peft,ort-adapter",
    show_default=True,
    callback=_against,
    help="Names with commas: the plain base, PEFT's mixed batch, ONNX Runtime's own adapters; and of "
    "the runtime itself: without-kernels, and graph: its graph with everything bound already.",
)
@click.option(
    "--slots",
    callback=_slots,
    help="Instead: what each kind of slot costs beside the plain base. Names with commas: lora, ia3, "
    "pfeiffer, houlsby, parallel, and unused: every slot in the graph, none used by the batch.",
)
@click.option(
    "--width", type=click.IntRange(min=1), default=48, show_default=True, help="Of bottlenecks (--slots)."
)
@click.option(
    "--task",
    type=click.Choice(["run", "generate"]),
    default="run",
    show_default=True,
    help="generate: a decode step and a prompt beside the plain base, and all tenants beside one by one.",
)
@click.option("--past", type=click.IntRange(min=1), default=256, show_default=True, help="Of a step.")
@click.option("--prompt", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens of each.")
@click.option("--new", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens generated.")
@json_option
@refusals()
def bench(
    bundle: Path,
    batch: int,
    seq: int,
    adapters: int,
    rank: int,
    threads: int,
    repeats: int,
    against: tuple[str, ...],
    slots: tuple[str, ...],
    width: int,
    task: str,
    past: int,
    prompt: int,
    new: int,
    as_json: bool,
) -> None:
    """Time BUNDLE on a batch whose rows take different adapters, beside other ways to run it.

    All run in one process, in turns; a ratio is taken within a round, and its median and quartiles
    are shown. Outputs are compared before anything is timed. Only peft needs torch.
    """
    if task == "generate":
        _bench_generate(
            bundle,
            as_json,
            batch=batch,
            seq=seq,
            past=past,
            adapters=adapters,
            rank=rank,
            prompt=prompt,
            new=new,
            threads=threads,
            repeats=repeats,
        )
        return
    if slots:
        _bench_slots(
            bundle,
            slots,
            as_json,
            batch=batch,
            seq=seq,
            adapters=adapters,
            rank=rank,
            width=width,
            threads=threads,
            repeats=repeats,
        )
        return
    from ..bench.contenders import CONTENDERS

    for name in against:
        for package, extra in CONTENDERS[name][1].items():
            need(package, extra, f"--against {name}")
    if "peft" in against:
        quiet_transformers()
    from ..bench import run_bench

    with steps() as progress:
        report = run_bench(
            bundle,
            batch=batch,
            seq=seq,
            adapters=adapters,
            rank=rank,
            threads=threads,
            repeats=repeats,
            against=against,
            progress=progress,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report)


def _bench_generate(bundle: Path, as_json: bool, **settings: int) -> None:
    for package in ("onnx", "onnx_ir"):
        need(package, "lower", "lowering a graph")
    from ..bench.decoding import run_decoding

    with steps() as progress:
        report = run_decoding(bundle, progress=progress, **settings)
    if as_json:
        print_json(report.to_dict())
        return
    out.print(", ".join(f"{key} {value}" for key, value in report.settings.items()))
    print_table(
        ("", "CPU ms", "base ms", "it / base (CPU)", "it / base (wall)"),
        [
            (
                name,
                f"{found.cpu_ms:.1f}",
                f"{found.other_cpu_ms:.1f}",
                _ratio(found.cpu_ratio),
                _ratio(found.wall_ratio),
            )
            for name, found in (("decode step", report.decode), ("prefill", report.prefill))
        ],
    )
    speed = report.throughput
    out.print(
        f"tokens per second: {speed.together:.1f} together, {speed.one_by_one:.1f} one by one "
        f"({speed.ratio:.2f} times)" + ("" if speed.same_tokens else "; the tokens differ")
    )


def _bench_slots(bundle: Path, slots: tuple[str, ...], as_json: bool, **settings: int) -> None:
    for package in ("onnx", "onnx_ir"):
        need(package, "lower", "lowering a graph")
    if "ia3" in slots:
        need("peft", "verify", "--slots ia3")
    from ..bench.families import run_families

    with steps() as progress:
        report = run_families(bundle, slots, progress=progress, **settings)
    if as_json:
        print_json(report.to_dict())
        return
    out.print(", ".join(f"{key} {value}" for key, value in report.settings.items()))
    print_table(
        ("", "sites", "CPU ms", "wall ms", "it / base (CPU)", "it / base (wall)"),
        [
            ("base", "", f"{report.base_cpu_ms:.1f}", f"{report.base_wall_ms:.1f}", "", ""),
            *(
                (
                    name,
                    str(cost.sites),
                    f"{cost.cpu_ms:.1f}",
                    f"{cost.wall_ms:.1f}",
                    _ratio(cost.cpu_ratio),
                    _ratio(cost.wall_ratio),
                )
                for name, cost in report.families.items()
            ),
        ],
    )


def _show(report: BenchReport) -> None:
    out.print(", ".join(f"{key} {value}" for key, value in report.settings.items()))
    rows = [("adexport", f"{report.cpu_ms:.1f}", f"{report.wall_ms:.1f}", "", "", "")]
    rows += [
        (
            name,
            f"{found.cpu_ms:.1f}",
            f"{found.wall_ms:.1f}",
            _ratio(found.cpu_ratio),
            _ratio(found.wall_ratio),
            f"{found.difference:.1e}",
        )
        for name, found in report.against.items()
    ]
    print_table(
        ("", "CPU ms", "wall ms", "adexport / it (CPU)", "adexport / it (wall)", "difference"), rows
    )
    cold = report.cold_bind
    out.print(
        f"cold bind: {cold.whole_ms:.1f} ms, {cold.read_ms:.1f} of it the file; without it "
        f"{_ratio(cold.ratio)} of a forward of one row ({cold.forward_ms:.1f} ms)"
    )


def _ratio(found: Quartiles) -> str:
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"
