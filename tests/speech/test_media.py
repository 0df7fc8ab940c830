"""MP4, WebM, AAC and videos against the sound that was encoded: whole, cut off, live, foreign."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch

from hooked_whisper.data import as_recordings
from hooked_whisper.errors import AudioError, AudioFileError
from hooked_whisper.speech import load_audio
from hooked_whisper.speech.files import read_audio

from .encoding import KINDS, RATE_HZ, encode, sweep
from .test_audio_files import outcome

pytest.importorskip("av", reason="needs the extra `audio`")


def test_packets_of_a_stream_behind_the_header_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyAV has an IndexError of its own for them; the sound around them is whole."""
    from av.container import InputContainer

    from hooked_whisper.speech import media

    (tmp_path / "a.m4a").write_bytes(encode(sweep(0.5), **KINDS["m4a"]))
    whole, n_begun = load_audio(tmp_path / "a.m4a"), 0

    class Later:
        """A container in which every third packet is of another stream."""

        def __init__(self, container: InputContainer) -> None:
            self.container = container

        def demux(self, stream: Any) -> Any:
            nonlocal n_begun
            n_begun += 1
            for i, packet in enumerate(self.container.demux(stream)):
                yield packet
                if i == 2:
                    raise IndexError("list index out of range")

    frames = media._frames
    monkeypatch.setattr(media, "_frames", lambda found, stream: frames(Later(found), stream))
    assert torch.equal(load_audio(tmp_path / "a.m4a"), whole)
    assert n_begun > 2


DELAYS = {"aac": 1024, "ts": 1024, "flv": 1024, "mp4 in fragments": 1024, "mpg": 481}
"""Samples that an encoder puts in front, in files that do not say so: ffmpeg plays them too."""
EXACT = ("alac", "mov", "avi")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {kind: encode(sweep(), **options) for kind, options in KINDS.items()}


def mean() -> np.ndarray:
    return sweep().mean(axis=0)


def lag_of(samples: np.ndarray, of: np.ndarray) -> int:
    """By how many samples one is later than the other."""
    size = len(samples) + len(of)
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(of, size).conj()
    lag = int(np.argmax(np.fft.irfft(spectrum, size)))
    return lag if lag < len(samples) else lag - size


@pytest.mark.parametrize("kind", KINDS)
def test_sound_is_what_was_encoded_at_the_same_time(files: dict[str, bytes], kind: str) -> None:
    samples, said = outcome(files[kind])
    assert samples is not None, said
    assert not said
    assert samples.shape[1] == 1
    delay = DELAYS.get(kind, 256 if "AC-3" in kind else -2048 if kind == "wma" else 0)
    assert lag_of(samples[:, 0], mean()) == delay
    found = samples[max(delay, 0) :, 0]
    expected = mean()[max(-delay, 0) :]
    n = min(len(found), len(expected))
    assert n > len(expected) - 2048
    error = np.sqrt(np.mean((found[:n] - expected[:n]) ** 2))
    assert error < (2e-5 if kind in EXACT else 0.08 * np.sqrt(np.mean(expected**2)))


def test_edit_lists_and_pre_skip_leave_exactly_the_sound(files: dict[str, bytes]) -> None:
    for kind in ("m4a", "m4a, index first", "alac", "mp4", "mov", "webm", "webm, live"):
        samples, _ = read_audio(files[kind])
        assert samples.shape == (1, 1.5 * RATE_HZ), kind


