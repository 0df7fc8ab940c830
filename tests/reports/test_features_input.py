"""What a page of features can be made of, and what is refused before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper.data.windows import load_windows
from hooked_whisper.errors import HookNameError, InputError, RecordingsError, SpliceError
from hooked_whisper.reports import feature_page
from hooked_whisper.sae import TopKConfig, make_sae
from hooked_whisper.speech.wer import n_wrong_words

SITE = "encoder.blocks.1.hook_resid_post"


def sound(seconds: float, seed: int = 0) -> tuple[Any, int]:
    """Noise, as a pair of samples and rate."""
    generator = torch.Generator().manual_seed(seed)
    return (0.1 * torch.randn(round(seconds * 16000), generator=generator)).numpy(), 16000


ROWS = [
    {"id": "a/long.wav", "audio": sound(1.5), "speaker": "ann", "text": "one two",
     "words": [[0.1, 0.5, "one"], [0.9, 1.4, "two"]]},
    {"id": "b.wav", "audio": sound(0.4, 1), "speaker": "bob", "text": "x"},
    {"id": "c.wav", "audio": sound(0.5, 2), "speaker": "ann"},
]  # fmt: skip


def test_long_recordings_and_labels_of_a_manifest(
    tiny_model: Any, read_data: Callable[[Path], Any], tmp_path: Path
) -> None:
    page = feature_page(
        tiny_model, None, ROWS, tmp_path / "new folder" / "p.html", hook_name=SITE, progress=False
    )
    data = read_data(page.path)
    assert page.n_bytes < 2e6 and page.n_without_sound == 0
    assert data["kind"] == "neuron" and len(page.table) == 24
    starts = [(each["name"], each["start"], each["text"]) for each in data["windows"].values()]
    assert starts == [
        ("long.wav", 0.0, "one"),
        ("long.wav", 0.6, "two"),
        ("long.wav", 1.2, "two"),
        ("b.wav", 0.0, "x"),
        ("c.wav", 0.0, None),
    ]
    assert data["windows"]["1"]["words"] == [[0.3, 0.6, "two"]]
    assert {tuple(each) for each in data["labels"]} == {
        ("word", "one"), ("word", "two"), ("speaker", "ann"),  # bob's voice is one recording
        ("sound", "speech"), ("sound", "silence"),
    }  # fmt: skip
    assert data["effects"] == [], "this model writes no text"


def test_texts_of_the_caller_come_before_those_of_the_recordings(tiny_model: Any) -> None:
    windows = load_windows(tiny_model, ROWS[1:], texts=["new", None])
    assert [each.text for each in windows] == ["new", None]
    [first, *_] = load_windows(tiny_model, ROWS[:1], texts=["quite another"])
    assert first.words is None, "the times are of other words"


def test_any_autoencoder_and_some_of_its_latents(
    tiny_model: Any,
    plain_autoencoder: Callable[..., Any],
    read_data: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    sae, rows = plain_autoencoder(24), [ROWS[1]]
    page = feature_page(
        tiny_model, sae, rows, tmp_path / "p.html", hook_name=SITE, latents=[7, 2], progress=False
    )
    mel = tiny_model.to_mel(ROWS[1]["audio"])
    with torch.no_grad():
        _, cache = tiny_model.run_with_cache(mel, names_filter=SITE)
        wanted = sae.encode(cache[SITE])[0, :20, [7, 2]].amax(dim=0)
    data = read_data(page.path)
    assert data["features"]["feature"] == [7, 2]
    assert [each["peak"] or 0.0 for each in page.table] == pytest.approx(wanted.tolist())
    assert data["features"]["auroc"] == [None, None], "one recording without times tells nothing"


def test_the_last_position_has_sound(
    tiny_model: Any, read_data: Callable[[Path], Any], tmp_path: Path
) -> None:
    samples, rate_hz = sound(0.405)  # its last position goes on for 15 ms behind it
    rows = [(samples, rate_hz)]
    page = feature_page(
        tiny_model, None, rows, tmp_path / "p.html", hook_name=SITE, n_clips=20, progress=False
    )
    clips = [clip for clips in read_data(page.path)["clips"] for clip in clips]
    assert any(position == 20 for _, _, position, *_ in clips)
    assert page.n_without_sound == 0 and all(end <= 0.405 for *_, end in (c[:6] for c in clips))


def test_a_mel_is_shown_without_sound(
    tiny_model: Any, read_data: Callable[[Path], Any], tmp_path: Path
) -> None:
    mel = tiny_model.to_mel([ROWS[1]["audio"], ROWS[2]["audio"]])
    page = feature_page(tiny_model, None, mel, tmp_path / "p.html", hook_name=SITE, progress=False)
    data = read_data(page.path)
    assert data["n_recordings"] == 2 and data["parts"] == []
    assert page.n_without_sound == page.n_clips > 0


def test_heads_are_named_by_head_and_place(tiny_model: Any, tmp_path: Path) -> None:
    name = "encoder.blocks.1.attn.hook_z"
    page = feature_page(
        tiny_model, None, [ROWS[1]], tmp_path / "p.html", hook_name=name, progress=False
    )
    names = [each["name"] for each in page.table]
    assert names[0] == "0.0" and names[12] == "1.0" and len(names) == 24


def sae_of(d_in: int) -> Any:
    return make_sae(TopKConfig(d_in=d_in, d_sae=30, k=4))


WRONG = {
    "nothing to show": ({"source": None}, InputError, "neither an autoencoder nor a hook"),
    "no such hook": ({"hook_name": "encoder.blocks.9.hook_resid_post"}, HookNameError, "blocks.9"),
    "several hooks": ({"hook_name": "encoder.blocks.*.hook_resid_post"}, InputError, "is 2 hooks"),
    "no positions": ({"hook_name": "encoder.hook_mel"}, InputError, "needs .batch pos"),
    "another width": ({"source": sae_of(10), "hook_name": SITE}, SpliceError, "reads width 10"),
    "no autoencoder": ({"source": 3, "hook_name": SITE}, SpliceError, "int is no autoencoder"),
    "no such latent": ({"hook_name": SITE, "latents": [24]}, InputError, "has neurons 0 to 23"),
    "a latent twice": ({"hook_name": SITE, "latents": [1, 1]}, InputError, "shown once"),
    "no latents": ({"hook_name": SITE, "latents": []}, InputError, "has neurons 0 to 23"),
    "no clips": ({"hook_name": SITE, "n_clips": 0}, InputError, "n_clips is 0"),
    "no number": ({"hook_name": SITE, "amplify": float("nan")}, InputError, "amplify is nan"),
    "no room": ({"hook_name": SITE, "max_mb": 0.1}, InputError, "at least 1"),
    "no text": ({"hook_name": SITE, "n_effects": 3}, InputError, "Pass n_effects=0"),
    "texts": ({"hook_name": SITE, "texts": ["a"]}, InputError, "1 texts and 3 recordings"),
    "no recordings": ({"hook_name": SITE, "recordings": []}, RecordingsError, "no recordings"),
    "no such file": (
        {"hook_name": SITE, "recordings": ["nowhere.wav"]}, RecordingsError, "nowhere.wav"
    ),
    "no tokens": (
        {"hook_name": "decoder.blocks.0.hook_resid_post"}, InputError, "give each .* its tokens"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "match"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.usefixtures("without_shape_checks")
def test_what_cannot_be_shown_is_refused_before_anything_runs(
    tiny_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    error: type[Exception],
    match: str,
) -> None:
    monkeypatch.setattr(type(tiny_model), "run_with_cache", None)
    given = {"source": None, "recordings": ROWS, **change}
    source, heard = given.pop("source"), given.pop("recordings")
    with pytest.raises(error, match=match):
        feature_page(tiny_model, source, heard, tmp_path / "p.html", **given, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_page(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder; name the page's file"):
        feature_page(tiny_model, None, ROWS, tmp_path, hook_name=SITE)


def test_tokens_of_a_vocabulary_without_text(
    tiny_model: Any, read_data: Callable[[Path], Any], tmp_path: Path
) -> None:
    rows = [{"id": "x", "audio": sound(0.5), "tokens": [5, 9, 100]}]
    name = "decoder.blocks.0.hook_resid_post"
    page = feature_page(tiny_model, None, rows, tmp_path / "p.html", hook_name=name, progress=False)
    data = read_data(page.path)
    assert data["windows"]["0"]["tokens"] == ["5", "9", "100"]
    assert data["clips"][0][0][4:6] == [0.0, 0.5], "no token has a time: all is played"


@pytest.mark.parametrize(
    ("before", "after", "n"),
    [("a b c", "a b c", 0), ("a b c", "", 3), ("", "a", 1), ("a b c", "a c c d", 2)],
    ids=["same", "lost", "new", "both"],
)
def test_changed_words_are_counted(before: str, after: str, n: int) -> None:
    assert n_wrong_words(before, after) == n
