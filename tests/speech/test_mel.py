"""The log-mel is openai-whisper's, and its lengths say how much is sound."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hooked_whisper.digits import recordings
from hooked_whisper.errors import AudioError, AudioFileError, AudioLengthError, MelError
from hooked_whisper.speech import Mel, check_mel, load_audio, to_mel
from hooked_whisper.speech.mel import positions_before_padding

DATA = Path(__file__).parents[1] / "data"
JFK = DATA / "jfk.flac"
LIBRISPEECH = DATA / "librispeech-8280-266249-0065.flac"
CLIPS = [pytest.param(JFK, id="jfk"), pytest.param(LIBRISPEECH, id="librispeech")]
TINY = {"n_mels": 80, "n_frames": 3000}
SMALL = {"n_mels": 80, "n_frames": 100}
"""A window of one second, which is quick."""


def noise(n_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n_samples).astype(np.float32)


class TestEqualsTheReferences:
    @pytest.mark.parametrize("n_mels", [80, 128])
    def test_openai_whisper_bit_for_bit_from_the_file(self, n_mels: int) -> None:
        from whisper.audio import log_mel_spectrogram, pad_or_trim

        integers, _ = soundfile.read(LIBRISPEECH, dtype="int16")
        samples = integers.astype(np.float32) / 32768.0  # as whisper.load_audio does
        expected = log_mel_spectrogram(pad_or_trim(samples), n_mels)
        mel = to_mel(LIBRISPEECH, n_mels=n_mels, n_frames=3000)
        assert torch.equal(mel.values, expected[None])

    @pytest.mark.parametrize("n_mels", [80, 128])
    @pytest.mark.parametrize("clip", CLIPS)
    def test_openai_whisper_bit_for_bit(self, clip: Path, n_mels: int) -> None:
        from whisper.audio import log_mel_spectrogram, pad_or_trim

        expected = log_mel_spectrogram(pad_or_trim(load_audio(clip)), n_mels)
        assert torch.equal(to_mel(clip, n_mels=n_mels, n_frames=3000).values, expected[None])

    @pytest.mark.parametrize("n_mels", [80, 128])
    def test_transformers(self, n_mels: int) -> None:
        from transformers import WhisperFeatureExtractor

        waveforms = [load_audio(clip).numpy() for clip in (JFK, LIBRISPEECH)]
        extractor = WhisperFeatureExtractor(feature_size=n_mels)
        expected = extractor(
            waveforms, sampling_rate=16000, return_tensors="pt", return_attention_mask=True
        )
        mel = to_mel([JFK, LIBRISPEECH], n_mels=n_mels, n_frames=3000)
        torch.testing.assert_close(mel.values, expected.input_features, atol=1e-4, rtol=0)
        assert mel.n_frames.tolist() == expected.attention_mask.sum(1).tolist()

    def test_cut_is_openai_whispers_pad_or_trim(self) -> None:
        from whisper.audio import log_mel_spectrogram, pad_or_trim

        samples = noise(31 * 16000)
        mel = to_mel(samples, rate_hz=16000, cut=True, **TINY)
        assert torch.equal(mel.values[0], log_mel_spectrogram(pad_or_trim(samples)))
        assert mel.n_frames.tolist() == [3000]

    def test_a_shorter_window_is_openai_whispers_padded_to_it(self) -> None:
        from whisper.audio import log_mel_spectrogram, pad_or_trim

        samples = noise(8000)
        mel = to_mel(samples, rate_hz=16000, **SMALL)
        assert torch.equal(mel.values[0], log_mel_spectrogram(pad_or_trim(samples, 16000)))


class TestToMel:
    def test_both_clips(self) -> None:
        mel = to_mel([JFK, str(LIBRISPEECH)], **TINY)
        assert mel.shape == (2, 80, 3000)
        assert mel.dtype == torch.float32
        assert mel.n_frames.tolist() == [1100, 1702]
        assert mel.n_positions.tolist() == [550, 851]
        assert mel.seconds.tolist() == pytest.approx([11.0, 17.02])

    def test_frames_after_the_sound_are_silence(self) -> None:
        mel = to_mel(noise(8000), rate_hz=16000, **SMALL)
        # the window of 25 ms reaches a little beyond its frame
        silence = mel.values[0, :, mel.n_frames[0] + 2 :]
        assert silence.numel() and bool((silence == mel.values.min()).all())
        assert bool((mel.values[0, :, : mel.n_frames[0]] > mel.values.min()).all())

    @pytest.mark.parametrize(
        ("n_samples", "n_frames", "n_positions"),
        [(400, 3, 2), (480, 3, 2), (481, 4, 2), (640, 4, 2), (641, 5, 3), (16000, 100, 50)],
    )
    def test_lengths_are_rounded_up(self, n_samples: int, n_frames: int, n_positions: int) -> None:
        mel = to_mel(noise(n_samples), rate_hz=16000, **SMALL)
        assert mel.n_frames.tolist() == [n_frames]
        assert mel.n_positions.tolist() == [n_positions]
        assert mel.n_frames.dtype == torch.int64

    def test_batch_neighbours_change_nothing(self) -> None:
        quiet, loud = 0.001 * noise(9000, 1), noise(16000, 2)
        together = to_mel([quiet, loud], rate_hz=16000, **SMALL)
        for i, alone in enumerate((quiet, loud)):
            single = to_mel(alone, rate_hz=16000, **SMALL)
            assert torch.equal(together.values[i], single.values[0])
            assert together.n_frames[i] == single.n_frames[0]

    def test_list_of_mixed_sources(self) -> None:
        samples = noise(16000)
        sources = [JFK, (samples, 16000), (torch.from_numpy(samples), 8000)]
        mel = to_mel(sources, **TINY)
        assert mel.n_frames.tolist() == [1100, 100, 200]

    def test_dtype(self) -> None:
        mel = to_mel(noise(8000), rate_hz=16000, dtype=torch.bfloat16, **SMALL)
        exact = to_mel(noise(8000), rate_hz=16000, **SMALL)
        assert torch.equal(mel.values, exact.values.bfloat16())
        assert torch.equal(mel.n_frames, exact.n_frames)

    def test_silence_is_allowed(self) -> None:
        mel = to_mel(np.zeros(16000), rate_hz=16000, **SMALL)
        assert mel.values.unique().tolist() == [-1.5]

    @pytest.mark.parametrize(
        ("audio", "options", "error", "match"),
        [
            pytest.param(
                noise(16001),
                {},
                AudioLengthError,
                r"1\.00 s long; this model's window is 1 s.*cut=True.*model\.transcribe",
                id="too long",
            ),
            pytest.param(noise(399), {}, AudioLengthError, r"at least 25 ms", id="too short"),
            pytest.param([], {}, AudioError, r"the list of audio is empty", id="empty list"),
            pytest.param(
                [noise(800), "none.wav"],
                {"rate_hz": None},
                AudioError,
                r"recording 0 of the list: an array does not know its sampling rate",
                id="no rate in a list",
            ),
            pytest.param(
                [noise(800), "none.wav"],
                {},
                AudioFileError,
                r"recording 1 of the list: there is no file 'none\.wav'",
                id="missing file in a list",
            ),
            pytest.param(
                [0.0, 0.5],
                {},
                AudioError,
                r"recording 0 of the list: 0\.0 is no audio",
                id="floats",
            ),
            pytest.param(
                noise(800), {"n_mels": 16}, MelError, r"80 or 128 bands; .* takes 16", id="bands"
            ),
            pytest.param(
                Mel(torch.zeros(1, 80, 100), torch.tensor([5])),
                {},
                AudioError,
                r"is a mel already: pass it to the model",
                id="mel",
            ),
        ],
    )
    def test_says_what_is_wrong(
        self, audio: Any, options: dict[str, Any], error: type[Exception], match: str
    ) -> None:
        with pytest.raises(error, match=match):
            to_mel(audio, **{"rate_hz": 16000, **SMALL, **options})


def mel_of(*n_frames: int, window: int = 10) -> Mel:
    values = torch.arange(len(n_frames) * 4.0 * window).reshape(len(n_frames), 4, window)
    return Mel(values, torch.tensor(n_frames))


class TestMel:
    def test_is_a_sequence_of_recordings(self) -> None:
        mel = mel_of(1, 2, 3)
        assert len(mel) == 3
        assert [one.n_frames.tolist() for one in mel] == [[1], [2], [3]]
        assert torch.equal(torch.cat([one.values for one in mel]), mel.values)

    @pytest.mark.parametrize(
        ("index", "expected"),
        [
            pytest.param(0, [1], id="first"),
            pytest.param(-1, [3], id="last"),
            pytest.param(np.int64(1), [2], id="numpy integer"),
            pytest.param(slice(1, None), [2, 3], id="slice"),
            pytest.param(slice(None, None, 2), [1, 3], id="step"),
            pytest.param(slice(None, None, -1), [3, 2, 1], id="backwards"),
            pytest.param(slice(0, 99), [1, 2, 3], id="past the end"),
        ],
    )
    def test_index(self, index: Any, expected: list[int]) -> None:
        mel = mel_of(1, 2, 3)
        part = mel[index]
        assert part.n_frames.tolist() == expected
        assert torch.equal(part.values, mel.values[[n - 1 for n in expected]])

    @pytest.mark.parametrize("index", [3, -4, slice(3, 9)], ids=str)
    def test_index_out_of_range(self, index: Any) -> None:
        with pytest.raises(IndexError, match=r"out of range|none of the 3 recordings"):
            mel_of(1, 2, 3)[index]

    def test_to(self) -> None:
        mel = mel_of(1, 2)
        half = mel.to(dtype=torch.float16)
        assert (half.dtype, half.n_frames.dtype) == (torch.float16, torch.int64)
        assert mel.dtype == torch.float32
        moved = mel.to("meta", torch.float64)
        assert (moved.device.type, moved.n_frames.device.type) == ("meta", "meta")
        assert (moved.dtype, moved.n_frames.dtype) == (torch.float64, torch.int64)

    def test_cat(self) -> None:
        mel = mel_of(1, 2, 3)
        again = Mel.cat([mel[0], mel[1:]])
        assert torch.equal(again.values, mel.values)
        assert torch.equal(again.n_frames, mel.n_frames)

    @pytest.mark.parametrize(
        ("mels", "match"),
        [
            pytest.param([], r"no mels to join", id="none"),
            pytest.param(
                [mel_of(1), mel_of(1, window=12)],
                r"mel 1 is Mel\(1 x 4 bands x 12 frames.* beside mel 0",
                id="windows",
            ),
            pytest.param(
                [mel_of(1), mel_of(1).to(dtype=torch.float16)], r"float16.*float32", id="dtypes"
            ),
        ],
    )
    def test_cat_refuses(self, mels: list[Mel], match: str) -> None:
        with pytest.raises(MelError, match=match):
            Mel.cat(mels)

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError, match="n_frames"):
            mel_of(1).n_frames = torch.tensor([2])  # type: ignore[misc]

    def test_repr_is_short(self) -> None:
        expected = "Mel(2 x 4 bands x 10 frames, 0.01, 0.10 s of sound, torch.float32, cpu)"
        assert repr(mel_of(1, 10)) == expected

    @pytest.mark.parametrize(
        ("values", "n_frames", "match"),
        [
            pytest.param([[0.0]], torch.tensor([1]), r"mel is list; .*tensor", id="list"),
            pytest.param(torch.zeros(4, 9), torch.tensor([1]), r"Add the batch axis", id="axes"),
            pytest.param(torch.zeros(1, 4, 9), 9, r"n_frames is 9; .*one integer", id="number"),
            pytest.param(
                torch.zeros(2, 4, 9),
                torch.tensor([1]),
                r"shape \(1,\) and dtype torch.int64; .*the 2 rec",
                id="lengths",
            ),
            pytest.param(
                torch.zeros(1, 4, 9), torch.tensor([1.0]), r"dtype torch\.float32", id="floats"
            ),
            pytest.param(
                torch.zeros(1, 4, 9), torch.tensor([10]), r"\[10\]; 0 to 9 frames", id="too many"
            ),
            pytest.param(
                torch.zeros(1, 4, 9), torch.tensor([-1]), r"\[-1\]; 0 to 9 frames", id="negative"
            ),
        ],
    )
    def test_refuses_what_does_not_fit(self, values: Any, n_frames: Any, match: str) -> None:
        # as a user builds one, without the type checks that only a test run has
        with pytest.raises(MelError, match=match):
            inspect.unwrap(Mel.__init__)(Mel.__new__(Mel), values, n_frames)


def with_value(value: float) -> torch.Tensor:
    mel = torch.zeros(2, 80, 100)
    mel[1, 7, 42] = value
    return mel


@pytest.mark.parametrize(
    ("n_frames", "n_positions"), [(0, 0), (1, 1), (2, 1), (99, 50), (100, 50), (200, 100)]
)
def test_positions_before_the_padding_are_rounded_up(n_frames: int, n_positions: int) -> None:
    """Zeros, as `transcribe` fills with, end sharply; digital silence is heard a frame late."""
    for silence, late in ((0.0, 0), (-1.0, 1)):
        values = torch.full((2, 80, 200), silence)
        heard = n_frames and min(n_frames + late, 200)
        values[0, 7, :heard] = torch.arange(heard) % 2 + 1.0  # sound in a single band
        assert positions_before_padding(values).tolist() == [n_positions, 0], silence


def test_positions_before_the_padding_are_those_of_the_recordings() -> None:
    """Of real recordings, which end within a frame: at most one more."""
    found, wanted = [], []
    for recording in recordings():
        mel = to_mel(recording.path, n_mels=80, n_frames=3000)
        found.append(int(positions_before_padding(mel.values)))
        wanted.append(int(mel.n_positions))
    more = [one - other for one, other in zip(found, wanted, strict=True)]
    assert set(more) <= {0, 1} and sum(more) <= 2


class TestCheckMel:
    @pytest.mark.parametrize(
        "mel",
        [
            pytest.param(torch.zeros(1, 80, 100), id="float32"),
            pytest.param(torch.zeros(3, 80, 100, dtype=torch.bfloat16), id="bfloat16 batch"),
            pytest.param(torch.zeros(3, 80, 100, device="meta"), id="meta"),
            pytest.param(torch.full((1, 80, 100), 60000.0).half(), id="sum over float16"),
            pytest.param(torch.full((1, 80, 100), 1e38), id="sum over float32"),
            pytest.param(torch.zeros(1, 80, 100, requires_grad=True), id="gradient"),
        ],
    )
    def test_takes(self, mel: torch.Tensor) -> None:
        check_mel(mel, 80, 100)

    @pytest.mark.parametrize(
        ("mel", "error", "match"),
        [
            pytest.param("jfk.flac", MelError, r"mel is 'jfk\.flac'.*to_mel\(audio\)", id="path"),
            pytest.param(np.zeros((1, 80, 100)), MelError, r"mel is an array of shape", id="array"),
            pytest.param(None, MelError, r"mel is None; it must be a tensor", id="none"),
            pytest.param(torch.zeros(1, 80, 100).int(), MelError, r"torch\.int32", id="integers"),
            pytest.param(torch.zeros(80, 100), MelError, r"mel\[None\]", id="no batch axis"),
            pytest.param(torch.zeros(16000), MelError, r"\(16000,\).*to_mel", id="waveform"),
            pytest.param(torch.zeros(1, 1, 80, 100), MelError, r"\(1, 1, 80, 100\)", id="4 axes"),
            pytest.param(torch.zeros(0, 80, 100), MelError, r"no recordings", id="no recordings"),
            pytest.param(torch.zeros(1, 100, 80), MelError, r"transpose\(1, 2\)", id="swapped"),
            pytest.param(torch.zeros(1, 128, 100), MelError, r"128 bands; .* takes 80", id="bands"),
            pytest.param(
                torch.zeros(1, 80, 98),
                AudioLengthError,
                r"mel has 98 frames; the encoder takes exactly 100 \(1 s at 100 frames/s\)\. "
                r"Make it with model\.to_mel\(audio\)\.",
                id="frames",
            ),
            pytest.param(
                with_value(float("nan")),
                MelError,
                r"1 values .*recording 1, band 7, frame 42",
                id="nan",
            ),
            pytest.param(with_value(float("inf")), MelError, r"NaN or infinite", id="infinity"),
            pytest.param(with_value(-float("inf")), MelError, r"NaN or infinite", id="minus"),
        ],
    )
    def test_says_what_is_wrong(self, mel: Any, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            check_mel(mel, 80, 100)
