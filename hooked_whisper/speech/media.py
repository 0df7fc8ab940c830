"""Sound out of MP4, WebM, AAC and video files, by PyAV: FFmpeg's libraries, in a wheel."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from hooked_whisper.errors import AudioFileError
from hooked_whisper.speech.media_files import Medium

if TYPE_CHECKING:
    from av import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

_MAX_PADDING_S = 0.1
"""The last frame of a codec, which is filled up with what is no sound."""
_MISSING_S = 0.25
"""Headers count to the end of a last frame that may not come out."""
_GAP_S = 0.1
_MOST_STREAMS = 8


@dataclass(frozen=True)
class Decoded:
    """What came out of a file.

    Args:
        n_missing: How many samples fewer than the file promises.
        doubt: Why it may not be whole, or "".
        remark: What a user should know besides, or "".
    """

    samples: Float32[np.ndarray, "channel sample"]
    rate_hz: float
    n_missing: int = 0
    doubt: str = ""
    remark: str = ""


class _Handle:
    """A file for FFmpeg, which says nothing where a damaged one sends it before its beginning."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return self.tell()


def decode_media(file: io.BufferedIOBase, medium: Medium, name: str) -> Decoded:
    """The sound of a file, its channels averaged piece by piece.

    What an encoder put in front or behind is left out where the file says
    so (MP4's edit lists, Opus's pre-skip). The first sample is at 0 s, and
    gaps are closed, as the ffmpeg program does.

    Raises:
        AudioFileError: PyAV is not installed, there is no sound, or it
            changes its rate.
        ValueError: It cannot be read; FFmpeg's reason.
        MemoryError: It holds more than fits.
    """
    try:
        import av
    except ImportError as error:
        raise AudioFileError(
            f"{name} is {medium.name}, which PyAV reads, and that cannot be imported ({error}). "
            "Install it: pip install 'hooked-whisper[audio]', or convert the file: "
            "ffmpeg -i in.m4a out.wav."
        ) from error
    file.seek(0)
    try:
        # The demuxer is named, so that no playlist or other text makes FFmpeg open other files.
        with av.open(
            _Handle(file), "r", format=medium.demuxer, metadata_errors="replace"
        ) as container:
            return _decode(container, medium, name)
    except av.error.MemoryError as error:
        raise MemoryError(str(error)) from error
    except av.error.FFmpegError as error:
        raise ValueError(f"{medium.name}: {error.strerror or error}") from error


def _decode(container: "InputContainer", medium: Medium, name: str) -> Decoded:
    stream = _choose(container, name)
    sound, rate_hz, first_s, end_s, n_damaged = bytearray(), 0, None, 0.0, 0
    for frame in _frames(container, stream):
        if frame is None:
            n_damaged += 1
            continue
        if rate_hz not in (0, frame.sample_rate):
            raise AudioFileError(
                f"{name} changes its rate from {rate_hz} to {frame.sample_rate} Hz in the middle. "
                "Convert it first: ffmpeg -i in.m4a -ar 16000 out.wav."
            )
        rate_hz = frame.sample_rate
        sound += _mono(frame).tobytes()
        if frame.time is not None:
            first_s = frame.time if first_s is None else first_s
            end_s = max(end_s, frame.time + frame.samples / rate_hz)
    if not sound:
        raise ValueError(f"{medium.name}: no piece of its sound can be decoded")
    samples = np.frombuffer(sound, np.float32)[None]
    seconds = samples.shape[1] / rate_hz
    gap_s = 0.0 if first_s is None else end_s - first_s - seconds
    n_missing, doubt = 0, ""
    if n_damaged:
        doubt = f"{n_damaged} pieces of it cannot be decoded"
    elif gap_s > _GAP_S:
        doubt = f"its own times have gaps of {gap_s:.2f} s in all, which are closed"
    promised_s = _promised_s(container, stream, medium)
    if promised_s is not None:
        n_over = samples.shape[1] - round(promised_s * rate_hz)
        if medium.is_trimmed and 0 < n_over < _MAX_PADDING_S * rate_hz:
            samples = samples[:, :-n_over]
        elif -n_over > (_MISSING_S + max(gap_s, 0)) * rate_hz:
            n_missing = -n_over
    if n_damaged and not medium.is_stream:
        n_missing = max(n_missing, rate_hz)
    return Decoded(samples, float(rate_hz), n_missing, doubt, _remark(container, stream, name))


def _frames(container: "InputContainer", stream: "AudioStream") -> Iterator["AudioFrame | None"]:
    """What can be decoded; None for each piece that cannot."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            frames = None if packet is None else packet.decode()
        except (av.error.InvalidDataError, av.error.EOFError):
            yield None
            continue
        except IndexError:  # of a stream that turns up behind the header, which PyAV does not know
            packets = container.demux(stream)
            continue
        if frames is None:
            return
        yield from frames


def _choose(container: "InputContainer", name: str) -> "AudioStream":
    """The stream that FFmpeg calls the best one: by default marks, then by its richness."""
    stream: Any = container.streams.best("audio")
    if stream is None:
        others = ", ".join(sorted({str(each.type) for each in container.streams})) or "nothing"
        raise AudioFileError(f"{name} holds no sound: what is in it is {others}.")
    if stream.codec_context is None:
        raise AudioFileError(
            f"{name} holds sound that FFmpeg cannot decode. It may be protected; record or export "
            "it as WAV, FLAC or AAC."
        )
    return stream


def _remark(container: "InputContainer", chosen: "AudioStream", name: str) -> str:
    """Which of several streams was read."""
    streams = list(container.streams.audio)
    if len(streams) == 1:
        return ""
    which = streams.index(chosen)
    languages = ", ".join(each.language or "unknown" for each in streams[:_MOST_STREAMS])
    return (
        f"{name} has {len(streams)} streams of sound (languages: {languages}); number {which} was "
        f"read, counted from 0. Another one: ffmpeg -i in.mp4 -map 0:a:{int(which == 0)} out.flac."
    )


def _promised_s(container: "InputContainer", stream: "AudioStream", medium: Medium) -> float | None:
    """How long the sound should be by the header, where that does not speak of a video."""
    if medium.is_stream:
        return None  # FFmpeg's own estimate
    if medium.is_trimmed:
        if stream.duration is None or stream.time_base is None:
            return None
        return float(stream.duration * stream.time_base)
    if len(container.streams) > 1 or container.duration is None:
        return None
    return container.duration / 1e6


def _mono(frame: "AudioFrame") -> Float32[np.ndarray, " sample"]:
    """The mean of a frame's channels, full scale 1."""
    values: np.ndarray = frame.to_ndarray()
    if frame.format.is_packed:
        values = values.reshape(frame.samples, -1).T
    if values.dtype.kind == "u":
        values = values / 128 - 1
    elif values.dtype.kind == "i":
        values = values / 2 ** (8 * values.dtype.itemsize - 1)
    return values.astype(np.float32).mean(axis=0, dtype=np.float32)
