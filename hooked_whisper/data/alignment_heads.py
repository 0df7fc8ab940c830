"""Which heads of cross-attention follow the speech, found out for any model."""

import difflib
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper import io
from hooked_whisper.config import POSITIONS_PER_SECOND
from hooked_whisper.data.labelling import ReadText, align_words, read_text
from hooked_whisper.data.recordings import Recording, reason_of
from hooked_whisper.data.sources import as_recordings
from hooked_whisper.data.windows import mel_of
from hooked_whisper.display import box, facts, picture, progress_bar
from hooked_whisper.errors import LabelError, RecordingsError, shown
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.alignment import align, timing_weights
from hooked_whisper.speech.phone_alignment import words_of
from hooked_whisper.speech.tokens import get_tokenizer
from hooked_whisper.weights.alignment_heads import pack_heads

if TYPE_CHECKING:
    import matplotlib.figure

Head = tuple[int, int]
"""Layer and head."""

MOST_CANDIDATES = 16
"""Heads of the best scores among which a set is chosen."""
LEAST_GAIN_S = 0.001
"""By how much one more head must bring the words' starts nearer."""


@dataclass(frozen=True, eq=False)
class AlignmentHeads:
    """The heads that follow the speech, and how well each does.

    Args:
        mask: The chosen ones.
        scores: Attention within the word, at the query that predicts it: mean over the words'
            tokens, in standard deviations from the head's mean over all tokens.
        errors_s: How far the starts of words are from their times where a head alone tells
            them: mean, in seconds.
        error_s: The same by the chosen heads together.
        model_error_s: The same by the model's own `alignment_heads`.
        n_words: Words that were compared.
        times: Where their times came from: `"labels"`, or the `"model"` itself.
        model_name: Whose heads these are.
    """

    mask: Bool[Tensor, "layer head"]
    scores: Float[Tensor, "layer head"]
    errors_s: Float[Tensor, "layer head"]
    error_s: float
    model_error_s: float
    n_words: int
    times: Literal["labels", "model"]
    model_name: str

    @property
    def pairs(self) -> list[list[int]]:
        """Layer and head of each, as transformers, faster-whisper and CTranslate2 list them."""
        pairs: list[list[int]] = self.mask.nonzero().tolist()
        return pairs

    def to_openai(self) -> bytes:
        """OpenAI's form: `model.set_alignment_heads(...)` of openai-whisper takes it."""
        return pack_heads(self.mask)

    def to_huggingface(self) -> dict[str, list[list[int]]]:
        """What goes into `generation_config.json`."""
        return {"alignment_heads": self.pairs}

    def to_whisper_cpp(self) -> str:
        """whisper.cpp's list of `whisper_ahead`, for `WHISPER_AHEADS_CUSTOM`."""
        return "{ " + ", ".join(f"{{{layer}, {head}}}" for layer, head in self.pairs) + " }"

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            **self.to_huggingface(),
            "openai": self.to_openai().decode(),
            "whisper_cpp": self.to_whisper_cpp(),
            "model": self.model_name,
            "times": self.times,
            "n_words": self.n_words,
            "error_s": self.error_s,
            "model_error_s": self.model_error_s,
            "scores": self.scores.tolist(),
            "errors_s": self.errors_s.tolist(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, which `from_pretrained(..., alignment_heads=path)` takes.

        Raises:
            StoreWriteError: It cannot be written.
        """
        io.write_json(Path(path).expanduser(), self.to_dict())

    def plot(self) -> "matplotlib.figure.Figure":
        """Every head's score."""
        from hooked_whisper.figures import plot_head_scores

        label = "attention to the word (standard deviations)"
        return plot_head_scores(self.scores, label=label, title=self._names())

    def __repr__(self) -> str:
        return (
            f"AlignmentHeads({self._names()}; word starts off by {1000 * self.error_s:.0f} ms, by "
            f"the model's own heads {1000 * self.model_error_s:.0f} ms; {self.n_words} words, "
            f"times from {self.times})"
        )

    def _repr_html_(self) -> str:
        about = {
            "word starts off by (s)": self.error_s,
            "by the model's own heads (s)": self.model_error_s,
            "words": self.n_words,
            "their times from": self.times,
            "whisper.cpp": self.to_whisper_cpp(),
        }
        heat = picture(self.plot(), "The score of every head")
        return box("Alignment heads", self._names(), facts(about), heat)

    def _names(self) -> str:
        return f"{self.model_name}: " + ", ".join(f"{layer}.{head}" for layer, head in self.pairs)


@torch.no_grad()
def find_alignment_heads(
    model: HookedWhisper, recordings: Any, *, language: str | None = None, progress: bool = True
) -> AlignmentHeads:
    """The heads of cross-attention from which the times of words are best read.

    Each head is scored by how much of what word timing reads of it lies within the word, at the
    query that predicts the word. Of the best ones, at most 16, a set is grown head by head, as
    long as dynamic time warping over all of them brings the starts of words a millisecond nearer.
    Where no recording has times, the model's own word timing gives them: the heads then agree with
    each other rather than with the truth, and those of half the best score or more are taken.

    Args:
        model: Left as it is; `model.set_alignment_heads(found)` takes the result.
        recordings: What `as_recordings` takes; with words and their times as a label, which
            `align_phones` and `add_alignments` make. 20 with 100 words do; choose them like
            what you want to time.
        language: Of the texts, as in `align_words`.
        progress: Show a progress bar.

    Raises:
        RecordingsError: No recording, or none that can be used.
        TokenError: A vocabulary that is not Whisper's, or a language that it does not have.

    Source: the scores are `whisper.timing.find_alignment`'s weights; OpenAI says of its own lists
    that these heads are "highly correlated to the word-level timing".
    """
    get_tokenizer(model.cfg, language)
    found = list(as_recordings(recordings))
    times: Literal["labels", "model"] = "labels" if any(each.words for each in found) else "model"
    if times == "model":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="no alignment heads are known")
            found = align_words(model, found, language=language, progress=progress)
    clips = _read_all(
        model, progress_bar(found, desc="listening", unit="recording", show=progress), language
    )
    cfg = model.cfg
    every = list(product(range(cfg.n_text_layers), range(cfg.n_text_heads)))
    own: list[Head] = [(at, head) for at, head in model.alignment_heads.indices().T.tolist()]

    scores, errors = torch.zeros(len(every)), torch.zeros(len(every))
    for clip in clips:
        weights = _weights(model, clip, every)
        scores += clip.within(weights)
        errors += torch.tensor([clip.errors_s(each).sum() for each in weights])
    n_words = sum(len(clip.words) for clip in clips)
    scores /= sum(after - first for clip in clips for first, after, *_ in clip.words)

    order = [every[i] for i in scores.argsort(descending=True).tolist()]
    best = [head for head in order[:MOST_CANDIDATES] if scores[every.index(head)] > 0] or order[:1]
    if times == "model":
        best = [head for head in order if 2 * scores[every.index(head)] >= scores.max()]
    heads = sorted({*best, *own})
    kept = [dict(zip(heads, _weights(model, clip, heads), strict=True)) for clip in clips]

    def error_s(together: Sequence[Head]) -> float:
        """Of the starts of words by these heads together."""
        sums = (torch.stack([weights[head] for head in together]).sum(dim=0) for weights in kept)
        off = sum(float(clip.errors_s(w).sum()) for clip, w in zip(clips, sums, strict=True))
        return off / n_words

    chosen = best if times == "model" else _grow(best, error_s)
    mask = torch.zeros(cfg.n_text_layers, cfg.n_text_heads, dtype=torch.bool)
    mask[tuple(torch.tensor(chosen).T)] = True
    return AlignmentHeads(
        mask=mask,
        scores=scores.view_as(mask),
        errors_s=(errors / n_words).view_as(mask),
        error_s=error_s(chosen),
        model_error_s=error_s(own),
        n_words=n_words,
        times=times,
        model_name=cfg.model_name,
    )


