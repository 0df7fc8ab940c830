"""Which seconds of the recording wrote a token's logit, through which cross-attention head.

A head writes its pattern's mix of the values of all keys, so that what it adds
to a logit is a sum over the encoder's positions, and over windows of time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION, POSITION_S, POSITIONS_PER_SECOND
from hooked_whisper.errors import InputError, check_index, shown
from hooked_whisper.lenses.cached_run import Positions, Source, Tokens, last_stream, open_run
from hooked_whisper.lenses.direct_attribution import Component, logit_path, texts_of_rows
from hooked_whisper.model.whisper import HookedWhisper

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

Window = tuple[float, float]


@dataclass(frozen=True, eq=False)
class SourceAttribution:
    """What each cross-attention head adds to a logit, by the time of the recording it read.

    Args:
        heads: The heads, layer by layer.
        windows_s: Start and end of each window, in seconds; they do not overlap.
        values: What each head adds from each window.
        rest: What it adds from outside of the windows, the padding for instance.
        positions: Decoder positions.
        targets: The tokens whose logits these are.
        versus: The tokens whose logits are subtracted, if any.
        target_texts: The targets of each row, readable.
    """

    heads: tuple[Component, ...]
    windows_s: tuple[Window, ...]
    values: Float[Tensor, "head window batch pos"]
    rest: Float[Tensor, "head batch pos"]
    positions: tuple[int, ...]
    targets: Int[Tensor, "batch pos"]
    versus: Int[Tensor, "batch pos"] | None
    target_texts: tuple[tuple[str, ...], ...]

    @property
    def labels(self) -> list[str]:
        """A short name for each head: `"L2X1"`."""
        return [head.label for head in self.heads]

    @property
    def head_values(self) -> Float[Tensor, "head batch pos"]:
        """What each head adds in all: its term of `direct_attribution(..., by="head")`."""
        return self.values.sum(dim=1) + self.rest

    @property
    def window_values(self) -> Float[Tensor, "window batch pos"]:
        """What all heads together add from each window."""
        return self.values.sum(dim=0)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One line for each head, window, row and position; the rest has no start and end."""
        import pandas as pd

        windows_s = [*self.windows_s, (float("nan"), float("nan"))]
        lines = product(self.labels, windows_s, range(len(self.targets)), self.positions)
        frame = pd.DataFrame(
            [(head, *window_s, row, pos) for head, window_s, row, pos in lines],
            columns=["head", "start_s", "end_s", "batch", "pos"],
        )
        texts = [text for row in self.target_texts for text in row]
        frame["target"] = texts * (len(self.heads) * len(windows_s))
        frame["value"] = torch.cat([self.values, self.rest[:, None]], dim=1).flatten().tolist()
        return frame

    def plot(
        self,
        row: int = 0,
        *,
        spans_s: Sequence[tuple[float, float, str]] = (),
        title: str = "",
    ) -> "matplotlib.figure.Figure":
        """What all heads together add to each position's target, against the recording's time.

        Args:
            row: Row of the batch.
            spans_s: Start, end and name of what was spoken, in seconds.
        """
        from hooked_whisper.figures.lenses import plot_sources

        check_index("row", row, len(self.targets), InputError)
        what = "logit" if self.versus is None else "difference of logits"
        return plot_sources(
            self.window_values[:, row].T,
            self.windows_s,
            self.target_texts[row],
            label=f"added to the {what}",
            spans_s=spans_s,
            title=title,
        )


