"""From where on the encoder is run where other values replace its own."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig

KEPT_BYTES = 512 << 20
"""Of encoder outputs and streams that are kept from one time through the recordings to the next."""


class Encoded(NamedTuple):
    """What the encoder made of a batch.

    Args:
        output: What the decoder reads.
        values: Activations by their hooks.
    """

    output: Tensor
    values: Mapping[str, Tensor]


class Kept:
    """What the encoder made of batches, for the second time through the recordings.

    Args:
        streams: The activations that are kept beside its output.
    """

    def __init__(self, streams: set[str]) -> None:
        self.streams = streams
        self._found: dict[int, Encoded] = {}
        self._n_bytes = 0

    def add(self, number: int, encoded: Encoded) -> None:
        """Keep what was made of a batch, as long as there is room."""
        values = {name: encoded.values[name] for name in self.streams}
        n_bytes = sum(each.nbytes for each in (encoded.output, *values.values()))
        if self._n_bytes + n_bytes <= KEPT_BYTES:
            self._found[number] = Encoded(encoded.output, values)
            self._n_bytes += n_bytes

    def take(self, number: int) -> Encoded | None:
        """What was kept of a batch, once."""
        return self._found.pop(number, None)


class Resume(NamedTuple):
    """A place at which the encoder is gone on from.

    Args:
        stream: The hook of the residual stream there.
        block: The first block that runs; their number where none does.
        is_behind: It is this stream that is replaced, so that no hooks are needed.
    """

    stream: str
    block: int
    is_behind: bool = False


def resume_of(hook_in: str, hook_out: str, cfg: HookedWhisperConfig) -> Resume | None:
    """The last place before an activation; None in the decoder, and before the first block.

    Args:
        hook_in: What is read.
        hook_out: What is replaced.
        cfg: Of the model.
    """
    if hook_in == hook_out:
        behind = re.fullmatch(r"encoder\.blocks\.(\d+)\.hook_resid_post", hook_in)
        if behind:
            return Resume(hook_in, int(behind[1]) + 1, is_behind=True)
    blocks = [_block_of(name, cfg) for name in (hook_in, hook_out)]
    known = [block for block in blocks if block is not None]
    if len(known) < len(blocks):
        return None
    block, last = min(known), cfg.n_audio_layers
    if block == last:
        return Resume(f"encoder.blocks.{last - 1}.hook_resid_post", last)
    return Resume(f"encoder.blocks.{block}.hook_resid_pre", block)


def _block_of(name: str, cfg: HookedWhisperConfig) -> int | None:
    """The encoder's block that a hook is in; their number for the norm behind the last."""
    if name.startswith("encoder.ln_final."):
        return cfg.n_audio_layers
    found = re.match(r"encoder\.blocks\.(\d+)\.", name)
    return int(found[1]) if found else None
