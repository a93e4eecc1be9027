"""What a lowering made: the slots of a graph, with the inputs that carry their weights."""

from __future__ import annotations

from dataclasses import dataclass

from adexport_runtime.manifest import SlotRows
from adexport_runtime.slots import Bottlenecks, Guards, Head, Site

ADAPTER_IDS = "adapter_ids"


@dataclass(frozen=True)
class Slotted:
    """The slots of a lowered graph, and what their rows are; empty for the plain base."""

    sites: tuple[Site, ...] = ()
    bottlenecks: Bottlenecks | None = None
    head: Head | None = None
    guards: Guards | None = None
    rows: SlotRows = "bank"

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.sites) or self.bottlenecks is not None or self.head is not None
