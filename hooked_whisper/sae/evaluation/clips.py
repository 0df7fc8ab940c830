"""The moments at which latents are most active, over any number of recordings."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hooked_whisper.analysis.top_activations import Moment, top_activations
from hooked_whisper.data.batches import check_batch_size
from hooked_whisper.data.recordings import Recording
from hooked_whisper.data.sources import as_recordings
from hooked_whisper.data.windows import AudioWindow
from hooked_whisper.errors import InputError, check_count, check_number, shown
from hooked_whisper.hooks.splicing import splice_site
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.sae.evaluation.speech_labels import encoder_latents
from hooked_whisper.speech.labels import values_at


@dataclass(frozen=True)
class Clip:
    """A moment at which a latent is active.

    Args:
        latent: Which.
        recording: The number of the recording, from 0.
        name: The recording's file name, or its number.
        start_s: Where the encoder position of the peak begins, in seconds.
        end_s: Where it ends.
        value: How active the latent is there.
        word: What is said there, if that is known.
        text: What is said in the whole recording, if that is known.
        labels: What else is true there: `phone`, `manner`, `speaker`, whatever is known.
    """

    latent: int
    recording: int
    name: str
    start_s: float
    end_s: float
    value: float
    word: str | None = None
    text: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@torch.no_grad()
def top_clips(
    sae: Any,
    model: HookedWhisper,
    recordings: Any,
    latents: int | Sequence[int],
    hook_name: str | None = None,
    *,
    n_top: int = 10,
    least_apart_s: float | int = 0.2,
    all_frames: bool = False,
    batch_size: int = 8,
    progress: bool = True,
) -> dict[int, list[Clip]]:
    """The moments at which latents are most active, each latent's greatest first.

    A batch of recordings is run at a time and only the best moments are
    kept. Moments at which a latent is not active are never among them.

    Args:
        sae: Anything with `encode` and `decode`.
        model: The model.
        recordings: A list of what `model.to_mel` takes, or of anything with such
            a `.path` or `.audio` (and `.text`, `.words`); or a `Mel` of them all.
        latents: Which latents.
        hook_name: What it reads, in the encoder; None is what its configuration says.
        n_top: Moments for each latent, at most.
        least_apart_s: Two moments of one latent in one recording are at least
            so far apart, in seconds.
        all_frames: Look at the padding too.
        batch_size: Recordings side by side.
        progress: Show a progress bar.

    Raises:
        InputError: No such latent, a site in the decoder, nothing asked for.
        SpliceError: The autoencoder does not fit the site.

    Source: the "top activating examples" of Reid 2023.
    """
    site = splice_site(model, sae, hook_name).of_positions()
    listed: Any = latents
    listed = listed.tolist() if isinstance(listed, Tensor) else listed
    chosen = list(listed) if isinstance(listed, Iterable) else [listed]
    if not chosen or not all(type(each) is int and 0 <= each < site.d_sae for each in chosen):
        raise InputError(
            f"latents are {shown(latents)}; this autoencoder has 0 to {site.d_sae - 1}."
        )
    check_count("n_top", n_top, 1, InputError)
    check_number("least_apart_s", least_apart_s, InputError, 0)
    check_batch_size(batch_size)
    found = list(as_recordings(recordings))
    best: list[list[tuple[float, int, float, Clip]]] = [[] for _ in chosen]
    options: dict[str, Any] = {"all_frames": all_frames, "progress": progress}
    for batch, parts in encoder_latents(model, site, found, batch_size, chosen, **options):
        values = pad_sequence(parts, batch_first=True)
        # A window without any speech has no moment; `top_activations` wants one position.
        lengths = batch.mel.n_positions.clamp(min=1)
        moments = top_activations(
            values, lengths, n_top, least_apart_s=least_apart_s, all_frames=all_frames
        )
        for moment in moments:
            window = batch.windows[moment.recording]
            if moment.value <= 0 or not (all_frames or window.n_positions):
                continue
            clip = _clip(chosen[moment.neuron], moment, window, found[window.recording])
            # Of equals the earlier one stays: its negative number is the greater.
            entry = (clip.value, -clip.recording, -clip.start_s, clip)
            heap = best[moment.neuron]
            (heapq.heappush if len(heap) < n_top else heapq.heappushpop)(heap, entry)
    return {
        latent: [clip for _, _, _, clip in sorted(heap, key=lambda entry: entry[:3], reverse=True)]
        for latent, heap in zip(chosen, best, strict=True)
    }


def _clip(latent: int, moment: Moment, window: AudioWindow, recording: Recording) -> Clip:
    number = window.recording
    middle = [(moment.start_s + moment.end_s) / 2]
    words = [(word.start_s, word.end_s, word.word) for word in window.words or ()]
    timed = {name: values_at(pieces, middle)[0] for name, pieces in window.spans.items()}
    known = {"speaker": window.speaker, **timed}
    return Clip(
        latent=latent,
        recording=number,
        name=str(number) if recording.id == f"{number:08d}" else window.name,
        start_s=window.start_s + moment.start_s,
        end_s=window.start_s + moment.end_s,
        value=moment.value,
        word=values_at(words, middle)[0],
        text=recording.text,
        labels={name: str(value) for name, value in known.items() if value is not None},
    )
