"""The digits model does what its card says, on the recordings that ship with it."""

import json
from pathlib import Path

import pytest
import torch

import hooked_whisper
from hooked_whisper import HookedWhisper

# openai-whisper leaves the file of its vocabulary to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tiktoken:pytest.PytestUnraisableExceptionWarning"),
    # As users run it: a window of 30 s, each of its steps checked, takes three times as long.
    pytest.mark.usefixtures("without_shape_checks", "blocks_run_once"),
]

FOLDER = Path(hooked_whisper.__file__).parent / "weights" / "digits"
RECORDINGS = json.loads((FOLDER / "recordings" / "index.json").read_text())["recordings"]


@pytest.fixture(scope="module")
def model() -> HookedWhisper:
    return HookedWhisper.from_pretrained("digits", device="cpu")


@pytest.fixture(params=RECORDINGS, ids=lambda entry: entry["file"])
def recording(request):
    return request.param


def test_generate_hears_every_digit(model, recording):
    mel = model.to_mel(str(FOLDER / "recordings" / recording["file"]))
    assert model.generate(mel).texts == [recording["text"]]


def test_transcribe_hears_every_digit(model, recording):
    result = model.transcribe(str(FOLDER / "recordings" / recording["file"]))
    assert result["text"].strip() == recording["text"]
    assert result["language"] == "en"


def test_decoding_with_timestamps_ends_with_the_speech(model, recording):
    mel = model.to_mel(str(FOLDER / "recordings" / recording["file"]))
    tokens = model.generate(mel, without_timestamps=False).tokens[0]
    stamps = model.to_str_tokens(tokens[tokens >= 50364])
    end_s = recording["words"][-1]["end_s"]
    assert stamps[0] == "<|0.00|>"
    assert float(stamps[-1].strip("<|>")) == pytest.approx(end_s, abs=0.61)


@pytest.mark.parametrize(
    ("seconds", "loudness", "without_timestamps"),
    [
        pytest.param(0.5, 0.0, True, id="silence, 0.5 s, text"),
        pytest.param(30.0, 0.0, False, id="silence, 30 s, timestamps"),
        pytest.param(0.5, 0.001, False, id="faint noise, 0.5 s, timestamps"),
        pytest.param(30.0, 0.001, True, id="faint noise, 30 s, text"),
        pytest.param(0.5, 0.05, False, id="noise, 0.5 s, timestamps"),
        pytest.param(30.0, 0.05, True, id="noise, 30 s, text"),
    ],
)
def test_nothing_is_heard_where_nobody_speaks(model, seconds, loudness, without_timestamps):
    generator = torch.Generator().manual_seed(0)
    audio = loudness * torch.randn(int(seconds * 16_000), generator=generator)
    mel = model.to_mel(audio, rate_hz=16_000.0)
    options = {"without_timestamps": without_timestamps}
    for suppress_blank in (False, True):
        generation = model.generate(mel, suppress_blank=suppress_blank, **options)
        assert generation.texts == [""]
        assert generation.no_speech_prob > 0.6
    assert model.transcribe(audio)["text"] == ""


@pytest.mark.parametrize("start_s", [0, 13, 26], ids=lambda s: f"at {s} s")
def test_the_place_in_the_window_does_not_matter(model, start_s):
    entry = next(e for e in RECORDINGS if len(e["digits"]) == 3)
    quiet = torch.zeros(int(start_s * 16_000))
    audio = model.to_mel(str(FOLDER / "recordings" / entry["file"]))
    from hooked_whisper.speech.audio import load_audio

    samples = load_audio(str(FOLDER / "recordings" / entry["file"]))
    mel = model.to_mel(torch.cat([quiet, samples])[: 30 * 16_000], rate_hz=16_000.0)
    assert audio.values.shape == mel.values.shape
    assert model.generate(mel).texts == [entry["text"]]


def test_recordings_cover_all_lengths_speakers_and_digits():
    assert 6 <= len(RECORDINGS) <= 10
    assert {len(entry["digits"]) for entry in RECORDINGS} == {1, 2, 3, 4, 5}
    assert len({entry["speaker"] for entry in RECORDINGS}) == 6
    assert {digit for entry in RECORDINGS for digit in entry["digits"]} == set(range(10))


def test_recordings_are_of_the_validation_split(recording):
    for word, digit in zip(recording["words"], recording["digits"], strict=True):
        said, speaker, index = Path(word["source"]).stem.split("_")
        assert (int(said), speaker) == (digit, recording["speaker"])
        assert 5 <= int(index) <= 9
        assert 0 < word["start_s"] < word["end_s"] < recording["duration_s"]


def test_two_recordings_share_their_times():
    first, second = RECORDINGS[:2]
    assert first["speaker"] == second["speaker"]
    assert first["duration_s"] == second["duration_s"]
    starts = [[word["start_s"] for word in entry["words"]] for entry in (first, second)]
    assert starts[0] == starts[1]


def test_the_folder_is_small_and_says_its_licence():
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    saes = sum(size for path, size in sizes.items() if "saes" in path.parts)
    assert sum(sizes.values()) - saes <= 4 * 2**20
    assert saes <= 8 * 2**20 / 2
    card = (FOLDER / "MODEL_CARD.md").read_text()
    assert "CC BY-SA 4.0" in card
    assert "all sequences" in card
    assert "Jackson" in (FOLDER / "ATTRIBUTION.md").read_text()
    assert "by-sa/4.0" in (FOLDER / "LICENSE").read_text()


def test_alignment_heads_are_chosen(model):
    heads = model.alignment_heads.to_dense()
    assert 1 <= int(heads.sum()) <= 6
