"""What is said when, and by whom: labels of frames, words and recordings, and latents to match."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.analysis.selectivity import (
    ActiveLatents,
    Labels,
    LatentCollector,
    Selectivity,
    Unit,
    selectivity,
)
from hooked_whisper.config import FRAMES_PER_POSITION, POSITION_S
from hooked_whisper.data.batches import WindowBatch, check_batch_size, window_batches
from hooked_whisper.data.forward import collect_rows, row_counts
from hooked_whisper.data.hook_rows import choose_hooks
from hooked_whisper.data.position_labels import position_labels
from hooked_whisper.data.recordings import Recording
from hooked_whisper.data.sources import as_recordings
from hooked_whisper.data.windows import AudioWindow, SkippedRecording, each_window, warn_of_skipped
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InputError
from hooked_whisper.hooks.splice_site import SpliceSite
from hooked_whisper.hooks.splicing import splice_site
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.sae.evaluation.readout import Choice, LabelReadout, readout
from hooked_whisper.speech.labels import steps_within
from hooked_whisper.speech.mel import Mel

Level = Literal["frame", "word", "recording"]


@dataclass(frozen=True, eq=False)
class LatentsBySpeech:
    """The latents of recordings: of every frame, and the greatest in each word and recording.

    A recording that is longer than the model's window counts as one for each window.

    Args:
        windows: What they are of.
        n_positions: How many encoder positions of each count.
        frames: Of these positions, one window after the other.
        words: The greatest within each word, in order.
        whole: The greatest within each window.
    """

    windows: Sequence[AudioWindow]
    n_positions: tuple[int, ...]
    frames: ActiveLatents
    words: ActiveLatents | None
    whole: ActiveLatents

    @property
    def recordings(self) -> Sequence[AudioWindow]:
        """The former name of `windows`."""
        warnings.warn(
            "LatentsBySpeech.recordings is windows now. The old name works for one more release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.windows

    def selectivity(self, level: Level = "frame", unit: Unit = "bits") -> Selectivity:
        """How well each latent tells what is said, who speaks, which word of the text it is.

        Args:
            level: What is told apart. `"frame"`: each frame, by its word;
                frames between words have none, and count for `"silence"` only.
                `"word"`: each word, by its most active frame. `"recording"`:
                the speaker, and which words occur.
            unit: Of mutual information.
        """
        if level not in get_args(Level):
            raise InputError(f"level is {level!r}; it can be {', '.join(get_args(Level))}.")
        if level == "frame":
            return selectivity(self.frames, frame_labels(self.windows, self.n_positions), unit)
        if level == "recording":
            return selectivity(self.whole, recording_labels(self.windows), unit)
        labels = word_labels(self.windows)
        assert self.words is not None
        return selectivity(self.words, labels, unit)

    def readout(
        self, label: str, judged_on: "LatentsBySpeech", choose: Choice = "f1"
    ) -> LabelReadout:
        """The latent that tells each value of a label best here, judged on other recordings.

        Args:
            label: `"phone"`, `"manner"`, `"word"`, `"speaker"`, ...: one of `frame_labels`.
            judged_on: The same autoencoder's latents of recordings that chose nothing.
            choose: By the greatest `"f1"` or `"auroc"`.

        Raises:
            InputError: No such label on one of the sides.
        """
        own, others = self._frame_label(label), judged_on._frame_label(label)
        return readout(self.frames, own, judged_on.frames, others, choose)

    def _frame_label(self, name: str) -> Labels:
        known = {each.name: each for each in frame_labels(self.windows, self.n_positions)}
        if name not in known:
            raise InputError(f"no label {name!r}; there are {', '.join(known)}.")
        return known[name]


@torch.no_grad()
def latents_by_speech(
    sae: Any,
    model: HookedWhisper,
    recordings: Any,
    hook_name: str | None = None,
    *,
    all_frames: bool = False,
    batch_size: int = 8,
    progress: bool = True,
) -> LatentsBySpeech:
    """The latents of recordings at a site of the encoder, to be held against labels.

    Args:
        sae: Anything with `encode` and `decode`.
        model: The model.
        recordings: What `hooked_whisper.data.as_recordings` takes, with a label of the words
            and their times, or of the speaker, or both: `digits.recordings()`.
        hook_name: What it reads; None is what its configuration says.
        all_frames: Count the padding too.
        batch_size: Recordings side by side.
        progress: Show a progress bar.

    Raises:
        InputError: Recordings of which nothing is known, or a site in the decoder.
        SpliceError: The autoencoder does not fit the site.
    """
    check_batch_size(batch_size)
    found = _known(recordings)
    site = splice_site(model, sae, hook_name).of_positions()
    frames, words, whole = LatentCollector(), LatentCollector(), LatentCollector()
    windows: list[AudioWindow] = []
    n_positions: list[int] = []
    has_words = all(recording.words is not None for recording in found)
    options: dict[str, Any] = {"all_frames": all_frames, "progress": progress}
    for batch, of_windows in encoder_latents(model, site, found, batch_size, **options):
        for window, latents in zip(batch.windows, of_windows, strict=True):
            own = latents if all_frames else latents[: window.n_positions]
            windows.append(window)
            n_positions.append(len(own))
            frames.add(own)
            whole.add(own.amax(dim=0, keepdim=True))
            for word in window.words or () if has_words else ():
                steps = steps_within(word, len(latents), POSITION_S)
                words.add(latents[steps.start : steps.stop].amax(dim=0, keepdim=True))
    return LatentsBySpeech(
        windows,
        tuple(n_positions),
        frames.result(),
        words.result() if words.n_vectors else None,
        whole.result(),
    )


def frame_labels(
    recordings: Any, n_positions: Sequence[int] | Int[Tensor, "recording"]
) -> list[Labels]:
    """What is known about each encoder position, of all recordings one after the other.

    Args:
        recordings: What `latents_by_speech` takes, or windows.
        n_positions: How many positions of each count: `mel.n_positions`.

    Returns:
        `"word"`, `"position"` (which word of the text, from 1), whatever else
        changes in time, such as `"phone"`, `"silence"` (whether no word is said
        in the middle of the position), `"speaker"`, and those columns of a
        manifest that a sound may tell, such as `"sex"`. Frames between words
        have no `"word"` and no `"position"`.
    """
    known = _known(recordings)
    lengths = [int(each) for each in n_positions]
    if len(lengths) != len(known):
        raise InputError(f"{len(lengths)} n_positions and {len(known)} recordings.")
    return position_labels(known, lengths)


def word_labels(recordings: Any) -> list[Labels]:
    """What is known about each word of all recordings: `"word"`, `"position"`, `"speaker"`."""
    known = _known(recordings)
    words = [recording.words or () for recording in known]
    if not any(words):
        raise InputError("no recording has words with their times; there is no word to tell.")
    spoken = [word.word for of_one in words for word in of_one]
    place = [i + 1 for of_one in words for i in range(len(of_one))]
    speakers = _speakers(known, [len(of_one) for of_one in words])
    return [Labels.of("word", spoken), Labels.of("position", place), *speakers]


def recording_labels(recordings: Any) -> list[Labels]:
    """What is known about each whole recording: `"speaker"`, and for each word whether it occurs.

    The labels of words are called `"has three"`, with the values `"no"` and `"yes"`.
    """
    known = _known(recordings)
    labels = _speakers(known, [1] * len(known))
    spoken = [{word.word for word in recording.words or ()} for recording in known]
    for word in sorted(set().union(*spoken)):
        has = ["yes" if word in of_one else "no" for of_one in spoken]
        labels.append(Labels.of(f"has {word}", has, ["no", "yes"]))
    return labels


@torch.no_grad()
def encoder_latents(
    model: HookedWhisper,
    site: SpliceSite,
    recordings: Sequence[Recording],
    batch_size: int,
    chosen: Sequence[int] | None = None,
    *,
    all_frames: bool = False,
    progress: bool = True,
) -> Iterator[tuple[WindowBatch, list[Float[Tensor, "pos latent"]]]]:
    """The latents of the windows of recordings, on the CPU, a batch at a time.

    Padding behind the last position of a window that holds sound or a word is left out.

    Args:
        model: The model.
        site: The autoencoder and where it reads; in the encoder.
        recordings: The recordings.
        batch_size: Windows side by side.
        chosen: Some of the latents; None is all.
        all_frames: Keep all padding.
        progress: Show a progress bar.
    """
    if site.stack != "encoder":
        raise InputError(
            f"{site.hook_in!r} is in the decoder, whose positions have no time. Labels of its "
            "tokens go to selectivity(latents, labels)."
        )
    skipped: list[SkippedRecording] = []
    windows = each_window(model.cfg, recordings, skipped)
    total, hooks = len(recordings), choose_hooks(model, site.hook_in)
    with progress_bar(total=total, desc="latents", unit="recording", show=progress) as bar:
        for batch in window_batches(model, windows, batch_size):
            mel = _with_words(batch)
            rows = collect_rows(model, hooks, mel, all_frames=all_frames)[site.hook_in]
            counts = row_counts(mel, all_frames=all_frames)["encoder"]
            yield batch, [site.latents(own[None], chosen)[0] for own in rows.split(counts)]
            bar.update(sum(window.start_s == 0 for window in batch.windows))
    warn_of_skipped(skipped, len(recordings))


def _with_words(batch: WindowBatch) -> Mel:
    """A batch's mels, which hold sound as long as it is there or a word is; one position at least.

    Some files have words that end behind their sound.
    """
    mel = batch.mel
    ends_s = [max((word.end_s for word in each.words or ()), default=0) for each in batch.windows]
    ends = mel.n_frames.new_tensor([ceil(end_s / POSITION_S) for end_s in ends_s])
    frames = FRAMES_PER_POSITION * ends.clamp(min=1)
    return Mel(mel.values, mel.n_frames.maximum(frames.clamp(max=mel.shape[-1])))


def _speakers(known: Sequence[Any], counts: Sequence[int]) -> list[Labels]:
    speakers = [recording.speaker for recording in known]
    each = [speaker for speaker, n in zip(speakers, counts, strict=True) for _ in range(n)]
    return [Labels.of("speaker", each)] if any(name is not None for name in each) else []


def _known(recordings: Any) -> list[Any]:
    """What has words and a speaker: windows as they are, anything else as recordings."""
    if isinstance(recordings, list) and all(isinstance(one, AudioWindow) for one in recordings):
        known: list[Any] = recordings
    else:
        known = list(as_recordings(recordings))
    if not known:
        raise InputError("there are no recordings; pass at least one.")
    for i, recording in enumerate(known):
        timed = recording.spans if isinstance(recording, AudioWindow) else recording.timed
        if recording.words is None and recording.speaker is None and not timed:
            raise InputError(
                f"recording {i} has neither words nor a speaker, so that there is nothing to tell. "
                "Give it a label `speaker`, or words by align_words, align_phones or "
                "add_alignments of hooked_whisper.data."
            )
        for word in recording.words or ():
            if not 0 <= word.start_s < word.end_s:
                raise InputError(
                    f"recording {i}: {word.word!r} is from {word.start_s} to {word.end_s} s, "
                    "which is no stretch of time."
                )
    return known
