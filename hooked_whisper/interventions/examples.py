"""What a run is given, and corrupted relatives of it: silence, noise, spliced time."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_SECOND, HOP_LENGTH, SAMPLE_RATE_HZ
from hooked_whisper.errors import AlignmentError, InputError
from hooked_whisper.interventions.sites import Window, check_window, window_to_places
from hooked_whisper.model.language import spoken_language
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import check_tokens

_SILENCE = -1.5
"""The log-mel of zeros, by openai-whisper's scaling: (log10(1e-10) + 4) / 4."""


@dataclass(frozen=True, eq=False)
class Example:
    """A recording, and the tokens that the decoder is given with it.

    Args:
        mel: The recording's log-mel: `model.to_mel(audio)`.
        tokens: Start sequence and text: `model.to_tokens(text)`.
    """

    mel: Mel
    tokens: Int[Tensor, "batch pos"]

    def __post_init__(self) -> None:
        if len(self.mel) != len(self.tokens):
            raise InputError(
                f"{len(self.mel)} recordings and {len(self.tokens)} rows of tokens do not match. "
                "Pass one row of tokens for each recording."
            )

    @classmethod
    def from_audio(
        cls,
        model: HookedWhisper,
        audio: Any,
        text: str | None = None,
        *,
        rate_hz: Any = None,
        **options: Any,
    ) -> "Example":
        """The example of a recording and its text.

        Args:
            model: The model to run it on.
            audio: What `model.to_mel` takes.
            text: What is said, with the space before it; None has the model write it down.
            rate_hz: Sampling rate, for arrays.
            options: For `model.to_tokens`, or for `model.generate` where there is no text.
                Without a `language`, a multilingual model finds it out.
        """
        mel = model.to_mel(audio, rate_hz=rate_hz)
        if text is None:
            tokens = model.generate(mel, **options).tokens[:, :-1]
        else:
            options["language"] = spoken_language(model, mel, options.get("language"))
            tokens = model.to_tokens(text, **options)
        return cls(mel, tokens)

    def __len__(self) -> int:
        """Recordings side by side."""
        return len(self.mel)

    @property
    def n_pos(self) -> int:
        """Tokens in a row."""
        return self.tokens.shape[1]

    def with_tokens(self, tokens: Int[Tensor, "batch pos"]) -> "Example":
        """The same recording with other tokens."""
        return replace(self, tokens=tokens)

    def with_silence(self, window_s: Window | None = None) -> "Example":
        """The same tokens over silence: all the time, or in a window of it, in seconds.

        Raises:
            SiteError: A window outside the recording.
        """
        return self._filled(torch.full_like(self.mel.values, _SILENCE), window_s)

    def with_white_noise(
        self,
        model: HookedWhisper,
        window_s: Window | None = None,
        *,
        level_db: float | int = -20.0,
        seed: int = 0,
    ) -> "Example":
        """The same tokens over white noise as long as the recording: all of it, or a window.

        Args:
            model: Whose log-mel to make.
            window_s: The time to fill, in seconds.
            level_db: Root mean square of the noise, to that of a full-scale square wave.
            seed: Of the noise.
        """
        generator = torch.Generator().manual_seed(seed)
        noise = []
        for n_frames in self.mel.n_frames.tolist():
            n_samples = min(max(n_frames, 10) * HOP_LENGTH, model.cfg.n_samples)
            sound = 10 ** (level_db / 20) * torch.randn(n_samples, generator=generator)
            noise.append(model.to_mel(sound, rate_hz=SAMPLE_RATE_HZ))
        return self._filled(Mel.cat(noise).values.to(self.mel.values), window_s)

    def spliced(
        self,
        other: "Example | Mel",
        window_s: Window,
        from_s: float | int | None = None,
    ) -> "Example":
        """The same tokens over this recording with some of its time from another one.

        Args:
            other: Where the time is taken from.
            window_s: Start and end in this recording, in seconds.
            from_s: Where the time begins in the other; None is the same place.

        Raises:
            SiteError: A time outside the window.
            AlignmentError: Recordings of other shape or number.
        """
        values = (other.mel if isinstance(other, Example) else other).values
        if values.shape != self.mel.shape:
            raise AlignmentError(
                f"the other mel is {tuple(values.shape)} and this one {tuple(self.mel.shape)}. "
                "Make both with the same model's to_mel, with as many recordings."
            )
        check_window(window_s, self._length_s)
        if from_s is not None:
            taken_s = (from_s, from_s + window_s[1] - window_s[0])
            check_window(taken_s, self._length_s)
            shift = window_to_places(window_s, "frame")[0] - window_to_places(taken_s, "frame")[0]
            values = values.roll(shift, dims=2)
        return self._filled(values, window_s)

    def swapped(self, window_s: Window, other_s: Window) -> "Example":
        """The same tokens over this recording with two of its windows in each other's place.

        Every other time stays: a longer one is cut to the place, and behind a shorter one is
        silence.

        Args:
            window_s: Start and end of one, in seconds, for instance of a word.
            other_s: Start and end of the other.

        Raises:
            SiteError: A time outside the window.
        """
        found = self
        for place, taken in ((window_s, other_s), (other_s, window_s)):
            end_s = min(place[1], place[0] + taken[1] - taken[0])
            found = found.spliced(self, (place[0], end_s), from_s=taken[0])
            if end_s < place[1]:
                found = found.with_silence((end_s, place[1]))
        return found

    @property
    def _length_s(self) -> float:
        return self.mel.shape[2] / FRAMES_PER_SECOND

    def _filled(self, values: Tensor, window_s: Window | None) -> "Example":
        """With these values in the window; how much holds sound stays, to compare the same time."""
        if window_s is None:
            filled = values
        else:
            check_window(window_s, self._length_s)
            start, end = window_to_places(window_s, "frame")
            filled = self.mel.values.clone()
            filled[:, :, start:end] = values[:, :, start:end]
        return replace(self, mel=Mel(filled, self.mel.n_frames))


def check_pair(model: HookedWhisper, base: Example, other: Example) -> None:
    """Refuse two examples that cannot be patched into each other."""
    for example in (base, other):
        check_tokens(example.tokens, model.cfg.d_vocab, model.cfg.n_text_ctx)
    if len(base) != len(other):
        raise AlignmentError(f"{len(base)} recordings and {len(other)} cannot be paired.")
    if base.n_pos != other.n_pos:
        raise AlignmentError(
            f"the clean run has {base.n_pos} tokens and the corrupted one {other.n_pos}, so that "
            "positions do not correspond. Give both the same number: run the two recordings on "
            "the same text with example.with_tokens(tokens)."
        )
