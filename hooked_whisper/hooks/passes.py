"""What a hook can know of the forward pass that it fires in.

It is a value that lives as long as the pass: whoever runs blocks says what they
run on, and nothing is left behind for a later pass to find.
"""

from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooked_whisper.interrupts import Temporarily


@dataclass(frozen=True, eq=False)
class PassInfo:
    """One pass through a stack.

    Args:
        first_pos: The decoder position of the first token; above 0 in later steps of decoding.
        n_recordings: In the decoder: recordings that the rows of tokens belong to, in
            equal groups. In beam search, several rows are hypotheses about one.
        n_positions: Encoder positions of each recording that hold sound, the
            rest being padding; the encoder's rows belong to them in equal groups.
    """

    first_pos: int = 0
    n_recordings: int = 1
    n_positions: Int[Tensor, " recording"] | None = None


_NO_PASS = PassInfo()
_present: ContextVar[PassInfo | None] = ContextVar("_present", default=None)


def pass_info() -> PassInfo:
    """The pass that runs now; outside of any, one that knows nothing."""
    return _present.get() or _NO_PASS


def running(info: PassInfo) -> Temporarily[None]:
    """Say what the blocks run on that run inside."""
    return Temporarily(None, lambda: _Running(info))


class _Running:
    """The work of `running`."""

    def __init__(self, info: PassInfo) -> None:
        self.info, self.before = info, _present.get()

    def begin(self) -> None:
        _present.set(self.info)

    def end(self) -> None:
        _present.set(self.before)


def first_positions(
    n_positions: Int[Tensor, " recording"], n_rows: int, n_pos: int
) -> Bool[Tensor, "row pos"]:
    """A mask of the first positions of each row, so many as its recording has.

    Args:
        n_positions: How many; rows belong to recordings in equal groups.
        n_rows: Rows.
        n_pos: Positions of a row.
    """
    counts = n_positions.repeat_interleave(n_rows // len(n_positions))
    return torch.arange(n_pos, device=counts.device) < counts[:, None]
