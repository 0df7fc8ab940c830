"""How active features are over recordings: kept without the zeros."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from hooked_whisper.analysis.selectivity import ActiveLatents, LatentCollector
from hooked_whisper.data.batches import window_batches
from hooked_whisper.data.forward import collect_rows, row_counts
from hooked_whisper.data.hook_rows import choose_hooks
from hooked_whisper.data.windows import AudioWindow
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InputError
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.reports.sites import FeatureSite, PageOptions
from hooked_whisper.speech.tokens import has_tokenizer


class OneFeature(NamedTuple):
    """Where one feature is not 0, as arrays in the order of time.

    Args:
        vectors: The numbers of the positions, among all that count.
        values: How active it is there.
    """

    vectors: Any
    values: Any


@dataclass(frozen=True, eq=False)
class FeatureActivations:
    """The activations of features over windows, without the zeros.

    Args:
        chosen: Which features of the site, in order.
        windows: What they are of.
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

    @property
    def n_positions(self) -> list[int]:
        """How many positions of each window count."""
        return self.offsets.diff().tolist()

    def of(self, index: int) -> OneFeature:
        """The activations of one chosen feature."""
        start, end = self.active.offsets[index : index + 2].tolist()
        vectors = self.active.vectors[start:end].numpy()
        values = self.active.activations[start:end].numpy()
        order = np.argsort(vectors, kind="stable")
        return OneFeature(vectors[order], values[order])

    def curve(self, feature: OneFeature, window: int, first: int, end: int) -> Tensor:
        """A feature at positions `first` to `end` of a window, zeros included."""
        start = int(self.offsets[window]) - self.first
        a, b = np.searchsorted(feature.vectors, [start + first, start + end])
        found = np.zeros(end - first, dtype=np.float32)
        found[feature.vectors[a:b] - start - first] = feature.values[a:b]
        return torch.from_numpy(found)

    def positive(self) -> ActiveLatents:
        """The activations that are over 0 alone."""
        active, kept = self.active, self.active.activations > 0
        feature = torch.arange(active.d_sae).repeat_interleave(active.n_active)[kept]
        counts = torch.bincount(feature, minlength=active.d_sae)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        vectors, values = active.vectors[kept], active.activations[kept]
        return ActiveLatents(active.n_vectors, offsets, vectors, values)


@torch.no_grad()
def feature_activations(
    site: FeatureSite, windows: list[AudioWindow], options: PageOptions
) -> FeatureActivations:
    """Run the model over windows, and keep what the chosen features do.

    Raises:
        InputError: Activations that are not finite.
    """
    model, collector, lengths = site.model, LatentCollector(), [0]
    all_frames, first = options.all_frames, 0
    if site.stack == "decoder" and not all_frames and has_tokenizer(model.cfg):
        first = model.to_tokens("").shape[1] - 1
    hooks, desc = choose_hooks(model, site.hook_name), f"{site.kind}s"
    with progress_bar(total=len(windows), desc=desc, unit="window", show=options.progress) as bar:
        for batch in window_batches(model, windows, options.batch_size):
            rows = collect_rows(model, hooks, batch.mel, batch.rows, all_frames=all_frames)
            counts = row_counts(batch.mel, batch.rows, all_frames=all_frames)[site.stack]
            of_windows = rows[site.hook_name].split(counts)
            for own, window in zip(of_windows, batch.windows, strict=True):
                [counted] = site.read(own[None, first:], options.chosen)
                if not bool(torch.isfinite(counted).all()):
                    raise InputError(
                        f"{site.hook_name!r} is NaN or infinite in {window.name}; nothing can be "
                        "shown of it."
                    )
                collector.add(counted)
                lengths.append(len(counted))
            bar.update(len(batch))
    offsets = torch.tensor(lengths).cumsum(0)
    is_text = site.stack == "decoder"
    tokens = tuple(window.tokens or () for window in windows) if is_text else ()
    return FeatureActivations(options.chosen, windows, first, offsets, collector.result(), tokens)


def token_names(model: HookedWhisper, tokens: Sequence[int]) -> list[str]:
    """Each token as text; as its number where the vocabulary is not Whisper's."""
    if not tokens:
        return []
    if not has_tokenizer(model.cfg):
        return [str(token) for token in tokens]
    return model.to_str_tokens(list(tokens))
