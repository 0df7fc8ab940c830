"""Any recording becomes mono float32 at 16 kHz, or an error that says what was wrong."""

import base64
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

from hooked_whisper.digits import recordings
from hooked_whisper.errors import (
    AudioError,
    AudioFileError,
    AudioLengthError,
    AudioRateError,
    HookedWhisperError,
    InputError,
)
from hooked_whisper.speech import files, load_audio
from hooked_whisper.speech.audio import encode_audio

DATA = Path(__file__).parents[1] / "data"
JFK = DATA / "jfk.flac"
LIBRISPEECH = DATA / "librispeech-8280-266249-0065.flac"


def sine(rate_hz: float, seconds: float = 1.0, tone_hz: float = 440.0) -> np.ndarray:
    return np.sin(2 * np.pi * tone_hz * np.arange(int(rate_hz * seconds)) / rate_hz)


class TestSamples:
    def test_mono_16khz_file_passes_unchanged(self) -> None:
        integers, rate_hz = soundfile.read(LIBRISPEECH, dtype="int16")
        samples = load_audio(LIBRISPEECH)
        assert rate_hz == 16000
        assert samples.dtype == torch.float32
        assert np.array_equal(samples.numpy() * 32768, integers)

    def test_stereo_44khz_file_is_averaged_and_resampled(self) -> None:
        channels, rate_hz = soundfile.read(JFK, dtype="float64")
        assert (rate_hz, channels.shape[1]) == (44100, 2)
        samples = load_audio(JFK)
        assert samples.shape == (11 * 16000,)
        expected = soxr.resample(channels.mean(1), 44100, 16000)
        np.testing.assert_allclose(samples.numpy(), expected, atol=1e-6)

    @pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 48000, 96000, 22050.5])
    def test_tone_keeps_its_pitch_and_loudness_at_any_rate(self, rate_hz: float) -> None:
        samples = load_audio(sine(rate_hz), rate_hz).numpy()
        assert abs(len(samples) - 16000) <= 1
        # the ends ring, because the tone is cut there
        inside = slice(200, 15800)
        np.testing.assert_allclose(samples[inside], sine(16000)[: len(samples)][inside], atol=2e-3)

    @pytest.mark.parametrize(
        "convert",
        [
            pytest.param(lambda x: x, id="int16"),
            pytest.param(lambda x: x.astype(">i2"), id="big-endian int16"),
            pytest.param(lambda x: x.astype(np.int32) * 65536, id="int32"),
            pytest.param(lambda x: (x / 32768).astype(np.float32), id="float32"),
            pytest.param(lambda x: x / 32768, id="float64"),
            pytest.param(lambda x: np.repeat(x, 2)[::2], id="strided"),
            pytest.param(lambda x: x[::-1].copy()[::-1], id="negative stride"),
            pytest.param(lambda x: x[None], id="one channel"),
            pytest.param(lambda x: np.stack([x, x]), id="two equal channels"),
            pytest.param(lambda x: torch.from_numpy(x), id="int16 tensor"),
            pytest.param(lambda x: torch.from_numpy(x / 32768), id="float64 tensor"),
            pytest.param(
                lambda x: torch.from_numpy(x / 32768).requires_grad_(), id="tensor with gradient"
            ),
        ],
    )
    def test_every_form_of_the_same_sound_is_the_same(self, convert: Any) -> None:
        integers, _ = soundfile.read(LIBRISPEECH, dtype="int16", frames=16000)
        samples = load_audio(convert(integers), 16000)
        assert not samples.requires_grad
        assert torch.equal(samples, torch.from_numpy(integers / np.float32(32768)))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_precision_is_widened(self, dtype: torch.dtype) -> None:
        narrow = torch.from_numpy(sine(16000)).to(dtype)
        assert torch.equal(load_audio(narrow, 16000), narrow.float())

    def test_channels_are_averaged(self) -> None:
        left, right = sine(16000), sine(16000, tone_hz=700)
        samples = load_audio(np.stack([left, right]), 16000)
        np.testing.assert_allclose(samples.numpy(), (left + right) / 2, atol=1e-6)

    def test_pair_of_samples_and_rate(self) -> None:
        assert torch.equal(load_audio((sine(8000), 8000)), load_audio(sine(8000), 8000))

    def test_str_and_path_are_alike(self) -> None:
        assert torch.equal(load_audio(str(JFK)), load_audio(JFK))
        assert torch.equal(load_audio(JFK), load_audio(JFK, rate_hz=44100))

    def test_home_folder_is_expanded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(DATA))
        assert torch.equal(load_audio("~/jfk.flac"), load_audio(JFK))

    def test_result_shares_no_memory_with_the_input(self) -> None:
        array = sine(16000).astype(np.float32)
        before = array.copy()
        load_audio(array, 16000).zero_()
        assert np.array_equal(array, before)

    def test_read_only_array_is_fine(self) -> None:
        array = sine(16000).astype(np.float32)
        array.setflags(write=False)
        assert load_audio(array, 16000).shape == (16000,)

    def test_shortest_audio_is_25_ms(self) -> None:
        assert load_audio(np.zeros(400), 16000).shape == (400,)


