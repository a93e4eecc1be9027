"""How every part of the contract is declared: frozen, strict, and nothing undeclared taken."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]


class Schema(BaseModel):
    """A part of the manifest. A key that it does not declare is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
