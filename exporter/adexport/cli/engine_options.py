"""The options of engines: what ``adexport build --target tensorrt`` takes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..options import EngineOptions

C = TypeVar("C", bound=Callable[..., None])

TARGETS = ("onnxruntime", "tensorrt")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _bytes(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """A number of bytes, as ``2GB``, ``1.5GiB`` or ``4096``."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([KMG]?I?B?)", text.strip().upper())
    size = 0 if found is None else int(float(found[1]) * _UNITS.get(found[2], 0))
    if not 1 <= size < 2**63:
        raise click.BadParameter(f"{text[:40]!r} is no size; e.g. 2GB, 512MB, 1.5GiB")
    return size


def engine_options(command: C) -> Any:
    """Give a command these options; it gets them as ``engine``, None without ``--target tensorrt``."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        target: str,
        engine: str | None,
        compute_capability: tuple[str, ...],
        profile: tuple[str, ...],
        memory_limit: int | None,
        tf32: bool,
        in_place: bool,
        **kwargs: Any,
    ) -> None:
        options = EngineOptions(
            engine=engine,
            compute_capabilities=_capabilities(compute_capability),
            profiles=profile,
            memory_limit=memory_limit,
            tf32=tf32,
            caches="in-place" if in_place else "copied",
        )
        if target == "onnxruntime" and options != EngineOptions():
            raise click.UsageError(
                "--engine, --compute-capability, --profile, --memory-limit, --tf32 and --in-place are for "
                "engines: give --target tensorrt"
            )
        command(*args, engine=None if target == "onnxruntime" else options, **kwargs)

    options = (
        click.option(
            "--target",
            type=click.Choice(TARGETS),
            default=TARGETS[0],
            show_default=True,
            help="tensorrt: add an engine, beside the graph for ONNX Runtime that every bundle has.",
        ),
        click.option(
            "--engine",
            type=click.Choice(["rtx", "tensorrt"]),
            help="Build with TensorRT-RTX, ahead of time and without a GPU, or with TensorRT, for the GPU "
            "that is there. Default: what is installed, rtx first.",
        ),
        click.option(
            "--compute-capability",
            multiple=True,
            help="GPUs to build for, as sm86,sm120. Default: rtx: Ampere and later.",
        ),
        click.option(
            "--profile",
            multiple=True,
            help="Sizes that the engine takes, as batch=1:8:32,seq=1:128:512 (smallest, usual, largest); "
            "kinds left out have defaults. Repeatable: an engine may have several.",
        ),
        click.option(
            "--memory-limit",
            metavar="SIZE",
            callback=_bytes,
            help="Scratch memory on the GPU that a layer may take, as 2GB.",
        ),
        click.option("--tf32", is_flag=True, help="Let products of float32 be rounded to TF32."),
        click.option(
            "--in-place",
            is_flag=True,
            help="Of a decoder: write KV caches in place; all have the largest room of the profile.",
        ),
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _capabilities(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Names as ``sm86``, each once."""
    names = [name.strip().lower() for text in texts for name in text.split(",")]
    wrong = [name for name in names if not re.fullmatch(r"sm[1-9][0-9]+", name)]
    if wrong:
        raise click.BadParameter(
            f"{', '.join(repr(name) for name in wrong)}: names are as sm86",
            param_hint="--compute-capability",
        )
    return tuple(dict.fromkeys(names))
