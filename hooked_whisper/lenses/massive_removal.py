"""What a model does without the massive activations of one hook of its encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hooked_whisper.data import AudioWindow, window_batches
from hooked_whisper.data.batches import pad_tokens, text_row, written_rows
from hooked_whisper.display import progress_bar
from hooked_whisper.hooks.passes import first_positions
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import get_tokenizer, has_tokenizer
from hooked_whisper.speech.wer import word_error_rate

Remove = Callable[[Tensor, Bool[Tensor, "batch pos"]], Tensor]
"""An activation, and where it is massive -> the same without."""

UNCHANGED = "nothing"


@dataclass(frozen=True)
class MassiveRemoval:
    """What happened without them, over the windows that have some.

    Args:
        loss: Mean cross-entropy of a token of the text, in nats: that which is said, or else
            the model's own.
        kl_divergence: Mean divergence, at these tokens, from the model as it is, in nats.
        wer: Word error rate of the transcripts to what is said (`"english"` normalisation);
            None where it is not known or nothing was transcribed.
        wer_to_model: The same to the model's own transcripts.
        n_changed: Transcripts with other words than the model's own.
        n_windows: Windows.
    """

    loss: float
    kl_divergence: float
    wer: float | None
    wer_to_model: float | None
    n_changed: int | None
    n_windows: int


def ways_of(
    limit: float,
    mean: Float[Tensor, " d_model"],
    dimensions: Int64[Tensor, " chosen"],
    seed: int,
) -> dict[str, Remove | None]:
    """Each way of removing, by its name; the first leaves all as it is."""
    generator = torch.Generator().manual_seed(seed)

    def put_mean(value: Tensor, massive: Tensor) -> Tensor:
        return torch.where(massive[..., None], mean.to(value), value)

    def clip(value: Tensor, massive: Tensor) -> Tensor:
        factor = (limit / value.norm(dim=-1, keepdim=True)).clamp(max=1)
        return torch.where(massive[..., None], value * factor, value)

    def mean_of_dimensions(value: Tensor, massive: Tensor) -> Tensor:
        is_chosen = torch.zeros_like(mean, dtype=torch.bool)
        is_chosen[dimensions] = True
        there = massive[..., None] & is_chosen.to(massive.device)
        return torch.where(there, mean.to(value), value)

    def zero_dimensions(value: Tensor, massive: Tensor) -> Tensor:
        value = value.clone()
        value[..., dimensions] = 0
        return value

    def zero_others(value: Tensor, massive: Tensor) -> Tensor:
        """As many positions of each window that are not massive, drawn among its first ones."""
        value = value.clone()
        for row, own in zip(value, massive, strict=True):
            last = int(own.nonzero().max()) + 1 if bool(own.any()) else 0
            free = (~own[: max(last, 2 * int(own.sum()))]).nonzero()[:, 0].cpu()
            drawn = free[torch.randperm(len(free), generator=generator)[: int(own.sum())]]
            row[drawn] = 0
        return value

    return {
        UNCHANGED: None,
        "positions zeroed": lambda value, massive: value * ~massive[..., None],
        "positions at the mean": put_mean,
        "positions clipped": clip,
        "dimensions at the mean there": mean_of_dimensions,
        "dimensions zeroed everywhere": zero_dimensions,
        "as many other positions zeroed": zero_others,
    }


def removals_of(
    model: HookedWhisper,
    windows: Sequence[AudioWindow],
    hook_name: str,
    limit: float,
    mean: Float[Tensor, " d_model"],
    dimensions: Int64[Tensor, " chosen"],
    *,
    transcripts: bool,
    batch_size: int,
    seed: int,
    progress: bool,
) -> dict[str, MassiveRemoval]:
    """What the model does with each removal; windows are those that have massive positions.

    Args:
        model: The model.
        windows: The windows.
        hook_name: The hook.
        limit: The length over which a vector is massive.
        mean: Of all other vectors.
        dimensions: The largest ones of massive vectors.
        transcripts: Whether to transcribe too.
        batch_size: Windows side by side.
        seed: Of what is removed for comparison.
        progress: Show a bar.
    """
    if not has_tokenizer(model.cfg):
        return {}
    ways = ways_of(limit, mean, dimensions, seed)
    sums = {name: _Sums() for name in ways}
    total = len(ways) * len(windows)
    with progress_bar(total=total, desc="removing", unit="window", show=progress) as bar:
        for batch in window_batches(model, windows, batch_size):
            clean = None
            rows: list[list[int]] = []
            for name, remove in ways.items():
                output = _encoded(model, batch.mel, hook_name, limit, remove)
                texts, own = [], []
                if transcripts or clean is None:
                    written = model.generate(encoder_output=output)
                    texts, own = list(written.texts), written_rows(written, model.cfg)
                if not rows:
                    rows = _rows(model, batch.windows, own)
                logits = _logits(model, output, rows)
                clean = logits if clean is None else clean
                sums[name].add(logits, clean, rows, _start(model))
                sums[name].texts += texts if transcripts else []
                bar.update(len(batch))
    said = [window.text for window in windows]
    own_texts = sums[UNCHANGED].texts
    return {name: each.result(said, own_texts, len(windows)) for name, each in sums.items()}


def _encoded(
    model: HookedWhisper, mel: Mel, hook_name: str, limit: float, remove: Remove | None
) -> Tensor:
    """The encoder's output with massive vectors of the sound removed at a hook."""
    if remove is None:
        return model.encoder(mel)

    def hook(value: Tensor, hook: Any) -> Tensor:
        is_sound = first_positions(mel.n_positions, *value.shape[:2])
        return remove(value, is_sound & (value.norm(dim=-1) > limit))

    with model.hooks([(hook_name, hook)]):
        return model.encoder(mel)


