"""A page of 768 latents with 10 clips each: at most 30 MB, and it opens.

pytest --slow tests/reports/test_features_size.py -s      prints the numbers
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper.data import Recording
from hooked_whisper.data.windows import AudioWindow
from hooked_whisper.digits import recordings
from hooked_whisper.reports import feature_page
from hooked_whisper.reports.examples import Excerpt, ExcerptBudget
from hooked_whisper.speech.audio import load_audio


def spoken(n: int, n_words: int, seed: int = 0) -> list[Recording]:
    """Recordings of the shipped digits in new orders, with the words' times."""
    generator = torch.Generator().manual_seed(seed)
    words = []
    for each in recordings():
        samples = load_audio(each.path)
        for word in each.words:
            cut = samples[round(word.start_s * 16000) : round(word.end_s * 16000)]
            words.append((word.word, each.speaker, cut))
    found = []
    for number in range(n):
        pieces, times, at = [torch.zeros(4000)], [], 0.25
        for place in torch.randint(len(words), (n_words,), generator=generator).tolist():
            word, _, cut = words[place]
            times.append([at, at + len(cut) / 16000, word])
            pieces += [cut, torch.zeros(4000)]
            at += len(cut) / 16000 + 0.25
        sound = torch.cat(pieces) + 1e-3 * torch.randn(sum(map(len, pieces)), generator=generator)
        labels = {"digit": times, "group": f"group {number % 7}"}
        text = " ".join(word for _, _, word in times)
        found.append(Recording(f"{number:03d}.wav", (sound.numpy(), 16000), labels, text))
    return found


@pytest.mark.slow
def test_768_latents_with_10_clips(
    digits_model: Any, digits_saes: Any, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    heard = spoken(60, 8)
    began = time.perf_counter()
    page = feature_page(
        digits_model,
        digits_saes["encoder.blocks.2.hook_resid_post"],
        heard,
        tmp_path / "features.html",
        n_clips=20,  # as latents that are seldom active have fewer than 10
        n_effects=0,
        progress=False,
    )
    made_s = time.perf_counter() - began
    assert page.n_bytes <= 30e6 and page.n_without_sound == 0
    assert page.n_clips >= 7680
    seconds = sum(len(each.audio[0]) for each in heard) / 16000
    opening_s = _opening_s(open_page, page.path)
    print(
        f"\n{page.n_clips} clips of {seconds:.0f} s in {page.n_bytes / 1e6:.1f} MB, made in "
        f"{made_s:.0f} s, open in {opening_s:.2f} s"
    )


@pytest.mark.slow
def test_a_full_page_opens(
    digits_model: Any, digits_saes: Any, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    """More sound than a page holds: the file ends at its limit, and says what is missing."""
    page = feature_page(
        digits_model,
        digits_saes["encoder.blocks.2.hook_resid_post"],
        spoken(30, 38),
        tmp_path / "features.html",
        n_effects=0,
        max_mb=5,
        progress=False,
    )
    assert 3.5e6 < page.n_bytes <= 5e6 and page.n_without_sound > 0
    opening_s = _opening_s(open_page, page.path)
    print(
        f"\n{page.n_clips} clips, {page.n_without_sound} without sound, in "
        f"{page.n_bytes / 1e6:.1f} MB, open in {opening_s:.2f} s"
    )


def _opening_s(open_page: Callable[..., Any], path: Path) -> float:
    """From the address to a table and an open latent."""
    began = time.perf_counter()
    page = open_page(path)
    page.locator("#rows button").first.wait_for()
    page.locator(".clip canvas").first.wait_for()
    return time.perf_counter() - began


def silence(seconds: float) -> AudioWindow:
    return AudioWindow(0, "x", 0.0, torch.zeros(round(seconds * 16000)))


def test_long_recordings_keep_what_is_needed_of_them() -> None:
    budget = ExcerptBudget([silence(28.0), silence(4.0)], 100.0)
    for start_s, end_s in ((3.0, 5.0), (4.0, 6.0), (20.0, 22.0)):
        assert budget.take(Excerpt(0, start_s, end_s))
    assert budget.take(Excerpt(0, 6.3, 7.0)), "a gap of 0.3 s is filled"
    assert budget.take(Excerpt(1, 1.0, 2.0))
    kept = budget.excerpts()
    assert kept == [Excerpt(0, 3.0, 7.0), Excerpt(0, 20.0, 22.0), Excerpt(1, 0.0, 4.0)]
    assert [each.holds(Excerpt(0, 20.5, 22.0)) for each in kept] == [False, True, False]
    assert not any(each.holds(Excerpt(0, 21.0, 23.0)) for each in kept)
    assert not kept[0].holds(Excerpt(1, 3.0, 4.0)), "another window's"


def test_room_ends() -> None:
    budget = ExcerptBudget([silence(28.0), silence(4.0)], 5.0)
    assert budget.take(Excerpt(0, 1.0, 3.0))
    assert not budget.take(Excerpt(1, 0.0, 1.0)), "a short recording would be kept whole"
    assert budget.take(Excerpt(0, 2.0, 4.0)), "half of it is there already"
    assert budget.left_s == pytest.approx(2.0)
    assert budget.excerpts() == [Excerpt(0, 1.0, 4.0)]
    assert not budget.take(Excerpt(0, 28.5, 30.0)), "padding has no sound"
    assert budget.left_s == pytest.approx(2.0)
