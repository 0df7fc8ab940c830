"""One recording that cannot be used is left out, counted and listed; the others are used."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile

from hooked_whisper.data import Recording, as_recordings, load_windows
from hooked_whisper.errors import RecordingsError
from hooked_whisper.sae import evaluate_sae, latents_by_speech, top_clips
from hooked_whisper.store import ActivationStore, harvest

SITE = "encoder.blocks.0.hook_resid_post"
WORDS = {"words": [[0.0, 0.1, "one"]], "speaker": "ann"}


def sound(seconds: float = 0.3, seed: int = 0) -> tuple[Any, int]:
    return np.random.default_rng(seed).standard_normal(int(16_000 * seconds)) / 10, 16_000


def written(name: str, content: bytes) -> Callable[[Path], str]:
    """What makes a file of this content in a folder, and gives its path."""

    def make(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return make


def good(folder: Path) -> str:
    soundfile.write(folder / "good.wav", *sound())
    return str(folder / "good.wav")


def loop(folder: Path) -> str:
    os.symlink(folder / "loop.wav", folder / "loop.wav")
    return str(folder / "loop.wav")


def nan(folder: Path) -> str:
    soundfile.write(folder / "nan.wav", np.full(3200, np.nan), 16_000, subtype="FLOAT")
    return str(folder / "nan.wav")


BAD: dict[str, Callable[[Path], Any]] = {
    "missing": lambda folder: "nowhere.wav",
    "empty": written("empty.wav", b""),
    "no audio": written("text.wav", b"this is no audio " * 50),
    "loop": loop,
    "NaN": nan,
    "null byte": lambda folder: "a\0b.wav",
    "too long a name": lambda folder: "x" * 5000 + ".wav",
    "no UTF-8": lambda folder: "\udcff.wav",
    "nobody's home": lambda folder: "~nosuchuser/x.wav",
    "three axes": lambda folder: (np.zeros((2, 2, 2)), 16_000),
    "no rate": lambda folder: (np.zeros(16_000), None),
    "objects": lambda folder: (np.array([object()]), 16_000),
    "bytes": lambda folder: Recording("bytes", b"\0\1junk"),
    "None": lambda folder: Recording("none", None),
    "a number as id": lambda folder: Recording(cast(str, 5), good(folder)),
    "an object as label": lambda folder: Recording("label", good(folder), {"x": object()}),
    "a number as label": lambda folder: Recording("label", good(folder), {cast(str, 1): 2}),
    "too short": lambda folder: sound(0.01),
}
"""Recordings that cannot be used, whatever is wrong with them."""


def among(bad: Any) -> list[Any]:
    """Good recordings with a bad one in the middle."""
    return [Recording("first", sound(), WORDS), bad, Recording("last", sound(0.4, 1), WORDS)]


@pytest.mark.parametrize("name", BAD)
def test_a_harvest_goes_on_and_lists_it(
    name: str, tiny_model: Any, tmp_path: Path, without_shape_checks: None
) -> None:
    given = among(BAD[name](tmp_path))
    store = harvest(tiny_model, given, SITE, tmp_path / "store", n_workers=0)
    assert store.n_recordings == 2
    [skipped] = store.skipped
    assert skipped["index"] == 1 and 0 < len(skipped["reason"]) <= 600
    again = harvest(tiny_model, given, SITE, tmp_path / "store", n_workers=0)
    assert again.manifest == ActivationStore(tmp_path / "store").manifest == store.manifest


def _judged(sae: Any, model: Any, given: Any) -> Any:
    tokens = [[1, 2, 3]] * len(given)
    found = evaluate_sae(sae, model, given, SITE, tokens=tokens, progress=False)
    if len(given) == 3:
        [(number, _, reason)] = found.skipped
        assert number == 1 and reason and found.n_recordings == 2
    return [extent.reconstruction.fvu for extent in found.extents.values()]


def _clips(sae: Any, model: Any, given: Any) -> Any:
    clips = top_clips(sae, model, given, [1, 2], SITE, progress=False)
    return [round(clip.value, 5) for own in clips.values() for clip in own]


def _labelled(sae: Any, model: Any, given: Any) -> Any:
    found = latents_by_speech(sae, model, given, SITE, progress=False)
    return [found.n_positions, found.frames.activations.tolist(), found.whole.vectors.tolist()]


def _windows(sae: Any, model: Any, given: Any) -> Any:
    return [(window.name, window.n_positions) for window in load_windows(model, given)]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "evaluate_sae": _judged,
    "top_clips": _clips,
    "latents_by_speech": _labelled,
    "load_windows": _windows,
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_judging_goes_on_and_says_so(
    function: str,
    name: str,
    tiny_model: Any,
    plain_autoencoder: Any,
    tmp_path: Path,
    without_shape_checks: None,
) -> None:
    sae, judge, bad = plain_autoencoder(24), FUNCTIONS[function], BAD[name](tmp_path)
    if function == "latents_by_speech":  # which takes what something is known of
        bad = bad if isinstance(bad, Recording) else Recording("bad", bad)
        bad = replace(bad, labels={**bad.labels, **WORDS})
    given = among(bad)
    with pytest.warns(UserWarning, match=r"1 of 3 recordings cannot be used: 1 \("):
        found = judge(sae, tiny_model, given)
    assert found == judge(sae, tiny_model, [given[0], given[2]])


@pytest.mark.parametrize("function", ["load_windows", "top_clips"])
def test_none_that_can_be_used_is_an_error(
    function: str, tiny_model: Any, plain_autoencoder: Any
) -> None:
    with pytest.raises(RecordingsError, match=r"2 of 2 recordings cannot be used: 0 \(nowhere"):
        FUNCTIONS[function](plain_autoencoder(24), tiny_model, ["nowhere.wav", "nor here.wav"])


def test_a_recording_that_is_longer_than_its_text_tells_is_left_out(
    digits_model: Any, plain_autoencoder: Any, without_shape_checks: None
) -> None:
    window_s = digits_model.cfg.n_samples / 16_000
    given = [
        Recording("whole", sound(1.0), {}, "one"),
        Recording("long", sound(window_s + 1, 1), {}, "two three"),
        Recording("long text", sound(1.0, 2), {}, "four " * 1000),
    ]
    sae = plain_autoencoder(digits_model.cfg.d_model)
    options: dict[str, Any] = {"all_frames": False, "transcripts": False, "progress": False}
    with pytest.warns(UserWarning, match="2 of 3 recordings cannot be used"):
        found = evaluate_sae(sae, digits_model, given, SITE, **options)
    assert [(each.recording, each.id) for each in found.skipped] == [(1, "long"), (2, "long text")]
    assert "no one says which part of its text" in found.skipped[0].reason
    alone = evaluate_sae(sae, digits_model, given[:1], SITE, **options)
    assert found.extents["speech"].to_dict() == alone.extents["speech"].to_dict()


def test_what_stands_for_no_recording_at_all_is_refused_before_anything_runs() -> None:
    with pytest.raises(RecordingsError, match="none of which holds the audio"):
        as_recordings([{"sound": "x" * 3000}])
    with pytest.raises(RecordingsError, match="item 1 is a int, no recording"):
        as_recordings(["good.wav", 5])