def _start(model: HookedWhisper) -> int:
    """Tokens of the prompt."""
    return len(text_row("", model.cfg))


def _rows(
    model: HookedWhisper, windows: Sequence[AudioWindow], own: Sequence[Sequence[int]]
) -> list[list[int]]:
    """What is said in each window, or what the model wrote, with the prompt and the end."""
    eot = get_tokenizer(model.cfg).eot
    return [
        [*row, eot] if window.text is None else text_row(window.text, model.cfg, append_eot=True)
        for window, row in zip(windows, own, strict=True)
    ]


def _logits(
    model: HookedWhisper, output: Tensor, rows: Sequence[Sequence[int]]
) -> Float[Tensor, "batch pos vocab"]:
    return model(None, pad_tokens(rows, model.device)[:, :-1], encoder_output=output)


class _Sums:
    """Loss, divergence and texts of one removal."""

    def __init__(self) -> None:
        self.loss = self.kl = 0.0
        self.n = 0
        self.texts: list[str] = []

    def add(self, logits: Tensor, clean: Tensor, rows: Sequence[Sequence[int]], start: int) -> None:
        """Take in a batch; the first `start` tokens of a row are its prompt."""
        logprobs, before = logits.float().log_softmax(-1), clean.float().log_softmax(-1)
        for row, own, its in zip(rows, logprobs, before, strict=True):
            there = slice(start - 1, len(row) - 1)
            targets = torch.tensor(row[start:], device=own.device)
            self.loss += float(F.nll_loss(own[there], targets, reduction="sum"))
            divergence = its[there].exp() * (its[there] - own[there])
            self.kl += float(divergence.sum())
            self.n += len(targets)

    def result(self, said: Sequence[str | None], own: Sequence[str], n: int) -> MassiveRemoval:
        """The means; `own` is what the model writes by itself."""
        wer = to_model = n_changed = None
        if self.texts:
            to_model = word_error_rate(own, self.texts, "english")
            pairs = zip(own, self.texts, strict=True)
            n_changed = sum(word_error_rate([a], [b], "english") != 0 for a, b in pairs)
            if all(text is not None for text in said):
                wer = word_error_rate([text or "" for text in said], self.texts, "english")
        return MassiveRemoval(self.loss / self.n, self.kl / self.n, wer, to_model, n_changed, n)
