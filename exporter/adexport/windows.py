"""What a mask function of transformers lets a query see, as a window around its own position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

#: how far from a position a mask function is looked at; a window wider than that is no window
_REACH = 1 << 20
#: positions between which the shape of the mask is checked
_PROBED = sorted({*range(24), *(2**k + d for k in range(5, 21) for d in (-1, 0, 1))})

UNLIMITED = -1

MaskFunction = Callable[..., torch.Tensor]


class Window(NamedTuple):
    """A query at ``q`` sees keys from ``q - before`` to ``q + after``; -1 means no limit."""

    before: int
    after: int


def window_of(mask_function: MaskFunction) -> Window | None:
    """The window of a mask function ``(batch, head, query, key) -> bool``; None if it is no window."""
    zero, middle = torch.tensor(0), torch.tensor([[_REACH]])
    distances = torch.arange(1, _REACH + 1)[None, :]

    def reach(keys: torch.Tensor) -> int:
        hidden = ~mask_function(zero, zero, middle, keys).expand(keys.shape)
        return int(hidden.to(torch.int8).argmax()) if hidden.any() else UNLIMITED

    window = Window(reach(middle - distances), reach(middle + distances))
    query, key = torch.tensor(_PROBED)[:, None], torch.tensor(_PROBED)[None, :]
    expected = torch.ones(len(_PROBED), len(_PROBED), dtype=torch.bool)
    limits: tuple[tuple[int, Any], ...] = ((window.before, query - key), (window.after, key - query))
    for limit, distance in limits:
        if limit != UNLIMITED:
            expected &= distance <= limit
    found = mask_function(zero, zero, query, key).expand(expected.shape)
    return window if torch.equal(found, expected) else None
