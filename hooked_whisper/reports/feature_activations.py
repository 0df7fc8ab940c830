"""How active features are over recordings: kept sparse, and held against labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from hooked_whisper.analysis.selectivity import (
    ActiveLatents,
    Labels,
    LatentCollector,
)
from hooked_whisper.config import FRAMES_PER_POSITION, FRAMES_PER_SECOND
from hooked_whisper.data.batches import WindowBatch, window_batches
from hooked_whisper.data.windows import AudioWindow
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InputError
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.sites import FeatureSite
from hooked_whisper.speech.labels import values_of_steps
from hooked_whisper.speech.tokens import has_tokenizer

POSITION_S = FRAMES_PER_POSITION / FRAMES_PER_SECOND
"""Seconds of one encoder position."""
MOST_VALUES = 200
"""Values of a label that are told apart: the most frequent ones; the rest are `OTHER`."""
OTHER = "(other)"


class Activations(NamedTuple):
    """Where one feature is not 0, as arrays.

    Args:
        vectors: The numbers of the positions, among all that count; rising.
        values: How active it is there.
    """

    vectors: Any
    values: Any


@dataclass(frozen=True, eq=False)
class Measured:
    """The activations of features over windows, without the zeros.

    Args:
        chosen: Which features of the site, in order.
        windows: What was listened to.
        first: The first position of each window that counts: 0, or in the
            decoder the last of the prompt, which writes the first word.
        offsets: Where each window's positions begin among all that count, and
            at the end how many there are.
        active: The activations, feature by feature, least active first.
        tokens: What the decoder read in each window; empty for the encoder.
    """

    chosen: tuple[int, ...]
    windows: list[AudioWindow]
    first: int
    offsets: Int64[Tensor, " window_plus_1"]
    active: ActiveLatents
    tokens: tuple[tuple[int, ...], ...]

    def of(self, place: int) -> "Activations":
        """The activations of one chosen feature, in the order of time."""
        start, end = self.active.offsets[place : place + 2].tolist()
        vectors = self.active.vectors[start:end].numpy()
        values = self.active.activations[start:end].numpy()
        order = np.argsort(vectors, kind="stable")
        return Activations(vectors[order], values[order])

    def positive(self) -> ActiveLatents:
        """The activations that are over 0 alone."""
        active, kept = self.active, self.active.activations > 0
        place = torch.arange(active.d_sae).repeat_interleave(active.n_active)[kept]
        counts = torch.bincount(place, minlength=active.d_sae)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        vectors, values = active.vectors[kept], active.activations[kept]
        return ActiveLatents(active.n_vectors, offsets, vectors, values)


@torch.no_grad()
def measure(
    site: FeatureSite,
    windows: list[AudioWindow],
    chosen: Sequence[int],
    *,
    all_frames: bool = False,
    batch_size: int = 8,
    progress: bool = True,
) -> Measured:
    """Run the model over windows, and keep what its features do.

    Args:
        site: The features.
        windows: What to listen to; for the decoder each with its tokens.
        chosen: Which features.
        all_frames: Count padding too, or in the decoder the prompt.
        batch_size: Windows side by side.
        progress: Show a progress bar.

    Raises:
        InputError: Activations that are not finite.
    """
    model, collector, lengths = site.model, LatentCollector(), []
    first = 0
    if site.stack == "decoder" and not all_frames and has_tokenizer(model.cfg):
        first = model.to_tokens("").shape[1] - 1
    bar = progress_bar(total=len(windows), desc=f"{site.kind}s", unit="window", show=progress)
    with bar:
        for batch in window_batches(model, windows, batch_size):
            values = site.read(_activation(site, batch))[..., list(chosen)]
            for row, window in enumerate(batch.windows):
                last = len(window.tokens or ()) if site.stack == "decoder" else window.n_positions
                if site.stack == "encoder" and all_frames:
                    last = values.shape[1]
                mine = values[row, first:last]
                if not bool(torch.isfinite(mine).all()):
                    raise InputError(
                        f"{site.hook_name!r} is NaN or infinite in {window.name}; nothing can be "
                        "shown of it."
                    )
                collector.add(mine)
                lengths.append(len(mine))
            bar.update(len(batch))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    is_text = site.stack == "decoder"
    tokens = tuple(each.tokens or () for each in windows) if is_text else ()
    return Measured(tuple(chosen), windows, first, offsets, collector.result(), tokens)


def _activation(site: FeatureSite, batch: WindowBatch) -> Tensor:
    """The hook's activation on some windows."""
    tokens = batch.tokens if site.stack == "decoder" else None
    _, cache = site.model.run_with_cache(
        batch.mel, tokens, names_filter=site.hook_name, stop_at_layer=site.stop_at_layer
    )
    return cache[site.hook_name]


def position_labels(measured: Measured, site: FeatureSite) -> list[Labels]:
    """What is known about each position that counts, as labels that can be told.

    Of the recordings: their labels, where some but not all share a value. Of
    encoder positions: labels that change in time, and whether a word is said.
    Of tokens: the one that is read, and the one that comes next.
    """
    windows, lengths = measured.windows, measured.offsets.diff().tolist()
    labels: list[Labels] = []
    if site.stack == "decoder":
        labels += _token_labels(site.model, measured)
    else:
        timed = dict.fromkeys(name for each in windows for name in each.spans)
        for name in timed:
            found = [
                value
                for each, n in zip(windows, lengths, strict=True)
                for value in values_of_steps(each.spans.get(name, ()), n, POSITION_S)
            ]
            labels += _told(name, found)
        if any(each.words for each in windows):
            # Where no word is known of a window, nobody knows whether one is said.
            labels += _told("sound", [
                ("speech" if word else "silence") if each.words else None
                for each, n in zip(windows, lengths, strict=True)
                for word in values_of_steps(each.words, n, POSITION_S)
            ])  # fmt: skip
    constant = dict.fromkeys(name for each in windows for name in each.labels)
    for name in constant:
        by_window = [each.labels.get(name) for each in windows]
        known = Counter(value for value in by_window if value is not None)
        if (
            len(known) > 1
            and max(known.values()) > 1
            and name not in {each.name for each in labels}
        ):
            labels += _told(
                name, [value for value, n in zip(by_window, lengths, strict=True) for _ in range(n)]
            )
    return labels


def _token_labels(model: HookedWhisper, measured: Measured) -> list[Labels]:
    read, following = [], []
    for tokens in measured.tokens:
        names = token_names(model, tokens)
        read += names[measured.first :]
        following += [*names[measured.first + 1 :], "(end)"][: len(names) - measured.first]
    return [*_told("token", read), *_told("next token", following)]


def token_names(model: HookedWhisper, tokens: Sequence[int]) -> list[str]:
    """Each token as text; as its number where the vocabulary is not Whisper's."""
    if not tokens:
        return []
    if not has_tokenizer(model.cfg):
        return [str(token) for token in tokens]
    return model.to_str_tokens(list(tokens))


def _told(name: str, values: list[Any]) -> list[Labels]:
    """A label of every position, none if all are the same; rare values become one."""
    said = [None if value is None else str(value) for value in values]
    counts = Counter(value for value in said if value is not None)
    if len(counts) < 2:
        return []
    if len(counts) > MOST_VALUES:
        kept = {value for value, _ in counts.most_common(MOST_VALUES)}
        said = [value if value is None or value in kept else OTHER for value in said]
    return [Labels.of(name, said)]
