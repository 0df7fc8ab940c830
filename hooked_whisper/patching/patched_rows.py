"""Rows of a resumed run, each with a patch of its own, and how they are patched."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.interventions.edits import HookPair, SiteEdit
from hooked_whisper.patching.resume_point import ResumePoint, StreamPosition


@dataclass(frozen=True, eq=False)
class PatchedRow:
    """One row: an edit of one hook's activation, which treats rows alike.

    Args:
        point: Where it resumes.
        edit: The edit.
        start: The first decoder position that it changes.
        only_pos: The one position that it changes in its block, if it enters behind the
            block's self-attention: the block runs on for that position alone, and the row
            joins the others behind it.
    """

    point: ResumePoint
    edit: SiteEdit
    start: int = 0
    only_pos: int | None = None

    @property
    def position(self) -> StreamPosition:
        """Where it joins other rows."""
        if self.only_pos is None:
            return self.point.position
        return StreamPosition(self.point.layer + 1, 0)

    @property
    def order(self) -> tuple[StreamPosition, str, bool]:
        """Sorts rows into the order in which they join; those of one hook stay together."""
        return self.position, self.point.name, self.only_pos is None


class ResumedRows(NamedTuple):
    """Resumed runs, at the wanted positions that can differ from the base run.

    Args:
        first: How many wanted positions come before the patches.
        resid: The last residual stream at the others.
        logits: The logits there, where hooks had to see them made.
    """

    first: int
    resid: Tensor
    logits: Tensor | None = None


def edit_rows(rows: Sequence[PatchedRow], start: int, value: Tensor, hook: HookPoint) -> None:
    """Edit an activation in place, each row by itself; it begins at decoder position `start`."""
    first_pos = start if str(hook.name).startswith("decoder") else 0
    for number, row in enumerate(rows):
        row.edit.write_to(value[number : number + 1], hook, first_pos)


def hook_of_rows(rows: Sequence[PatchedRow], start: int, first_row: int = 0) -> HookPair:
    """A hook that edits rows of one name, the first of which is row `first_row` in its pass."""

    def function(value: Tensor, hook: HookPoint) -> Tensor:
        value = value.clone()
        edit_rows(rows, start, value[first_row : first_row + len(rows)], hook)
        return value

    return rows[0].point.name, function
