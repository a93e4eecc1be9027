"""Which quantization a bundle gets: from what was asked for, the task, the precision, and what it had."""

from __future__ import annotations

from typing import cast, get_args

from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.quantization import Method, Quantization

from .options import BuildOptions

INT8, INT4, NONE = "int8", "int4", "none"
METHODS: tuple[str, ...] = get_args(Method)
EMBEDDINGS, LM_HEAD = "embeddings", "lm_head"
ALSO = (EMBEDDINGS, LM_HEAD)

#: as MatMulNBits is fastest: a scale for 32 weights, and activations in blocks of int8
BLOCK_SIZE, ACCURACY_LEVEL = 32, 4

_DYNAMIC, _WEIGHT_ONLY = METHODS[1], METHODS[0]
_TEXT_GENERATION = "text-generation"
_HEADLINE = "the base cannot be quantized so"


def choose_quantization(
    options: BuildOptions, task: str, dtype: str, known: Quantization | None = None
) -> Quantization | None:
    """The quantization of a build; what ``options`` leaves open stays as it is ``known``.

    A decoder reads all its weights for every token: weight-only by default, with the lm_head. What reads
    whole texts is bound by arithmetic: dynamic int8.

    Raises:
        BuildError: naming everything that cannot be had together.
    """
    asked = options.quantize or (f"int{known.bits}" if known is not None else NONE)
    if asked == NONE:
        _refuse(_loose_ends(options))
        return None
    decoder = task == _TEXT_GENERATION
    method = options.quantize_method or (known.method if known else _WEIGHT_ONLY if decoder else _DYNAMIC)
    if options.quantize_also is not None:
        also = set(options.quantize_also)
    elif known is not None:
        also = {name for name in ALSO if getattr(known, name)}
    else:
        also = {LM_HEAD} if decoder else set()
    _refuse(_conflicts(options, asked, method, also, dtype, task))
    dynamic = method == _DYNAMIC
    return Quantization(
        method=cast(Method, method),
        bits=4 if asked == INT4 else 8,
        block_size=None if dynamic and EMBEDDINGS not in also else BLOCK_SIZE,
        accuracy_level=None if dynamic else ACCURACY_LEVEL,
        embeddings=EMBEDDINGS in also,
        lm_head=LM_HEAD in also,
    )


def _loose_ends(options: BuildOptions) -> list[Problem]:
    """Options that say how to quantize where nothing is quantized."""
    given = {
        "--quantize-method": options.quantize_method,
        "--quantize-also": options.quantize_also,
        "--min-cosine": options.min_cosine,
    }
    return [
        Problem(
            Code.BAD_INPUT,
            name,
            got=(",".join(value) or NONE) if isinstance(value, tuple) else str(value),
            expected="a base that is quantized",
            mend="give --quantize int8 (or int4) too",
        )
        for name, value in given.items()
        if value is not None
    ]


def _conflicts(
    options: BuildOptions, asked: str, method: str, also: set[str], dtype: str, task: str
) -> list[Problem]:
    problems = [
        Problem(Code.BAD_INPUT, name, got=repr(got), expected="one of " + ", ".join(known))
        for name, got, known in (
            ("--quantize", asked, (INT8, INT4, NONE)),
            ("--quantize-method", method, METHODS),
            *(("--quantize-also", name, ALSO) for name in sorted(also)),
        )
        if got not in known
    ]
    if options.min_cosine is not None and not 0 <= options.min_cosine <= 1:
        problems.append(
            Problem(
                Code.BAD_INPUT, "--min-cosine", got=str(options.min_cosine), expected="a number from 0 to 1"
            )
        )
    if asked == INT4 and method == _DYNAMIC:
        problems.append(
            Problem(
                Code.UNSUPPORTED,
                "--quantize int4",
                got=f"dynamic quantization of a {task} model",
                expected="int8",
                cause="arithmetic on int4 is no faster, and an encoder loses too much by it",
                mend="give --quantize int8, or --quantize-method weight-only if size is what counts",
            )
        )
    if dtype != "fp32":
        problems.append(
            Problem(
                Code.UNSUPPORTED,
                f"--dtype {dtype}",
                got=f"a quantized {dtype} graph",
                expected="fp32: activations, slots and what is not quantized",
                cause="of ONNX Runtime's CPU kernels, which check every build, those of float16 go wrong "
                "inside branches, and there are none of bfloat16 and of int8 with float16",
                mend="give --dtype fp32, or --quantize none",
            )
        )
    return problems


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise BuildError(_HEADLINE, problems)