class TestFileFormats:
    @pytest.mark.parametrize(
        ("suffix", "subtype", "tolerance"),
        [
            ("wav", "PCM_16", 1e-4),
            ("wav", "PCM_24", 1e-6),
            ("wav", "FLOAT", 1e-6),
            ("wav", "PCM_U8", 1e-2),
            ("flac", "PCM_16", 1e-4),
            ("aiff", "PCM_16", 1e-4),
            ("ogg", "VORBIS", 5e-2),
            ("mp3", "MPEG_LAYER_III", 5e-2),
        ],
    )
    def test_reads(self, tmp_path: Path, suffix: str, subtype: str, tolerance: float) -> None:
        file = tmp_path / f"tön.{suffix}"
        soundfile.write(file, 0.5 * sine(16000), 16000, subtype=subtype)
        samples = load_audio(file).numpy()
        assert samples.shape == (16000,)
        assert np.abs(samples - 0.5 * sine(16000))[500:-500].max() < tolerance

    def test_wav_written_to_a_pipe_is_complete(self, tmp_path: Path) -> None:
        """ffmpeg cannot go back to write the length, and leaves 0xFFFFFFFF."""
        file = tmp_path / "stream.wav"
        soundfile.write(file, sine(16000), 16000)
        content = bytearray(file.read_bytes())
        content[4:8] = content[40:44] = struct.pack("<I", 0xFFFF_FFFF)
        assert content[36:40] == b"data"
        file.write_bytes(content)
        assert load_audio(file).shape == (16000,)

    def test_three_channels_in_a_file_are_averaged(self, tmp_path: Path) -> None:
        tones = np.stack([sine(16000, tone_hz=hz) for hz in (300, 500, 800)], axis=1)
        soundfile.write(tmp_path / "three.wav", tones, 16000, subtype="FLOAT")
        samples = load_audio(tmp_path / "three.wav")
        np.testing.assert_allclose(samples.numpy(), tones.mean(1), atol=1e-6)


def bad_file(folder: Path, kind: str) -> Path:
    """A file that is no usable audio, in one of the ways that files are not."""
    file = folder / f"{kind.replace(' ', '-')}.wav"
    if kind == "folder":
        file.mkdir()
    elif kind == "nothing in it":
        file.touch()
    elif kind == "text":
        file.write_text("hello " * 1000)
    elif kind == "headerless":
        file = file.with_suffix(".raw")
        file.write_bytes(bytes(1000))
    elif kind.startswith("cut "):
        file = file.with_suffix("." + kind.split()[1])
        soundfile.write(file, sine(16000, 4) + 0.1 * sine(16000, 4, 3000), 16000)
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * float(kind.split()[2]))])
    elif kind == "damaged flac":
        file = file.with_suffix(".flac")
        content = bytearray(LIBRISPEECH.read_bytes())
        content[100_000:102_000] = bytes(2000)
        file.write_bytes(content)
    return file


