"""One patch of one row of a resumed run, and what such rows come to."""

from typing import NamedTuple

import torch
from torch import Tensor

from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.interventions.edits import Patch
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


class PatchedRow(Patch):
    """A patch of one hook in one row, with the whole activation of another run, batch of 1."""

    site: Site
    source: Tensor

    @property
    def name(self) -> str:
        """The hook."""
        return str(self.site.name)

    def first_pos(self, point: HookPoint) -> int:
        """The first position of its stack that the patch changes."""
        axis = next((point.axes.index(a) for a in ("pos", "query") if a in point.axes), None)
        if self.site.pos is None or axis is None:
            return 0
        part = self.site.part(point, self.source.shape)
        return 0 if part is None else min(part.global_places[axis])

    def equals(self, base: Tensor, point: HookPoint) -> bool:
        """Whether a whole activation holds the same values where this patch would write."""
        part = self.site.part(point, base.shape)
        if part is None:
            return True
        return bool(torch.equal(part.read(base, point), part.read(self.source, point).to(base)))


def patch_rows(rows: dict[int, PatchedRow], start: int, value: Tensor, hook: HookPoint) -> Tensor:
    """A hook function that patches some rows."""
    value = value.clone()
    first_pos = start if hook.name is not None and hook.name.startswith("decoder") else 0
    for number, row in rows.items():
        row.write_to(value[number : number + 1], hook, first_pos)
    return value