def _grow(candidates: Sequence[Head], error_s: Any) -> list[Head]:
    """Head by head, each time the one with which the error is least, while it falls."""
    chosen: list[Head] = []
    least = float("inf")
    while rest := [head for head in candidates if head not in chosen]:
        error, head = min((error_s([*chosen, head]), head) for head in rest)
        if error > least - LEAST_GAIN_S:
            break
        chosen.append(head)
        least = error
    return chosen


@dataclass(frozen=True)
class _Clip:
    """A recording whose words have times.

    Args:
        text: What the decoder reads.
        words: Of each, the row that predicts its first token, the one behind its last, and its
            start and end in seconds. Rows are counted from the one that predicts the text's first.
        heard: The encoder's output.
    """

    text: ReadText
    heard: Float[Tensor, "one pos d_model"] = field(repr=False)
    words: list[tuple[int, int, float, float]] = field(repr=False)

    def within(self, weights: Float[Tensor, "head token pos"]) -> Float[Tensor, " head"]:
        """Each head's mean weight within the word, summed over the tokens of all words."""
        total = torch.zeros(len(weights))
        for first, after, start_s, end_s in self.words:
            start = min(int(start_s * POSITIONS_PER_SECOND), weights.shape[-1] - 1)
            stop = max(start + 1, round(end_s * POSITIONS_PER_SECOND))
            total += weights[:, first:after, start:stop].mean(dim=-1).sum(dim=-1)
        return total

    def errors_s(self, weights: Float[Tensor, "token pos"]) -> Float[Tensor, " word"]:
        """How far the start of each word is from its time."""
        starts = torch.tensor(align(weights)) / POSITIONS_PER_SECOND
        rows = [first for first, *_ in self.words]
        return (starts[rows] - torch.tensor([start_s for *_, start_s, _ in self.words])).abs()


