"""Files of every kind that libsndfile writes: whole, cut off, streamed, and what is no file."""

import io
import struct
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hooked_whisper.errors import AudioError
from hooked_whisper.speech.files import read_audio
from hooked_whisper.speech.streams import _frame

RATE_HZ = 16_000
KINDS = [
    (container, subtype)
    for container in soundfile.available_formats()
    if container != "RAW"  # has no header, and is another thing for each name
    for subtype in soundfile.available_subtypes(container)
    if subtype not in ("MPEG_LAYER_I", "MPEG_LAYER_II", "DWVW_12")  # which it only reads
]
NO_LENGTH = {"PAF", "PVF", "SD2", "IRCAM", "XI"}
"""Kinds whose headers do not say how long they are, as libsndfile writes them."""
by_kind = pytest.mark.parametrize(("container", "subtype"), KINDS, ids=lambda name: name)


class Forwards(soundfile.SoundFile):
    """soundfile's own reading, without seeking, which not all kinds can."""

    def seekable(self) -> bool:
        return False


def noise(n_samples: int = 8000, n_channels: int = 1) -> np.ndarray:
    steps = np.random.default_rng(0).standard_normal((n_samples, n_channels))
    return 0.5 * np.sin(np.cumsum(steps, axis=0) / 10)


def written(folder: Path, container: str, subtype: str, **options: Any) -> Path:
    """A file of a kind; one that libsndfile only reads is skipped."""
    path = folder / "sound.bin"
    samples = options.pop("samples", noise())
    try:
        soundfile.write(path, samples, RATE_HZ, format=container, subtype=subtype, **options)
    except soundfile.SoundFileError:
        pytest.skip(f"libsndfile writes no {container} of {subtype}")
    return path