class TestBadFiles:
    @pytest.mark.parametrize(
        ("kind", "match"),
        [
            ("missing", r"there is no file '.*missing\.wav' \(from"),
            ("folder", r"is a folder; pass the files in it as a list"),
            ("nothing in it", r"nothing-in-it\.wav' is empty: it holds 0 bytes"),
            ("text", r"cannot be read as audio .*Format not recognised.*ffmpeg"),
            ("headerless", r"cannot be read as audio"),
            ("cut wav 0.5", r"cut off or damaged: 2\.00 s can be read"),
            ("cut wav 0.0002", r"cannot be read as audio|cut off"),
            ("cut aiff 0.5", r"cut off or damaged: 2\.00 s can be read"),
            ("cut flac 0.5", r"cannot be read as audio .*flac decoder lost sync"),
            ("cut flac 0.002", r"cannot be read as audio"),
            ("cut mp3 0.5", r"cut off or damaged"),
            ("cut ogg 0.01", r"cut off or damaged: nothing can be read"),
            ("damaged flac", r"cannot be read as audio"),
        ],
    )
    def test_says_what_is_wrong_with_the_file(self, tmp_path: Path, kind: str, match: str) -> None:
        file = bad_file(tmp_path, kind)
        with pytest.raises(AudioFileError, match=match) as caught:
            load_audio(file)
        assert isinstance(caught.value, OSError | ValueError)
        assert file.name in str(caught.value)

    def test_without_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        soundfile.write(tmp_path / "a.wav", sine(16000), 16000)

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(files, "open", refuse, raising=False)  # root may read anything
        with pytest.raises(AudioFileError, match=r"a\.wav' cannot be read .*Permission denied"):
            load_audio(tmp_path / "a.wav")

    def test_no_samples(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
        with pytest.raises(AudioError, match=r"empty\.wav' is empty: it has no samples"):
            load_audio(tmp_path / "empty.wav")

    def test_nan_in_a_file(self, tmp_path: Path) -> None:
        samples = sine(8000)
        samples[4000] = np.nan
        soundfile.write(tmp_path / "nan.wav", samples, 8000, subtype="FLOAT")
        with pytest.raises(AudioError, match=r"nan\.wav' has 1 samples .* the first at 0\.500 s"):
            load_audio(tmp_path / "nan.wav")

    def test_another_rate_than_the_files(self) -> None:
        with pytest.raises(AudioRateError, match=r"says 44100 Hz and rate_hz says 16000"):
            load_audio(JFK, rate_hz=16000)

    def test_absurd_rate_in_a_file(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "slow.wav", np.zeros(400), 10)
        with pytest.raises(AudioRateError, match=r"10\.0; sampling rates from 1000 to 1000000"):
            load_audio(tmp_path / "slow.wav")


SOUND = sine(16000)


class TestBadArrays:
    @pytest.mark.parametrize(
        ("source", "error", "match"),
        [
            pytest.param(np.zeros(0), AudioError, r"empty: its shape is \(0,\)", id="empty"),
            pytest.param(torch.zeros(2, 0), AudioError, r"empty: its shape", id="empty stereo"),
            pytest.param(
                np.where(np.arange(16000) == 8000, np.nan, SOUND),
                AudioError,
                r"1 samples that are NaN or infinite, the first at 0\.500 s \(nan\)",
                id="nan",
            ),
            pytest.param(
                np.where(np.arange(16000) >= 15998, -np.inf, SOUND),
                AudioError,
                r"2 samples that are NaN or infinite, the first at 1\.000 s \(-inf\)",
                id="infinity",
            ),
            pytest.param(SOUND * 1e300, AudioError, r"NaN or infinite", id="over float32"),
            pytest.param(SOUND * 32767, AudioError, r"divide them by 32768", id="float integers"),
            pytest.param(SOUND[:399], AudioLengthError, r"24\.94 ms .*at least 25 ms", id="short"),
            pytest.param(np.zeros(1), AudioLengthError, r"at least 25 ms", id="one sample"),
            pytest.param(SOUND * 1j, AudioError, r"dtype complex128", id="complex"),
            pytest.param(SOUND > 0, AudioError, r"dtype bool", id="bool"),
            pytest.param(np.zeros(999, np.uint8), AudioError, r"dtype uint8", id="uint8"),
            pytest.param(np.zeros(999, int), AudioError, r"dtype int64.*int16", id="int64"),
            pytest.param(np.array(["a"] * 999), AudioError, r"dtype <U1", id="strings"),
            pytest.param(np.array([None] * 999), AudioError, r"dtype object", id="objects"),
            pytest.param(np.array(1.0), AudioError, r"shape \(\); it must be", id="scalar"),
            pytest.param(np.zeros((1, 2, 999)), AudioError, r"pass a list", id="three axes"),
            pytest.param(np.zeros((16000, 2)), AudioError, r"pass audio\.T", id="channels last"),
            pytest.param(np.zeros((16000, 1)), AudioError, r"pass audio\.T", id="column"),
            pytest.param(np.zeros((3, 16000)), AudioError, r"list\(audio\)", id="three channels"),
            pytest.param(torch.zeros(999, device="meta"), AudioError, r"on meta", id="meta"),
            pytest.param(torch.zeros(999).to_sparse(), AudioError, r"sparse", id="sparse"),
            pytest.param(None, AudioError, r"^None is no audio; a path", id="none"),
            pytest.param(3, AudioError, r"^3 is no audio; a path", id="number"),
            pytest.param(b"RIFF", AudioError, r"^bytes is no audio; a path", id="bytes"),
            pytest.param({"array": SOUND}, AudioError, r"^dict is no audio", id="dict"),
            pytest.param([0.0, 0.1], AudioError, r"^list is no audio", id="list"),
            pytest.param((SOUND, 16000, 1), AudioError, r"tuple of 3 is no audio", id="triple"),
            pytest.param((SOUND, 8000), AudioRateError, r"the pair says 8000 Hz", id="two rates"),
        ],
    )
    def test_says_what_is_wrong(self, source: Any, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match) as caught:
            load_audio(source, 16000)
        assert isinstance(caught.value, HookedWhisperError)
        assert isinstance(caught.value, ValueError)

    @pytest.mark.parametrize(
        ("rate_hz", "match"),
        [
            pytest.param(None, r"does not know its sampling rate.*rate_hz=16000", id="missing"),
            pytest.param(0, r"rate_hz is 0; .*1000 to 1000000 Hz", id="zero"),
            pytest.param(-16000, r"rate_hz is -16000;", id="negative"),
            pytest.param(16, r"rate_hz is 16; .*not kHz", id="kHz"),
            pytest.param(1e9, r"rate_hz is 1000000000\.0;", id="giga"),
            pytest.param(float("nan"), r"rate_hz is nan;", id="nan"),
            pytest.param(float("inf"), r"rate_hz is inf;", id="infinite"),
            pytest.param("16000", r"rate_hz is '16000'; it must be a number", id="string"),
            pytest.param(True, r"rate_hz is True; it must be a number", id="bool"),
            pytest.param([16000], r"rate_hz is \[16000\]; it must be a number", id="list"),
        ],
    )
    def test_impossible_rate(self, rate_hz: Any, match: str) -> None:
        with pytest.raises(AudioRateError, match=match):
            load_audio(SOUND, rate_hz)


def decoded(samples: torch.Tensor) -> Any:
    """What a player makes of a recording in a page."""
    kind, _, body = encode_audio(samples).partition(",")
    assert kind == "data:audio/mpeg;base64"
    found, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(body)), dtype="float32")
    assert rate_hz == 16000
    return found


def test_sound_is_small_and_keeps_its_time() -> None:
    samples = load_audio(recordings()[1].path)
    found = decoded(samples)
    assert len(found) == len(samples), "the encoder's delay is written in the file, and taken away"
    assert np.corrcoef(found, samples.numpy())[0, 1] > 0.99
    assert len(encode_audio(samples)) < 8000 * len(samples) / 16000 + 1000


@pytest.mark.parametrize("n", [1, 400, 16000], ids=["one sample", "25 ms", "1 s"])
def test_any_length_can_be_played(n: int) -> None:
    assert len(decoded(torch.full((n,), 3.0))) == n


def test_no_sound_is_refused() -> None:
    with pytest.raises(InputError, match="there are no samples"):
        encode_audio(torch.zeros(0))
    with pytest.raises(InputError, match="rate_hz is 8000; pages hold sound at 16000 Hz"):
        encode_audio(torch.zeros(10), 8000)
