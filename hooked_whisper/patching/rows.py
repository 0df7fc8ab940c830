"""One patch of one row of a resumed run, and what such rows come to."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.interventions.sites import Site


class Rows(NamedTuple):
    """Resumed runs, at the wanted positions that can differ from the base run.

    Args:
        first: How many wanted positions come before the patches.
        stream: The last residual stream at the others.
        logits: The logits there, where hooks had to see them made.
    """

    first: int
    stream: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RowPatch:
    """One patch of one row.

    Args:
        name: The hook.
        site: Which part of its activation.
        value: What to put there: the whole activation of another run, batch of 1.
    """

    name: str
    site: Site
    value: Tensor

    def first_pos(self, point: HookPoint) -> int:
        """The first position of its stack that the patch changes."""
        axis = next((point.axes.index(a) for a in ("pos", "query") if a in point.axes), None)
        if self.site.pos is None or axis is None:
            return 0
        if isinstance(self.site.pos, int):
            return self.site.pos % self.value.shape[axis]
        part = self.site.part(self.name, point.axes, self.value.shape)
        return 0 if part is None else int(part.whole[axis].min())

    def apply(self, row: Tensor, point: HookPoint, first_pos: int) -> None:
        """Write the patch over a row, batch of 1, which holds positions from `first_pos` on."""
        part = self.site.part(self.name, point.axes, row.shape, first_pos)
        if part is not None:
            part.put(row, self.value)

    def equals(self, base: Tensor, point: HookPoint) -> bool:
        """Whether a whole activation holds the same values where this patch would write."""
        part = self.site.part(self.name, point.axes, base.shape)
        return part is None or bool(torch.equal(base[part.whole], self.value[part.whole].to(base)))


def patch_rows(rows: dict[int, RowPatch], start: int, value: Tensor, hook: HookPoint) -> Tensor:
    """A hook function that patches some rows."""
    value = value.clone()
    first_pos = start if hook.name is not None and hook.name.startswith("decoder") else 0
    for number, row in rows.items():
        row.apply(value[number : number + 1], hook, first_pos)
    return value