def outcome(path: Path | bytes) -> tuple[np.ndarray | None, str]:
    """The samples and what was warned of, or None and what the error says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            samples, _ = read_audio(path)
        except AudioError as error:
            assert len(str(error)) < 600
            return None, str(error)
    return samples.T, " ".join(str(each.message) for each in caught)


def expected(path: Path) -> np.ndarray:
    with Forwards(path) as file:
        return file.read(frames=file.frames, dtype="float32", always_2d=True)


class TestEveryKind:
    @by_kind
    @pytest.mark.parametrize("n_channels", [1, 2], ids=["mono", "stereo"])
    def test_whole_file_is_what_soundfile_reads(
        self, tmp_path: Path, container: str, subtype: str, n_channels: int
    ) -> None:
        path = written(tmp_path, container, subtype, samples=noise(3000, n_channels))
        samples, said = outcome(path)
        assert samples is not None, said
        assert np.array_equal(samples, expected(path))
        assert len(samples) >= 3000
        is_off_by_one = container == "VOC" and "LAW" in subtype and n_channels == 1  # libsndfile's
        is_doubtful = container in NO_LENGTH or is_off_by_one
        assert ("may not be whole" in said) == is_doubtful, said

    @by_kind
    def test_cut_file_is_refused_or_doubted(
        self, tmp_path: Path, container: str, subtype: str
    ) -> None:
        path = written(tmp_path, container, subtype)
        content, whole = path.read_bytes(), expected(path)
        n_bytes = len(content)
        places = [4, 12, 30, 50, 90, 150, n_bytes // 4, n_bytes // 2, n_bytes * 9 // 10]
        for place in [*places, n_bytes - 300, n_bytes - 20, n_bytes - 3, n_bytes - 1]:
            path.write_bytes(content[:place])
            samples, said = outcome(path)
            if samples is None or not len(samples):  # load_audio refuses what is empty
                continue
            is_all = np.array_equal(samples, whole)  # only what stands behind the sound is gone
            assert is_all or "may not be whole" in said, f"{place} of {n_bytes} bytes: {said}"

    @pytest.mark.parametrize(
        ("container", "find", "form", "values"),
        [
            ("WAV", b"data", "<I", [0, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x8000_0000, 0x7FFF_F000]),
            ("WAVEX", b"data", "<I", [0, 0xFFFF_FFFF, 0x7FFF_FFDB]),
            ("RF64", b"ds64", "<4xqq", [0, -1, 0xFFFF_FFFF, 2**63 - 1]),
            ("AIFF", b"SSND", ">I", [0, 8, 0xFFFF_FFFF, 0x7F00_0000, 0x8000_0000]),
            ("SVX", b"BODY", ">I", [0, 0xFFFF_FFFF, 0x7FFF_FFFF]),
            ("CAF", b"data", ">q", [0, -1, 2**63 - 1]),
            ("W64", b"data", "<12xq", [0, 24, -1]),
            ("AU", b".snd", ">4xI", [0, 0xFFFF_FFFF, 0x7FFF_FFFF]),
        ],
        ids=lambda value: value if isinstance(value, str) and value.isalnum() else "",
    )
    def test_streamed_file_is_read(
        self, tmp_path: Path, container: str, find: bytes, form: str, values: list[int]
    ) -> None:
        for subtype in soundfile.available_subtypes(container):
            if "DWVW" in subtype or "ALAC" in subtype:  # which need a table behind the sound
                continue
            path = written(tmp_path, container, subtype)
            content, whole = path.read_bytes(), expected(path)
            for value in values:
                streamed = bytearray(content)
                n_numbers = len(struct.unpack(form, bytes(struct.calcsize(form))))
                place = content.index(find) + 4
                new = struct.pack(form, *[value] * n_numbers)
                kept = len(new) - struct.calcsize("<q" if "q" in form else "<I") * n_numbers
                streamed[place + kept : place + len(new)] = new[kept:]
                path.write_bytes(streamed)
                samples, said = outcome(path)
                assert samples is not None, f"{subtype} {value:#x}: {said}"
                assert not said, f"{subtype} {value:#x}"
                assert np.array_equal(samples[: len(whole)], whole), f"{subtype} {value:#x}"
                assert len(samples) - len(whole) < 1100  # the padding of a block
                assert np.array_equal(outcome(bytes(streamed))[0], samples)


def wav(claimed: int, sound: bytes, riff: int | None = None) -> bytes:
    """A WAV file of 16 bits at 16 kHz, whose header claims some bytes of sound."""
    riff = min(claimed + 36, 0xFFFF_FFFF) if riff is None else riff
    format_ = struct.pack("<IHHIIHH", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    sizes = struct.pack("<I", riff), struct.pack("<I", claimed)
    return b"RIFF" + sizes[0] + b"WAVEfmt " + format_ + b"data" + sizes[1] + sound


SOUND = (10_000 * noise()[:, 0]).astype("<i2").tobytes()


class TestWavSizes:
    @pytest.mark.parametrize("claimed", [2_000_000_000, 1_000_000_000, 10_000_000, 1 << 28])
    def test_round_number_is_a_placeholder_with_a_warning(self, claimed: int) -> None:
        samples, said = outcome(wav(claimed, SOUND))
        assert samples is not None
        assert len(samples) == 8000
        assert f"round {claimed:,} bytes" in said

    def test_what_contradicts_itself_is_read_with_a_warning(self) -> None:
        for riff in (0, 36, 0xFFFF_FFFF):
            samples, said = outcome(wav(70_001, SOUND, riff))
            assert samples is not None
            assert "contradict" in said

    def test_claim_of_hours_for_a_second_is_read_with_a_warning(self) -> None:
        samples, said = outcome(wav(987_654_321, SOUND))
        assert samples is not None
        assert "987,654,321 bytes of sound and 16,000 are there" in said

    def test_claim_of_a_little_more_is_a_cut_file(self) -> None:
        assert outcome(wav(16_002, SOUND))[0] is None
        assert "cut off" in outcome(wav(70_001, SOUND))[1]

    def test_streamed_one_that_ends_within_a_sample(self) -> None:
        samples, said = outcome(wav(0xFFFF_FFFF, SOUND[:-1]))
        assert samples is not None
        assert "in the middle of a sample" in said

    def test_size_of_nothing_before_other_chunks_is_no_sound(self) -> None:
        samples, said = outcome(wav(0, b"LIST" + struct.pack("<I", 4) + b"INFO"))
        assert samples is not None
        assert samples.shape == (0, 1)
        assert not said

    def test_claim_of_less_than_is_there(self) -> None:
        samples, said = outcome(wav(100, SOUND))
        assert samples is not None
        assert "15,900 bytes follow" in said
        assert outcome(wav(16_000, SOUND + bytes(9000)))[1] == ""
        assert outcome(wav(16_000, SOUND + b"ID3" + SOUND))[1] == ""


def mp3(n_samples: int = 40_000, n_channels: int = 1, **options: Any) -> bytes:
    file = io.BytesIO()
    sound = np.concatenate([0.01 * noise(n_samples, n_channels), noise(n_samples, n_channels)])
    soundfile.write(file, sound, options.pop("rate_hz", 44_100), format="MP3", **options)
    return file.getvalue()


class TestMp3:
    @pytest.mark.parametrize("rate_hz", [16_000, 44_100])
    @pytest.mark.parametrize("n_channels", [1, 2])
    @pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
    def test_without_xings_header_all_is_read(
        self, tmp_path: Path, rate_hz: int, n_channels: int, mode: str
    ) -> None:
        whole = mp3(rate_hz=rate_hz, bitrate_mode=mode, n_channels=n_channels)
        first = _frame(whole[:4])
        assert first is not None
        bare = whole[first.n_bytes :]
        samples, said = outcome(bare)
        assert samples is not None
        assert not said
        reference = outcome(whole)[0]
        assert reference is not None
        assert len(reference) == 80_000
        assert len(samples) % first.n_samples == 0
        assert 0 <= len(samples) - 80_000 - 1105 < 2 * first.n_samples  # the encoder's delay
        inner = samples[1105:][:80_000]
        assert np.abs(inner - reference).max() < 1e-6
        (tmp_path / "bare.mp3").write_bytes(bare)
        native = soundfile.read(tmp_path / "bare.mp3", dtype="float32", always_2d=True)[0]
        n_alike = min(len(native), len(samples))
        assert np.array_equal(samples[:n_alike], native[:n_alike])

    def test_cut_one_without_the_header_is_doubted(self) -> None:
        whole = mp3()
        bare = whole[417:]
        for size in (len(bare) // 2, len(bare) - 1):
            assert "the last one is not all there" in outcome(bare[:size])[1]

    def test_cut_one_with_the_header_is_refused(self) -> None:
        whole = mp3()
        last = whole.rindex(whole[:2])
        for size in (len(whole) // 2, len(whole) - 1, len(whole) - 500, last):
            samples, said = outcome(whole[:size])
            assert samples is None
            assert "cut off" in said

    def test_tags_are_no_sound(self) -> None:
        whole = mp3()
        end = b"TAG" + b"\xff" * 125
        ape = b"APETAGEX" + struct.pack("<IIII", 2000, 2000, 1, 0) + bytes(8)
        ape = b"\xff\xfb\x90" * 656 + ape
        front = b"ID3\x03\x00\x00\x00\x00\x01\x00" + b"\xff" * 128
        for tagged in (whole + end, whole + ape, whole + ape + end, front + whole):
            assert np.array_equal(outcome(tagged)[0], outcome(whole)[0])
            assert not outcome(tagged)[1]

    def test_damaged_beginning_hides_nothing(self) -> None:
        """The frames behind it are counted all the same."""
        bare = mp3(bitrate_mode="VARIABLE")[417:]
        whole = outcome(bare)[0]
        assert whole is not None
        for front in (b"\xff\xfb\x90\x00" + bytes(80), b"\xff\xfb\x00\x00" + bytes(300)):
            samples, said = outcome(front + bare)
            assert samples is None or said or abs(len(samples) - len(whole)) <= 2 * 1152

    def test_joined_ones_are_read_to_the_end(self) -> None:
        samples, said = outcome(mp3() + mp3())
        assert samples is not None
        assert len(samples) > 160_000
        assert "several may have been joined" in said


def pages(content: bytes) -> list[int]:
    starts, place = [], 0
    while 0 <= (place := content.find(b"OggS", place)):
        starts.append(place)
        place += 27
    return starts


class TestOgg:
    @pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
    def test_ends_at_the_page_that_is_marked_as_the_last(
        self, tmp_path: Path, subtype: str
    ) -> None:
        path = written(tmp_path, "OGG", subtype, samples=noise(100_000))
        content = path.read_bytes()
        starts = pages(content)
        assert len(starts) > 5
        for size in (len(content) - 1, starts[-1] + 20, starts[-2] + 300):
            samples, said = outcome(content[:size])
            assert samples is None
            assert "cut off" in said
        samples, said = outcome(content[: starts[-1]])
        assert samples is not None
        assert "none of its pages is marked as the last" in said
        lost = content[: starts[4]] + content[starts[5] :]
        samples, said = outcome(lost)
        assert samples is None or "missing" in said
        samples, said = outcome(content + content)
        assert samples is not None
        assert "2 streams are joined" in said
        samples, said = outcome(content + b"TAG" + bytes(125))
        assert not said
        assert np.array_equal(samples, outcome(content)[0])


def flac_of(n_frames: int, content: bytes) -> bytes:
    """The same FLAC file with another count of samples in its header; 0 is an unknown one."""
    changed = bytearray(content)
    changed[21] = (changed[21] & 0xF0) | n_frames >> 32
    changed[22:26] = struct.pack(">I", n_frames & 0xFFFF_FFFF)
    return bytes(changed)


class TestFlac:
    def test_of_unknown_length_is_read_to_its_end(self, tmp_path: Path) -> None:
        content = written(tmp_path, "FLAC", "PCM_16").read_bytes()
        samples, said = outcome(flac_of(0, content))
        assert not said
        assert np.array_equal(samples, outcome(content)[0])
        assert "lost sync" in outcome(flac_of(0, content[:-1]))[1]

    def test_memory_is_not_taken_because_a_header_asks_for_it(self, tmp_path: Path) -> None:
        content = written(tmp_path, "FLAC", "PCM_16").read_bytes()
        huge = [flac_of((1 << 36) - 1, content), flac_of(0, content), wav(0xFFFF_0001, SOUND)]
        xing = bytearray(mp3())
        place = max(xing.find(b"Xing"), xing.find(b"Info"))
        xing[place + 8 : place + 12] = b"\x7f\xff\xff\xff"
        tracemalloc.start()
        for data in [*huge, bytes(xing)]:
            outcome(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100e6

    def test_long_silence_is_read_in_pieces(self, tmp_path: Path) -> None:
        """Which packs into few bytes, as a claim does that is no true one."""
        path = written(tmp_path, "FLAC", "PCM_16", samples=np.zeros(5_000_000, np.int16))
        assert path.stat().st_size < 100_000
        samples, said = outcome(path)
        assert samples is not None
        assert samples.shape == (5_000_000, 1)
        assert not said