@pytest.mark.parametrize("kind", KINDS)
def test_cut_file_is_refused_or_doubted(files: dict[str, bytes], kind: str) -> None:
    content = files[kind]
    n_bytes = len(content)
    early = [4, 12, 30, 50, 90, 150, 500, 2000]
    for place in [*early, *(n_bytes * part // 8 + 1 for part in range(1, 8)), n_bytes - 301]:
        if kind == "ts" and place % 188 == 0:
            continue  # its packets stand each for itself
        samples, said = outcome(content[:place])
        assert samples is None or "may not be whole" in said, f"{place} of {n_bytes}: {said}"


def test_file_with_an_index_is_refused_a_byte_too_short(files: dict[str, bytes]) -> None:
    for kind in ("m4a", "m4a, index first", "mp4", "mov", "webm", "mkv", "avi", "wma"):
        samples, said = outcome(files[kind][:-1])
        assert samples is None, kind
        assert "cut off or damaged" in said


def test_any_rate_becomes_mono_at_16_khz(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "speech.m4a"
    path.write_bytes(files["alac"])
    whole, _ = read_audio(path)
    assert np.array_equal(load_audio(path), soxr.resample(whole[0], RATE_HZ, 16_000))
    assert len(load_audio(path)) == 24_000
    narrow = encode(sweep(n_channels=1, rate_hz=8000), "ipod", "aac", rate_hz=8000)
    path.write_bytes(narrow)
    assert load_audio(path).shape == (24_000,)


def test_one_of_several_streams_is_read_and_named() -> None:
    two = encode(sweep(0.5), "mp4", "aac", n_streams=2, has_video=True)
    samples, said = outcome(two)
    assert samples is not None
    assert len(samples) == 0.5 * RATE_HZ
    assert "has 2 streams of sound" in said
    assert "number 0 was read" in said
    assert "-map 0:a:1" in said


def test_video_without_sound_is_refused() -> None:
    silent = encode(sweep(0.5), "mp4", "aac", n_streams=0, has_video=True)
    with pytest.raises(AudioFileError, match="holds no sound: what is in it is video"):
        read_audio(silent)


def test_gap_is_closed_and_named(files: dict[str, bytes]) -> None:
    """Half of a stream lost in the middle, between two packets."""
    content = files["ts"]
    n_packets = len(content) // 188
    kept = content[: 188 * (n_packets // 3)] + content[188 * (2 * n_packets // 3) :]
    samples, said = outcome(kept)
    assert samples is not None
    assert "may not be whole" in said


@pytest.mark.parametrize("suffix", ["m4a", "mp4", "aac"])
def test_playlist_is_no_sound_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    """FFmpeg would open the files that it names."""
    path = tmp_path / f"list.{suffix}"
    for text in ("#EXTM3U\n#EXTINF:1,\n", "ffconcat version 1.0\nfile "):
        path.write_text(f"{text}/etc/hostname\n#EXT-X-ENDLIST\n")
        with pytest.raises(AudioFileError, match="cannot be read as audio"):
            load_audio(path)


def test_without_pyav_the_error_names_the_extra(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for kind, name in (("m4a", "MP4"), ("webm", "Matroska or WebM"), ("aac", "AAC")):
        with pytest.raises(AudioFileError, match=rf"is {name}, which .*'hooked-whisper\[audio\]'"):
            read_audio(files[kind])


def test_folder_and_model_take_them(files: dict[str, bytes], tmp_path: Path) -> None:
    names = {"a.m4a": "m4a", "b.webm": "webm", "c.mp4": "mp4", "d.aac": "aac", "e.MKV": "mkv"}
    for name, kind in names.items():
        (tmp_path / name).write_bytes(files[kind])
    (tmp_path / "notes.txt").write_text("no sound")
    recordings = list(as_recordings(tmp_path))
    assert [each.id for each in recordings] == list(names)
    assert all(torch.isfinite(load_audio(each.audio)).all() for each in recordings)


def test_damage_inside_is_refused_where_an_index_counts(files: dict[str, bytes]) -> None:
    """AAC has no checksums: what cannot be decoded at all is noticed."""
    content = bytearray(files["mkv"])
    for place in range(len(content) // 3, len(content) * 2 // 3, 37):
        content[place] ^= 0xFF
    with pytest.raises(AudioError, match=r"cut off or damaged|cannot be read"):
        read_audio(bytes(content))
