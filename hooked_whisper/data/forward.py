"""One pass of the model over windows side by side, and the rows that it leaves."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import Stack
from hooked_whisper.data.batches import pad_tokens
from hooked_whisper.data.hook_rows import RowHook, RowHooks, RowKind
from hooked_whisper.hooks.passes import PassInfo, running
from hooked_whisper.hooks.points import is_watched
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel

TokenRows = Sequence[Sequence[int]]


class RowCollector:
    """The hook that takes the rows of one batch out of an activation.

    The batch may come in parts, one after the other.

    Args:
        hook: Where it is hooked.
        counts: Rows of each window.
        dtype: What to keep them in.
        rows: Where they go, by the hook's name.
    """

    def __init__(
        self, hook: RowHook, counts: Sequence[int], dtype: torch.dtype, rows: dict[str, Tensor]
    ) -> None:
        self.row_hook = hook
        self.counts = counts
        self.dtype = dtype
        self.rows = rows
        self.n_windows = self.n_rows = 0

    def __call__(self, value: Tensor, *, hook: Any) -> None:
        """Copy the next windows' rows, in their order, into memory of their own."""
        value = value.detach().movedim(self.row_hook.row_axis, 1)
        if not self.n_windows:
            shape = (sum(self.counts), *value.shape[2:])
            self.rows[self.row_hook.name] = torch.empty(
                shape, dtype=self.dtype, device=value.device
            )
        for window in value:
            count = self.counts[self.n_windows]
            kept = self.rows[self.row_hook.name][self.n_rows : self.n_rows + count]
            kept.copy_(window[:count])
            self.n_windows, self.n_rows = self.n_windows + 1, self.n_rows + count


def row_counts(
    mel: Mel, rows: TokenRows = (), *, all_frames: bool = False
) -> dict[RowKind, list[int]]:
    """How many rows of each kind each window gives: those of sound, or of the whole window."""
    frames = torch.full_like(mel.n_frames, mel.shape[-1]) if all_frames else mel.n_frames
    used = Mel(mel.values, frames)
    return {
        "encoder": used.n_positions.tolist(),
        "frame": frames.tolist(),
        "decoder": [len(row) for row in rows],
    }


@torch.inference_mode()
def collect_rows(
    model: HookedWhisper,
    hooks: RowHooks,
    mel: Mel,
    rows: TokenRows | Callable[[Float[Tensor, "batch pos d_model"]], TokenRows] = (),
    *,
    all_frames: bool = False,
    n_padding: int | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The rows of some windows at every hook, one window after the other.

    Args:
        model: The model, with whatever hooks and splices it has.
        hooks: What to keep; the model runs no further than they need.
        mel: Of the windows.
        rows: The tokens of each, for hooks in the decoder; or what makes them of
            the encoder's output.
        all_frames: Keep the padding of the window too.
        n_padding: Positions of padding that the encoder's blocks see behind each sound: an
            approximation, for hooks of the encoder alone. None is the whole window.
        dtype: What to keep rows in; None is the model's.

    Returns:
        Rows by hook, where the model is.
    """
    found: dict[str, Tensor] = {}
    dtype = dtype or model.dtype

    def collectors(stack: str, counts: dict[RowKind, list[int]]) -> list[Any]:
        return [
            (hook.name, RowCollector(hook, counts[hook.kind], dtype, found))
            for hook in hooks.each
            if hook.name.startswith(stack)
        ]

    counts = row_counts(mel, all_frames=all_frames)
    last = _block_to_cut(model, hooks.stop_encoder)
    with model.hooks(collectors("encoder.", counts)):
        if last is not None or n_padding is not None:
            _run_by_window(model, mel, counts["encoder"], hooks.stop_encoder, last, n_padding)
            return found
        encoder_output = model(mel, stop_at_layer=_stop("encoder", hooks.stop_encoder))
    if hooks.needs_tokens:
        rows = rows(encoder_output) if callable(rows) else rows
        counts = row_counts(mel, rows, all_frames=all_frames)
        tokens = pad_tokens(rows, model.device)
        stop = _stop("decoder", hooks.stop_decoder)
        with model.hooks(collectors("decoder.", counts)):
            model(None, tokens, None, encoder_output=encoder_output, stop_at_layer=stop)
    return found


def _stop(stack: Stack, layer: int | None) -> tuple[Stack, int] | None:
    return None if layer is None else (stack, layer)


def _block_to_cut(model: HookedWhisper, stop: int | None) -> int | None:
    """The encoder's last block, where nobody reads more of it than what is kept; else None.

    Not on a GPU, where a batch costs less than its windows, and not where hooks of the
    user's own expect the whole activation.
    """
    if not stop or model.device.type != "cpu":
        return None
    return None if is_watched(*model.encoder.blocks[stop - 1].modules()) else stop - 1


def _run_by_window(
    model: HookedWhisper,
    mel: Mel,
    counts: Sequence[int],
    stop: int | None,
    last: int | None,
    n_padding: int | None,
) -> None:
    """The encoder as far as block `stop`, window by window from where something is left out.

    Args:
        model: The model.
        mel: Of the windows.
        counts: Positions of each that are kept.
        stop: The first block not to run; None runs all.
        last: The block that is run at the positions that are kept alone, which attend to all
            others, so that they are what they are in a whole pass; None for none.
        n_padding: Positions behind these that all blocks see; None is all, side by side.
    """
    encoder, first = model.encoder, 0 if last is None or n_padding is not None else last
    resid = model(mel, stop_at_layer=("encoder", first))
    for number, count in enumerate(counts):
        seen = None if n_padding is None else count + n_padding
        with running(PassInfo(n_positions=mel.n_positions[number : number + 1])):
            window = resid[number : number + 1, :seen]
            window = encoder.run_blocks(window, start=first, stop=stop if last is None else last)
            if last is not None:
                encoder.blocks[last](window, n_queries=count)
            elif stop is None:
                encoder.finish(window)
