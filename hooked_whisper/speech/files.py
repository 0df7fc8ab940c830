"""Audio files: samples of what libsndfile or PyAV reads, or an error that says what is wrong."""

import io
import os
import stat
import warnings
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from hooked_whisper.errors import AudioError, AudioFileError
from hooked_whisper.speech.containers import NO_LENGTH, FileBytes, examine
from hooked_whisper.speech.media import Decoded, decode_media
from hooked_whisper.speech.media_files import REFUSED, find_medium
from hooked_whisper.speech.streams import Length

if TYPE_CHECKING:
    from soundfile import SoundFile

MAX_CHANNELS = 256

_MISSING_S = 0.1
"""A decoder may come out a frame or two short of what the header says; more is a cut file."""
_SAMPLES_PER_BYTE = 16
"""Denser sound is read in pieces: memory is not taken because a header asks for it."""
_PIECE_SAMPLES = 1 << 22
_UNKNOWN_FRAMES = 1 << 62
_MAX_NAME = 200
_MAX_REASON = 150
_REMEDY = (
    "WAV, FLAC, Ogg, MP3, AIFF, MP4, WebM and AAC can; convert other files first: "
    "ffmpeg -i in.wma out.wav."
)
_KINDS_OF_FILE = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class _Bytes(io.BytesIO):
    """A file in memory, that stays where it is when libsndfile seeks before its beginning."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """The new place."""
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def read_audio(source: Path | bytes) -> tuple[Float32[np.ndarray, "channel sample"], float]:
    """The samples of an audio file, full scale 1, and their rate in Hz.

    A file that is shorter than its header says is an error. Where nobody can
    tell whether it is whole, what is there is read, with a warning.

    Args:
        source: A path, or what a file holds.

    Raises:
        AudioFileError: No such file, nothing that can be read as audio, or cut off.
        AudioError: No samples, or too many channels or samples.
    """
    if isinstance(source, bytes):
        name = f"audio of {len(source):,} bytes"
        if not source:
            raise AudioFileError("audio is empty: it holds 0 bytes.")
        return _read(_Bytes(source), len(source), None, name)
    name = shown(source)
    try:
        path = source.expanduser()
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AudioFileError(f"there is no file {name} (from {_here()}).") from error
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, no such user, a loop
        raise AudioFileError(
            f"{name} is no path to a file ({shorten(error)}). Pass the path of an audio file."
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise AudioFileError(f"{name} is a folder; pass the files in it as a list of paths.")
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS_OF_FILE.get(stat.S_IFMT(status.st_mode), "no ordinary file")
        raise AudioFileError(
            f"{name} is {kind}, and audio is read from files. Write the sound to a file first, or "
            "pass its samples: (samples, rate_hz)."
        )
    if not status.st_size:
        raise AudioFileError(f"{name} is empty: it holds 0 bytes.")
    try:
        with open(path, "rb") as file:
            return _read(file, status.st_size, path, name)
    except OSError as error:
        if isinstance(error, AudioFileError):
            raise
        raise AudioFileError(
            f"{name} cannot be read as audio ({shorten(error)}). Check that you may read it."
        ) from error


def shown(path: Path | str) -> str:
    """A path in quotes, its middle left out where it is very long."""
    text = repr(str(path))
    if len(text) <= _MAX_NAME:
        return text
    half = _MAX_NAME // 2
    return f"{text[:half]}...{text[-half:]}"


def shorten(value: object) -> str:
    """What an error says, or what a value is, in few characters."""
    try:
        text = str(value) if isinstance(value, BaseException) else repr(value)
    except Exception:  # an int of 5,000 digits has no repr
        text = f"a {type(value).__name__}"
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."


def _here() -> str:
    try:
        return shown(Path.cwd())
    except OSError:
        return "a folder that is gone"


def _read(
    file: io.BufferedIOBase, size: int, path: Path | None, name: str
) -> tuple[Float32[np.ndarray, "channel sample"], float]:
    """Samples and rate of an open file; its path lets libsndfile read it by itself."""
    import soundfile

    content = FileBytes(file, size)
    medium = find_medium(content)
    length = medium.examine(content) if medium else examine(file, size)
    try:
        if medium:
            found = decode_media(file, medium, name)
        else:
            found = _decode(file, size, path, length, name)
    except MemoryError as error:
        raise AudioError(
            f"{name} holds more sound than fits into memory. Cut it into pieces: ffmpeg -i in.wav "
            "-f segment -segment_time 3600 out%03d.wav."
        ) from error
    # soundfile has TypeErrors and ValueErrors of its own, for *.raw and for what cannot seek.
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        if isinstance(error, AudioError):
            raise
        if length.is_cut:
            raise AudioFileError(_cut(name, "nothing can be read")) from error
        reason = str(getattr(error, "error_string", None) or shorten(error))
        raise AudioFileError(f"{name} cannot be read as audio ({reason}). {_REMEDY}") from error
    samples = found.samples[:, length.n_skip :]
    _check_length(length, replace(found, samples=samples), name)
    return samples, found.rate_hz


@cache
def _forwards() -> "type[SoundFile]":
    """soundfile's reader, made when it is first needed."""
    import soundfile

    class Forwards(soundfile.SoundFile):
        """soundfile seeks after each read, which some kinds cannot and others do inexactly."""

        def seekable(self) -> bool:
            return False

    return Forwards


