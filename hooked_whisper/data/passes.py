"""One pass of the model over a batch of windows, and the rows that it leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.data.loading import TextRule
from hooked_whisper.data.sites import RowKind, Site, Sites
from hooked_whisper.hooks.points import is_watched
from hooked_whisper.speech.tokens import get_tokenizer


@dataclass
class Window:
    """A window of a recording on its way through the model.

    Args:
        mel: `[mel frame]`.
        n_frames: Mel frames that hold sound.
        start_s: Where it begins in its recording, in seconds.
        tokens: For the decoder; those that the model writes are put here.
        n_rows: Rows that it has, by their kind.
        text: What the model wrote, where it was asked to.
    """

    mel: Float[Tensor, "mel frame"]
    n_frames: int
    start_s: float
    tokens: tuple[int, ...] | None
    n_rows: dict[RowKind, int]
    text: str | None = None


class RowCollector:
    """The hook that takes the rows of one batch out of an activation.

    The batch may come in parts, one after the other.

    Args:
        site: Where it is hooked.
        counts: Rows of each window.
        dtype: What to keep them in.
        rows: Where they go, by the hook's name.
    """

    def __init__(
        self, site: Site, counts: Sequence[int], dtype: torch.dtype, rows: dict[str, Tensor]
    ) -> None:
        self.site = site
        self.counts = counts
        self.dtype = dtype
        self.rows = rows
        self.n_windows = self.n_rows = 0

    def __call__(self, value: Tensor, *, hook: Any) -> None:
        """Copy the next windows' rows, in their order, into memory of their own."""
        value = value.detach().movedim(self.site.row_axis, 1)
        if not self.n_windows:
            shape = (sum(self.counts), *value.shape[2:])
            self.rows[self.site.name] = torch.empty(shape, dtype=self.dtype, device=value.device)
        for window in value:
            count = self.counts[self.n_windows]
            kept = self.rows[self.site.name][self.n_rows : self.n_rows + count]
            kept.copy_(window[:count])
            self.n_windows, self.n_rows = self.n_windows + 1, self.n_rows + count


@torch.inference_mode()
def run_batch(
    model: Any,
    sites: Sites,
    windows: Sequence[Window],
    dtype: torch.dtype,
    text: TextRule | None,
    options: dict[str, Any],
) -> dict[str, Tensor]:
    """The rows of some windows at every site, one window after the other.

    Args:
        model: A HookedWhisper.
        sites: What to keep; the model runs no further than they need.
        windows: Side by side in one batch; they get their tokens here.
        dtype: What to keep rows in.
        text: Where tokens come from.
        options: For `model.generate`.

    Returns:
        Rows by hook, where the model is.
    """
    rows: dict[str, Tensor] = {}

    def hooks(stack: str) -> list[Any]:
        return [
            (site.name, RowCollector(site, [w.n_rows[site.kind] for w in windows], dtype, rows))
            for site in sites.each
            if site.name.startswith(stack)
        ]

    mel = torch.stack([window.mel for window in windows]).to(model.device, model.dtype)
    last = _block_to_cut(model, sites.stop_encoder)
    with model.hooks(hooks("encoder.")):
        if last is not None:
            _run_by_window(model, mel, windows, last)
            return rows
        stop = None if sites.stop_encoder is None else ("encoder", sites.stop_encoder)
        encoder_output = model(mel, stop_at_layer=stop)
    if text == "transcript":
        _transcribe(model, windows, encoder_output, options)
    if text is not None:
        tokens = _side_by_side(windows, model.device)
        stop = None if sites.stop_decoder is None else ("decoder", sites.stop_decoder)
        with model.hooks(hooks("decoder.")):
            model(None, tokens, None, encoder_output=encoder_output, stop_at_layer=stop)
    return rows


def _block_to_cut(model: Any, stop: int | None) -> int | None:
    """The encoder's last block, where nobody reads more of it than what is kept; else None.

    Not on a GPU, where a batch costs less than its windows, and not where hooks of the
    user's own expect the whole activation.
    """
    if not stop or model.device.type != "cpu":
        return None
    return None if is_watched(*model.encoder.blocks[stop - 1].modules()) else stop - 1


def _run_by_window(model: Any, mel: Tensor, windows: Sequence[Window], last: int) -> None:
    """The encoder through block `last`, that one at the positions that are kept alone.

    These attend to all positions, so that they are what they are in a whole pass.
    """
    resid = model(mel, stop_at_layer=("encoder", last))
    for number, window in enumerate(windows):
        model.encoder.blocks[last](resid[number : number + 1], n_queries=window.n_rows["encoder"])


def _transcribe(
    model: Any, windows: Sequence[Window], encoder_output: Tensor, options: dict[str, Any]
) -> None:
    """Have the model write down the windows; its tokens, without the end, become theirs."""
    generation = model.generate(encoder_output=encoder_output, **options)
    n_prompt, last = generation.n_prompt, model.cfg.n_text_ctx
    eot = get_tokenizer(model.cfg).eot
    for window, row, written in zip(
        windows, generation.tokens.tolist(), generation.texts, strict=True
    ):
        text = row[n_prompt:]
        end = text.index(eot) if eot in text else len(text)
        window.tokens = tuple(row[: n_prompt + end][:last])
        window.n_rows["decoder"] = len(window.tokens)
        window.text = written


def _side_by_side(windows: Sequence[Window], device: torch.device) -> Int[Tensor, "batch pos"]:
    """The windows' tokens, shorter ones filled up: a causal decoder does not see what follows."""
    rows = [window.tokens or () for window in windows]
    width = max(map(len, rows))
    filled = [[*row, *[0] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.int64, device=device)