def _read_all(
    model: HookedWhisper, recordings: Iterable[Recording], language: str | None
) -> list[_Clip]:
    """The recordings whose words have times; a warning tells of the others."""
    clips: list[_Clip] = []
    failed: list[str] = []
    for recording in recordings:
        try:
            recording.check()
            clips.append(_read(model, recording, language))
        except Exception as error:  # whatever is wrong with one, the others tell
            failed.append(f"{shown(str(recording.id), 60)}: {reason_of(error)}")
    if not clips and not failed:
        raise RecordingsError("there is no recording from which heads could be found.")
    if failed:
        n = len(clips) + len(failed)
        told = f"{len(failed)} of {n} recordings tell nothing of alignment heads: "
        told += "; ".join(failed[:3])
        if not clips:
            raise RecordingsError(told)
        warnings.warn(told, stacklevel=3)
    return clips


def _read(model: HookedWhisper, recording: Recording, language: str | None) -> _Clip:
    known = recording.words
    if not known:
        raise LabelError("its words have no times. Make them with align_phones.")
    if recording.text is None:
        said = " ".join(str(word.value) for word in known)
        recording = Recording(recording.id, recording.audio, recording.labels, said)
    text = read_text(model, recording, recording.language or language)
    ours = [" ".join(words_of(word)) for word, _ in text.words]
    theirs = [" ".join(words_of(str(word.value))) for word in known]
    words = []
    for i, j, n in difflib.SequenceMatcher(None, ours, theirs, False).get_matching_blocks():
        for (_, places), label in zip(text.words[i : i + n], known[j : j + n], strict=True):
            first, after = places.start - text.n_prompt, places.stop - text.n_prompt
            words.append((first, after, label.start_s, label.end_s))
    if 2 * len(words) < len(known):
        raise LabelError(
            f"{len(words)} of the {len(known)} words that have times are in its text "
            f"{shown(recording.text, 60)}."
        )
    return _Clip(text, model(mel_of(model, [text.window])), words)


def _weights(
    model: HookedWhisper, clip: _Clip, heads: Sequence[Head]
) -> Float[Tensor, "head token pos"]:
    """What word timing reads of some heads, at the queries that predict the text and its end."""
    tokens, n_sound = clip.text.tokens, clip.text.window.n_positions
    found: dict[Head, Tensor] = {}

    def read(value: Tensor, hook: Any) -> None:
        layer = int(hook.name.split(".")[2])
        mine = [head for at, head in heads if at == layer]
        weights = timing_weights(value[0, mine, :, :n_sound])[:, clip.text.n_prompt - 1 : -1].cpu()
        found.update(zip(((layer, head) for head in mine), weights, strict=True))

    names = [
        f"decoder.blocks.{at}.cross_attn.hook_pattern" for at in sorted({at for at, _ in heads})
    ]
    row = torch.tensor([[*tokens, get_tokenizer(model.cfg).eot]], device=model.device)
    with model.hooks([(names, read)]):
        model(None, row, return_type=None, encoder_output=clip.heard)
    return torch.stack([found[head] for head in heads])
