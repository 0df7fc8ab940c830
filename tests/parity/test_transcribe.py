"""whisper.transcribe gives the very result on this model that it gives on openai-whisper's class.

With random weights the text is nonsense, but it has to be the same nonsense.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hooked_whisper

# openai-whisper's own: it leaves its vocabulary's file open, and sorts tensors with numpy.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tiktoken:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

RECORDING = Path(__file__).parent.parent / "data" / "jfk.flac"

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no-timestamps": {"without_timestamps": True, "initial_prompt": "Ask not"},
    "words": {"word_timestamps": True},
    "beam-words": {"beam_size": 5, "word_timestamps": True},
    "beam-words-no-timestamps": {
        "beam_size": 5,
        "word_timestamps": True,
        "without_timestamps": True,
    },
    "language-detected": {"language": None, "condition_on_previous_text": False},
    "clips": {"clip_timestamps": "0,4,6,9"},
    "fallback": {"temperature": (0.0, 0.4, 0.8), "best_of": 2, "logprob_threshold": 0.0},
}
CASES = [
    pytest.param("tiny", "words", marks=pytest.mark.slow, id="tiny-words"),
    *[pytest.param("digits", name, id=f"digits-{name}") for name in OPTIONS],
]


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    """Eleven seconds of speech at 16 kHz."""
    from hooked_whisper.speech.audio import load_audio

    return load_audio(RECORDING).numpy()


@pytest.mark.parametrize(("size", "option"), CASES)
def test_same_result(make_family: Any, audio: np.ndarray, size: str, option: str) -> None:
    family = make_family(size)
    ours = transcribe(family.hooked, audio, **OPTIONS[option])
    theirs = transcribe(family.openai, audio, **OPTIONS[option])
    assert ours["text"] == theirs["text"]
    assert ours["language"] == theirs["language"]
    assert len(ours["segments"]) == len(theirs["segments"])
    for our, their in zip(ours["segments"], theirs["segments"], strict=True):
        our_words, their_words = our.pop("words", []), their.pop("words", [])
        assert our == their
        assert_same_words(our_words, their_words)
    if size == "tiny":
        assert any(segment["tokens"] for segment in ours["segments"])


def test_words_of_a_recording_that_the_model_understands(digits: Any) -> None:
    from hooked_whisper.speech.audio import load_audio

    name = "yweweler-6-0-3-7-2.flac"
    folder = Path(hooked_whisper.__file__).parent / "weights" / "digits" / "recordings"
    spoken = load_audio(folder / name).numpy()
    options = {"beam_size": 5, "word_timestamps": True}
    ours, theirs = (transcribe(each, spoken, **options) for each in (digits.hooked, digits.openai))
    assert ours["text"] == theirs["text"] != ""
    for our, their in zip(ours["segments"], theirs["segments"], strict=True):
        assert_same_words(our.pop("words"), their.pop("words"))
        assert our == their


def test_method_gives_what_the_function_gives(digits: Any, audio: np.ndarray) -> None:
    options = {"language": "en", "sample_len": 8, "temperature": 0.0}
    from_array = digits.hooked.transcribe(audio, **options)
    assert from_array == transcribe(digits.openai, audio, sample_len=8)
    assert digits.hooked.transcribe(RECORDING, **options) == from_array
    timed = digits.hooked.transcribe(RECORDING, word_timestamps=True, **options)["segments"]
    numbers = [each for found in (*timed, *timed[0]["words"]) for each in found.values()]
    assert not any(isinstance(each, np.generic) for each in numbers)


def test_hooks_fire_all_the_way_through(digits: Any, audio: np.ndarray) -> None:
    """In the encoder, in every step of beam search, and in word timing."""
    model, options = digits.hooked, {"beam_size": 5, "sample_len": 6, "word_timestamps": True}
    plain = transcribe(model, audio, **options)
    seen: dict[str, list[tuple[int, ...]]] = {}

    def note(value: Any, hook: Any) -> None:
        seen.setdefault(hook.name, []).append(tuple(value.shape))

    names = ["encoder.blocks.2.hook_resid_post", "decoder.blocks.3.hook_resid_post"]
    with model.hooks([(names, note)]):
        assert transcribe(model, audio, **options) == plain
    assert seen[names[0]][0] == (1, 1500, 96)
    decoder = seen[names[1]]
    assert (5, 1, 96) in decoder, "no step of beam search"
    assert any(batch == 1 and n_pos > 1 for batch, n_pos, _ in decoder), "no word timing"
    with model.hooks([(names[0], lambda value, hook: 0 * value)]):
        assert transcribe(model, audio, **options)["text"] != plain["text"]


def transcribe(model: Any, audio: np.ndarray, **options: Any) -> dict[str, Any]:
    import whisper

    torch.manual_seed(5)
    kept = {"language": "en", "temperature": 0.0, "sample_len": 12, "fp16": False, **options}
    with warnings.catch_warnings():
        # numba's remarks on openai-whisper's own alignment.
        warnings.filterwarnings("ignore", module="numba")
        return whisper.transcribe(model, audio, **kept)


def assert_same_words(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Words and times alike; probabilities to 1e-5 of them.

    For word timing openai-whisper leaves fused attention in every layer, this
    model only where scores are read: the last bits of the logits differ.
    """
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert our.pop("probability") == pytest.approx(their.pop("probability"), rel=1e-4)
        assert our == their