def _decode(
    file: io.BufferedIOBase, size: int, path: Path | None, length: Length, name: str
) -> Decoded:
    """What soundfile reads; what it refuses, a video or a rare codec in Ogg, goes to PyAV."""
    import soundfile

    file.seek(0)
    readable: io.BufferedIOBase | Path = file if path is None else path
    if length.patches or length.prefix:
        readable = _Bytes(length.apply(file.read()))
    try:
        return _decode_by_soundfile(readable, size, name)
    except soundfile.SoundFileError:
        file.seek(0)
        medium = REFUSED.get(file.read(4))
        if medium is None or length.is_cut or find_spec("av") is None:
            raise
        return decode_media(file, medium, name)


def _decode_by_soundfile(source: io.BufferedIOBase | Path, size: int, name: str) -> Decoded:
    if isinstance(source, Path) and os.name != "nt":
        opened = _forwards()(os.fsencode(source))  # names that are no UTF-8 too
    else:
        opened = _forwards()(source)
    with opened as file:
        if file.channels > MAX_CHANNELS:
            raise AudioError(
                f"{name} says that it has {file.channels} channels; up to {MAX_CHANNELS} are "
                "averaged. Its header may be damaged: convert it with ffmpeg -ac 1."
            )
        doubt = NO_LENGTH if file.format == "SD2" else ""  # which only its second file tells
        if file.format == "RAW":  # by the name's ending, whatever is in it
            if file.subtype == "ULAW":
                raise AudioFileError(
                    f"{name} cannot be read as audio (it has no header). Where it is headerless "
                    "sound all the same: ffmpeg -f mulaw -ar 8000 -i in.au out.wav."
                )
            doubt = f"it has no header: it is taken for {file.subtype} at {file.samplerate} Hz"
        samples = _read_forwards(file, size)
        is_estimate = file.format == "MP3" or file.frames > _UNKNOWN_FRAMES
        n_missing = 0 if is_estimate else file.frames - len(samples)
        return Decoded(samples.T, float(file.samplerate), n_missing, doubt)


def _read_forwards(file: "SoundFile", size: int) -> Float32[np.ndarray, "sample channel"]:
    """All samples up to the end, taking memory for what is there, not for what is claimed."""
    if file.frames * file.channels <= max(size * _SAMPLES_PER_BYTE, _PIECE_SAMPLES):
        return file.read(frames=file.frames, dtype="float32", always_2d=True)
    n_frames = _PIECE_SAMPLES // file.channels
    pieces: list[np.ndarray] = []
    left = file.frames
    while True:
        piece = file.read(frames=min(n_frames, left), dtype="float32", always_2d=True)
        pieces.append(piece.copy() if len(piece) < n_frames else piece)
        left -= len(piece)
        if len(piece) < n_frames:
            return np.concatenate(pieces)


def _check_length(length: Length, found: Decoded, name: str) -> None:
    """Refuse a file that holds less sound than it says; warn where nobody can tell."""
    n_read, n_missing, rate_hz = found.samples.shape[1], found.n_missing, found.rate_hz
    is_short = length.n_frames is not None and n_read < length.n_frames
    if length.is_cut or is_short or n_missing > _MISSING_S * rate_hz:
        raise AudioFileError(_cut(name, f"{n_read / rate_hz:.2f} s can be read"))
    doubt = found.doubt
    if n_missing > 0:
        doubt = f"its last {n_missing / rate_hz * 1000:.3g} ms cannot be read"
    if doubt := doubt or length.doubt:
        warnings.warn(
            f"{name} may not be whole: {doubt}. {n_read / rate_hz:.2f} s were read. If that is all "
            "of it, write it anew (ffmpeg -i in.wav out.flac), and this warning is gone.",
            UserWarning,
            stacklevel=5,
        )
    if found.remark:
        warnings.warn(found.remark, UserWarning, stacklevel=5)


def _cut(name: str, found: str) -> str:
    return (
        f"{name} is cut off or damaged: {found}, less than its header says. Copy it again, or "
        "convert what is there with ffmpeg."
    )
