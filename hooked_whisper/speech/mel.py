"""Log-mel spectrograms: Whisper's input, and how much of it holds sound."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.config import FRAMES_PER_POSITION, FRAMES_PER_SECOND, HOP_LENGTH
from hooked_whisper.device import as_device
from hooked_whisper.errors import AudioError, AudioLengthError, InputError, MelError, describe
from hooked_whisper.speech.audio import load_audio

N_MELS = (80, 128)
"""Band counts that openai-whisper has filters for."""


@dataclass(frozen=True, eq=False, repr=False)
class Mel:
    """Log-mel spectrograms side by side, and how many of their frames hold sound.

    A window is mostly padding when the recording is short (an 11 s clip
    fills 37 % of Whisper's 30 s); statistics that count the padding are
    statistics of silence. The encoder itself always sees the full window.

    Args:
        values: The spectrograms, as `model(...)` takes them.
        n_frames: Frames of each recording that hold sound, counted from the
            start; the rest is padding.

    Raises:
        MelError: The two do not fit together.
    """

    values: Float[Tensor, "batch mel frame"]
    n_frames: Int[Tensor, "batch"]

    def __post_init__(self) -> None:
        _check_axes(self.values)
        counts, window = self.n_frames, self.values.shape[-1]
        if not isinstance(counts, Tensor) or counts.shape != self.values.shape[:1]:
            raise MelError(
                f"n_frames is {describe(counts)}; it must be one integer for each of the "
                f"{self.values.shape[0]} recordings, as a tensor. model.to_mel(audio) makes both."
            )
        if counts.dtype not in (torch.int32, torch.int64):
            raise MelError(f"n_frames has dtype {counts.dtype}; it must be torch.int64.")
        if not counts.is_meta and bool(((counts < 0) | (counts > window)).any()):
            raise MelError(f"n_frames is {counts.tolist()}; 0 to {window} frames fit this window.")

    def __len__(self) -> int:
        """Recordings side by side."""
        return self.values.shape[0]

    def __getitem__(self, index: SupportsIndex | slice) -> "Mel":
        """One recording, or several, with the batch axis kept.

        Raises:
            IndexError: No such recording, or none in the slice.
        """
        chosen = range(len(self))[index]
        rows = range(chosen, chosen + 1) if isinstance(chosen, int) else chosen
        if not rows:
            raise IndexError(f"{index} holds none of the {len(self)} recordings.")
        if rows.step < 0:  # which torch's slices do not do
            return Mel(self.values[list(rows)], self.n_frames[list(rows)])
        view = slice(rows.start, rows.stop, rows.step)
        return Mel(self.values[view], self.n_frames[view])

    def __repr__(self) -> str:
        n_batch, n_mels, n_frames = self.values.shape
        seconds = ", ".join(f"{s:.2f}" for s in self.seconds.tolist()[:4])
        more = ", ..." if n_batch > 4 else ""
        return (
            f"Mel({n_batch} x {n_mels} bands x {n_frames} frames, {seconds}{more} s of sound, "
            f"{self.dtype}, {self.device})"
        )

    @property
    def shape(self) -> torch.Size:
        """Shape of the values."""
        return self.values.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Device of the values and of the lengths."""
        return self.values.device

    @property
    def seconds(self) -> Float[Tensor, "batch"]:
        """How much of each window holds sound, in seconds."""
        return self.n_frames / FRAMES_PER_SECOND

    @property
    def n_positions(self) -> Int[Tensor, "batch"]:
        """Encoder positions that hold sound, of 20 ms each, rounded up."""
        return positions_of(self.n_frames)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Mel":
        """The same on another device, or with values of another dtype.

        Raises:
            DeviceError: A device that is not there.
        """
        device = None if device is None else as_device(device)
        return Mel(
            self.values.to(device=device, dtype=dtype),
            self.n_frames.to(device=device),
        )

    @classmethod
    def cat(cls, mels: Sequence["Mel"]) -> "Mel":
        """Several batches as one, in order.

        Raises:
            MelError: None given, or they differ in bands, frames, dtype or device.
        """
        if not mels:
            raise MelError("no mels to join; pass at least one.")
        for i, mel in enumerate(mels):
            first, this = mels[0], mel
            if (this.shape[1:], this.dtype, this.device) != (
                first.shape[1:],
                first.dtype,
                first.device,
            ):
                raise MelError(f"mel {i} is {mel!r}, which does not fit beside mel 0, {first!r}.")
        return cls(torch.cat([m.values for m in mels]), torch.cat([m.n_frames for m in mels]))


def to_mel(
    audio: Any,
    *,
    n_mels: int,
    n_frames: int,
    rate_hz: Any = None,
    cut: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Mel:
    """The log-mel spectrogram of a whole window, bit for bit openai-whisper's.

    The samples are padded with zeros to the window first, then transformed,
    as in `whisper.log_mel_spectrogram(whisper.pad_or_trim(samples))`: the
    spectrogram's floor (8 below its loudest point, in log10 units) is each
    recording's own, whatever it is batched with.

    Args:
        audio: What `load_audio` takes, or a list of such: a batch.
        n_mels: Bands of the model, 80 or 128.
        n_frames: Frames of the model's window, 10 ms each.
        rate_hz: Samples per second of arrays and tensors.
        cut: Whether to cut audio that is longer than the window, instead of
            raising.
        device: Where the result goes; it is computed on the CPU.
        dtype: Of the values; they are computed in float32.

    Returns:
        The spectrograms with each one's frames of sound, rounded up.

    Raises:
        AudioLengthError: Under 25 ms, or longer than the window and not `cut`.
        AudioError: Any other audio that `load_audio` refuses; in a list, the
            message says which one. An empty list.
        MelError: There are no filters for `n_mels`.
        DeviceError: A device that is not there.
    """
    device = None if device is None else as_device(device)
    if n_mels not in N_MELS:
        raise MelError(
            f"Whisper's filters have 80 or 128 bands; this model takes {n_mels}. Pass it a mel of "
            f"your own, a tensor [batch, {n_mels}, {n_frames}]."
        )
    if isinstance(audio, Mel):
        raise AudioError(f"{audio!r} is a mel already: pass it to the model as it is.")
    if isinstance(audio, list):
        if not audio:
            raise AudioError("the list of audio is empty; pass at least one recording.")
        waveforms = [
            _load_item(i, item, rate_hz, n_frames, cut=cut) for i, item in enumerate(audio)
        ]
    else:
        waveforms = [_load_window(audio, rate_hz, n_frames, cut=cut)]
    values = torch.stack([_log_mel(waveform, n_mels, n_frames) for waveform in waveforms])
    counts = torch.tensor([-(-len(waveform) // HOP_LENGTH) for waveform in waveforms])
    return Mel(values.to(device=device, dtype=dtype), counts.to(device=device))


def _load_item(
    index: int, audio: Any, rate_hz: Any, n_frames: int, *, cut: bool
) -> Float[Tensor, "sample"]:
    """One recording of a list; an error says which."""
    try:
        return _load_window(audio, rate_hz, n_frames, cut=cut)
    except InputError as error:
        raise type(error)(f"recording {index} of the list: {error}") from error


def _load_window(audio: Any, rate_hz: Any, n_frames: int, *, cut: bool) -> Float[Tensor, "sample"]:
    """One recording that is no longer than the window."""
    waveform = load_audio(audio, rate_hz)
    n_samples = n_frames * HOP_LENGTH
    if len(waveform) > n_samples and not cut:
        window_s = n_frames / FRAMES_PER_SECOND
        raise AudioLengthError(
            f"audio is {window_s * len(waveform) / n_samples:.2f} s long; this model's window is "
            f"{window_s:g} s. Take its start with model.to_mel(audio, cut=True), or all of it with "
            "model.transcribe(audio)."
        )
    return waveform[:n_samples]


def _log_mel(
    waveform: Float[Tensor, "sample"], n_mels: int, n_frames: int
) -> Float[Tensor, "mel frame"]:
    """openai-whisper's log-mel of one window."""
    from whisper.audio import log_mel_spectrogram, pad_or_trim

    window: Tensor = pad_or_trim(waveform, n_frames * HOP_LENGTH)
    return log_mel_spectrogram(window, n_mels)


def check_mel(values: Any, n_mels: int, n_frames: int) -> None:
    """Refuse what is no mel for a model of these sizes, in under a millisecond.

    Args:
        values: What a model was given.
        n_mels: Bands that the model takes.
        n_frames: Frames that the model takes.

    Raises:
        MelError: No float tensor, wrong axes or bands, no recordings, NaN or infinity.
        AudioLengthError: Another number of frames.
    """
    _check_axes(values)
    shape = tuple(values.shape)
    remedy = "Make it with model.to_mel(audio)."
    if shape[1:] == (n_frames, n_mels) and n_mels != n_frames:
        raise MelError(
            f"mel has shape {shape}; its axes are [batch, mel, frame], here (batch, {n_mels}, "
            f"{n_frames}). Swap the last two: mel.transpose(1, 2)."
        )
    if shape[1] != n_mels:
        raise MelError(f"mel has {shape[1]} bands; this model takes {n_mels}. {remedy}")
    if shape[2] != n_frames:
        raise AudioLengthError(
            f"mel has {shape[2]} frames; the encoder takes exactly {n_frames} "
            f"({n_frames / FRAMES_PER_SECOND:g} s at {FRAMES_PER_SECOND} frames/s). {remedy}"
        )
    # One sum is quick and shows every NaN and infinity; it may overflow, so then look closely.
    total = values.detach().sum(dtype=torch.float32)
    if not values.is_meta and not torch.isfinite(total):
        bad = ~torch.isfinite(values)
        if bool(bad.any()):
            row, band, frame = bad.nonzero()[0].tolist()
            raise MelError(
                f"mel has {int(bad.sum())} values that are NaN or infinite, the first in recording "
                f"{row}, band {band}, frame {frame}. {remedy}"
            )


def positions_before_padding(mel: Float[Tensor, "batch mel frame"]) -> Int[Tensor, "batch"]:
    """Encoder positions (20 ms) of each recording up to its padding, from the mel alone.

    Padding is what equals the window's last frame, from there to the end: digital
    silence, or the zeros that `transcribe` fills a last window with. Of digital
    silence one frame less is padding than looks like it, as a frame also hears what is
    beside it; so this is `Mel.n_positions`, or, for one recording in 8, one more.
    Silence at a recording's own end counts as padding.

    >>> mel = torch.zeros(2, 80, 3000)
    >>> mel[0, :, :1100] = torch.rand(80, 1100)
    >>> positions_before_padding(mel)
    tensor([550,   0])
    """
    differs = (mel != mel[..., -1:]).any(dim=1)
    frames = torch.arange(1, mel.shape[-1] + 1, device=mel.device)
    n_frames = (differs * frames).amax(dim=-1)
    is_silence = (mel[..., -1] != 0).any(dim=-1) & (n_frames < mel.shape[-1] - 1)
    n_frames = (n_frames - is_silence.long()).clamp(min=0)
    return positions_of(n_frames)


def positions_of(n_frames: Any) -> Any:
    """Encoder positions that so many mel frames reach, a number or a tensor of them, rounded up."""
    return (n_frames + FRAMES_PER_POSITION - 1) // FRAMES_PER_POSITION


def _check_axes(values: Any) -> None:
    """Refuse what is no batch of spectrograms of any size."""
    remedy = "Make it with model.to_mel(audio)."
    if not isinstance(values, Tensor):
        raise MelError(f"mel is {describe(values)}; it must be a tensor. {remedy}")
    if values.layout != torch.strided:
        raise MelError(f"mel is {values.layout}; make it dense with mel.to_dense().")
    if not values.is_floating_point() or values.dtype.itemsize < 2:
        raise MelError(f"mel has dtype {values.dtype}; it must be a float dtype. {remedy}")
    if values.ndim != 3:
        hint = "Add the batch axis: mel[None]." if values.ndim == 2 else remedy
        raise MelError(
            f"mel has shape {tuple(values.shape)}; its axes are [batch, mel, frame]. {hint}"
        )
    if values.shape[0] == 0:
        raise MelError(f"mel has shape {tuple(values.shape)}: no recordings. {remedy}")
