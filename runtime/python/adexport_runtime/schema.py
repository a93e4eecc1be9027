"""How every part of the contract is declared: frozen, strict, and nothing undeclared taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticKnownError

#: a text without NUL, where readers in C would end it
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0, lt=2**63)]


def _no_float(value: object) -> object:
    if type(value) is not int:
        raise PydanticKnownError("int_type")
    return value


#: goes with a Literal of integers, which even in strict mode takes 8.0 for 8
Whole = BeforeValidator(_no_float)


class Schema(BaseModel):
    """A part of the manifest. A key that it does not declare is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values, without what was cached of the old ones."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied


def violations(error: ValidationError) -> Iterator[tuple[str, str, str]]:
    """Everything that is wrong: where (empty: the whole), what stands there, what is expected."""
    for item in error.errors():
        yield ".".join(str(part) for part in item["loc"]), repr(item["input"])[:80], item["msg"]
