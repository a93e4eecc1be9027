"""The element type of adapters in memory: from what was asked for, and what the bundle had."""

from __future__ import annotations

from typing import cast, get_args

from adexport_runtime.errors import BuildError, Code, Problem
from adexport_runtime.slots import BankDtype

from ..options import BuildOptions
from .plan import Plan

_OPTION = "--bank-dtype"
#: no type of their own
SAME = "fp32"


def choose_bank_dtype(
    options: BuildOptions, plan: Plan, dtype: str, known: BankDtype | None = None
) -> BankDtype | None:
    """The type of slot inputs under a base of ``dtype``; None where it is the base's.

    Raises:
        BuildError: there is no such type, the base is not float32, or there are no such slots.
    """
    asked = options.bank_dtype if options.bank_dtype is not None else known
    there = bool(plan.sites) or plan.bottlenecks is not None
    if asked is None or asked == SAME or (options.bank_dtype is None and not there):
        return None
    if asked not in get_args(BankDtype):
        expected = ", ".join((SAME, *get_args(BankDtype)))
        raise BuildError(
            "nothing was built", Problem(Code.UNSUPPORTED, _OPTION, got=asked, expected=expected)
        )
    if not there:
        raise BuildError(
            "nothing was built",
            Problem(
                Code.UNSUPPORTED,
                _OPTION,
                got=asked,
                expected="slots of linear layers or bottlenecks",
                cause="the bundle gets no slots of which that could be the type",
                mend="leave it out, or name such --slots",
            ),
        )
    if dtype != SAME:
        raise BuildError(
            "nothing was built",
            Problem(
                Code.UNSUPPORTED,
                _OPTION,
                got=f"{asked} under a base of {dtype}",
                expected=f"a base of {SAME}",
                cause=f"with --dtype {dtype} adapters are of that type anyhow",
                mend=f"{_OPTION} {SAME}",
            ),
        )
    return cast(BankDtype, asked)
