"""Sounds without speech: the same for a seed, and what they are called."""

import numpy as np
import pytest

from hooked_whisper.data import non_speech_sounds
from hooked_whisper.errors import InputError

SLOPES = {"white": 0, "pink": -1, "brown": -2, "blue": 1, "violet": 2}


def test_a_seed_makes_the_same_sounds() -> None:
    first, again, other = (non_speech_sounds(2, seed=seed, max_s=2.0) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a.audio[0], b.audio[0])
        assert a.labels == c.labels and a.id != c.id
    assert len({each.id for each in first}) == 20
    assert all(1 <= len(each.audio[0]) / 16_000 <= 2 for each in first)
    assert all(np.abs(each.audio[0]).max() <= 1 for each in first)


@pytest.mark.parametrize(("kind", "slope"), SLOPES.items())
def test_a_colour_has_its_slope(kind: str, slope: int) -> None:
    samples = next(
        each.audio[0] for each in non_speech_sounds(1, max_s=4.0) if each.labels["kind"] == kind
    )
    power = np.abs(np.fft.rfft(samples.astype(np.float64))) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / 16_000)
    inside = (frequencies > 50) & (frequencies < 7000)
    fitted = np.polyfit(np.log(frequencies[inside]), np.log(power[inside]), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.15)


@pytest.mark.parametrize(
    "bad", [{"n": 0}, {"n": True}, {"seed": -1}, {"max_s": 0}, {"max_s": float("nan")}], ids=str
)
def test_what_makes_no_sounds_is_refused(bad: dict[str, float], without_shape_checks: None) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        non_speech_sounds(**bad)  # type: ignore[arg-type]