@torch.no_grad()
def source_attribution(
    model: HookedWhisper,
    source: Source,
    tokens: Int[Tensor, "batch pos"] | None = None,
    *,
    windows_s: float | int | Sequence[Window] = 0.5,
    targets: Tokens | None = None,
    versus: Tokens | None = None,
    pos: Positions | None = None,
) -> SourceAttribution:
    """What each cross-attention head adds to a logit from each window of the recording.

    Args:
        model, source, tokens, targets, versus, pos: As in `direct_attribution`.
        windows_s: A width in seconds, to divide the recording's sound by (all
            of the window where its length is not known, of several recordings
            the longest's); or starts and ends, for instance of words.

    Raises:
        InputError: Windows outside of the recording, empty or overlapping; the others are
            `direct_attribution`'s.
    """
    n_frames = getattr(source.cache if hasattr(source, "cache") else source, "n_frames", None)
    windows = _windows(model, windows_s, n_frames)
    key_ranges = [_key_range(window) for window in windows]
    layers = range(model.cfg.n_text_layers)
    hooks = [f"decoder.blocks.{layer}.cross_attn.hook_" for layer in layers]
    names = [last_stream(model), "decoder.ln_final.hook_scale"]
    names += [hook + name for hook in hooks for name in ("pattern", "v")]
    run = open_run(model, source, tokens, names, pos, targets, versus)
    path = logit_path(model, run)
    values, rest, heads = [], [], []
    block: Any
    for layer, block in enumerate(model.decoder.blocks):
        by_key = _by_key(
            run.cache[hooks[layer] + "pattern"][:, :, list(run.positions)].float(),
            run.cache[hooks[layer] + "v"].float(),
            block.cross_attn.W_O.float(),
            path.direction,
        )
        inside = torch.stack([by_key[..., start:end].sum(dim=-1) for start, end in key_ranges])
        values.append(inside.permute(2, 0, 1, 3))
        rest.append((by_key.sum(dim=-1) - inside.sum(dim=0)).transpose(0, 1))
        heads += [
            Component(f"L{layer}X{head}", "cross_attn", layer, head)
            for head in range(model.cfg.n_text_heads)
        ]
    return SourceAttribution(
        heads=tuple(heads),
        windows_s=tuple(windows),
        values=torch.cat(values),
        rest=torch.cat(rest),
        positions=run.positions,
        targets=path.targets,
        versus=run.versus,
        target_texts=texts_of_rows(model, path.targets),
    )


def _by_key(
    pattern: Float[Tensor, "batch head query key"],
    v: Float[Tensor, "audio_batch key head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    direction: Float[Tensor, "batch query d_model"],
) -> Float[Tensor, "batch head query key"]:
    """What each head adds to the logit from each key; never `[query key d_model]` in memory."""
    read = torch.einsum("hdm,bqm->bhqd", W_O, direction)
    return pattern * (read @ v.permute(0, 2, 3, 1))


def _windows(
    model: HookedWhisper, windows_s: float | int | Sequence[Window], n_frames: Tensor | None
) -> list[Window]:
    """Starts and ends, in order of time, that lie in the model's window and do not overlap."""
    whole_s = model.cfg.window_s
    if isinstance(windows_s, int | float):
        # A part of a step of 20 ms would not divide the time evenly.
        if not POSITION_S <= windows_s <= whole_s:
            raise InputError(
                f"windows_s is {windows_s} s; a width can be {POSITION_S} to {whole_s} s."
            )
        step = round(windows_s * POSITIONS_PER_SECOND)
        n = model.cfg.n_audio_ctx
        if n_frames is not None:
            n = max(1, -(-int(n_frames.max()) // FRAMES_PER_POSITION))
        ranges = [(start, min(start + step, n)) for start in range(0, n, step)]
        return [(a / POSITIONS_PER_SECOND, b / POSITIONS_PER_SECOND) for a, b in ranges]
    try:
        chosen = [(float(start), float(end)) for start, end in windows_s]
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"windows_s is {shown(windows_s)}; give a width, or starts and ends in seconds."
        ) from error
    if not chosen:
        raise InputError("windows_s is empty; give a width, or starts and ends in seconds.")
    for start_s, end_s in chosen:
        if not 0 <= start_s < end_s <= whole_s:
            raise InputError(
                f"the window is {start_s} to {end_s} s; it must lie in 0 to {whole_s} s and end "
                "after it starts."
            )
    ordered = sorted(chosen)
    for first, second in pairwise(ordered):
        if _key_range(second)[0] < _key_range(first)[1]:
            raise InputError(
                f"the windows {first} and {second} s overlap, so that their shares would not add "
                "up. Make them end where the next one starts, in steps of 20 ms."
            )
    return chosen


def _key_range(window_s: Window) -> tuple[int, int]:
    """First encoder position of a window and the first one after it; at least one."""
    start = round(window_s[0] * POSITIONS_PER_SECOND)
    return start, max(start + 1, round(window_s[1] * POSITIONS_PER_SECOND))
