"""``adexport verify``: a bundle against torch and PEFT."""

from __future__ import annotations

from pathlib import Path

import click

from .console import json_option, need, out, print_json, print_table, quiet_transformers, refusals, steps


@click.command(epilog="Example: adexport verify minilm.bundle ./acme-lora ./globex-lora")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("adapters", nargs=-1, type=click.Path(path_type=Path))
@click.option("--model", help="The base for torch. Default: where the bundle was built from.")
@click.option(
    "--tolerance",
    type=float,
    default=None,
    help="Default: 1e-5; looser for fp16 and bf16, of the base or of --bank-dtype.",
)
@click.option(
    "--min-cosine", type=float, default=None, help="Of a quantized bundle. Default: that of adexport build."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the inputs.")
@json_option
@refusals()
def verify(
    bundle: Path,
    adapters: tuple[Path, ...],
    model: str | None,
    tolerance: float | None,
    min_cosine: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run mixed, ragged rows through BUNDLE and through PEFT, and compare every row.

    ADAPTERS are PEFT folders, of any family that can be bound; without any, random LoRA adapters are
    made. Rows whose adapters PEFT cannot mix run there by themselves. A quantized bundle is compared by
    cosines, on real texts if it has a tokenizer. Needs torch and peft.
    """
    for package in ("torch", "transformers", "peft"):
        need(package, "verify", "comparing with PEFT")
    quiet_transformers()
    from ..verify import verify_bundle

    with steps() as progress:
        report = verify_bundle(
            bundle,
            adapters,
            model=model,
            tolerance=tolerance,
            min_cosine=min_cosine,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(report.to_dict())
        return
    quantized = report.min_cosine is not None
    print_table(
        (
            "row",
            "adapter",
            "tokens",
            *(("cosine", "same first choice") if quantized else ()),
            "difference from PEFT",
            "alone or in the batch",
        ),
        [
            (
                str(index),
                row.adapter or "-",
                "-" if row.tokens is None else str(row.tokens),
                *((_number(row.cosine, ".4f"), _number(row.top1, ".1%")) if quantized else ()),
                f"{row.difference:.1e}",
                f"{row.alone:.1e}",
            )
            for index, row in enumerate(report.rows)
        ],
    )
    if quantized:
        first = "" if report.top1 is None else f"; same first choice {report.top1:.1%}"
        out.print(f"near: mean cosine {report.cosine:.4f}, allowed {report.min_cosine:g}{first}")
    else:
        out.print(f"equal: largest difference {report.worst:.1e}, allowed {report.tolerance:.0e}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
