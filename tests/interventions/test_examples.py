"""What a run is given, and its corrupted relatives."""

from typing import Any

import pytest
import torch

from hooked_whisper import HookedWhisper, Mel
from hooked_whisper.digits import recordings
from hooked_whisper.errors import AlignmentError, InputError, SiteError, TokenError
from hooked_whisper.interventions.examples import Example, check_pair


@pytest.fixture(scope="module")
def model() -> Any:
    return HookedWhisper.from_pretrained("digits")


@pytest.fixture(scope="module")
def heard(model: Any) -> Example:
    return Example.from_audio(model, recordings()[0].path, " three one four")


def test_a_text_becomes_tokens_after_the_start_sequence(model: Any, heard: Example) -> None:
    assert heard.tokens.tolist() == model.to_tokens(" three one four").tolist()
    assert heard.n_pos == 7 and len(heard) == 1


def test_without_a_text_the_model_writes_it_down(model: Any, heard: Example) -> None:
    again = Example.from_audio(model, recordings()[0].path)
    assert again.tokens.tolist() == heard.tokens.tolist()


def test_silence_is_the_mel_of_zeros(model: Any, heard: Example) -> None:
    zeros = model.to_mel(torch.zeros(16000), rate_hz=16000)
    silent = heard.with_silence()
    torch.testing.assert_close(silent.mel.values, zeros.values, atol=1e-6, rtol=0)
    assert silent.mel.n_frames.tolist() == heard.mel.n_frames.tolist()


def test_a_window_of_silence_leaves_the_rest(heard: Example) -> None:
    silent = heard.with_silence((1.4, 2))
    changed = (silent.mel.values != heard.mel.values).any(dim=1)[0].nonzero()[:, 0]
    assert changed.min() >= 140 and changed.max() < 200 and len(changed) > 50


def test_white_noise_has_its_level_and_its_seed(model: Any, heard: Example) -> None:
    first = heard.with_white_noise(model, seed=1)
    assert torch.equal(first.mel.values, heard.with_white_noise(model, seed=1).mel.values)
    assert not torch.equal(first.mel.values, heard.with_white_noise(model, seed=2).mel.values)
    n = int(heard.mel.n_frames)
    louder = heard.with_white_noise(model, seed=1, level_db=0)
    # 20 dB are two decades of power; the mel is log10(power) / 4. Both are padded with silence,
    # which is clamped to 8 decades under the loudest.
    difference = (louder.mel.values - first.mel.values)[:, :, 5 : n - 5]
    torch.testing.assert_close(difference, torch.full_like(difference, 0.5), atol=1e-3, rtol=0)


def test_time_is_spliced_in_from_elsewhere(model: Any, heard: Example) -> None:
    other = Example.from_audio(model, recordings()[1].path, " eight five two")
    spliced = heard.spliced(other, (0.5, 1.0), from_s=1.4)
    expected = heard.mel.values.clone()
    expected[:, :, 50:100] = other.mel.values[:, :, 140:190]
    assert torch.equal(spliced.mel.values, expected)
    in_place = heard.spliced(other.mel, (0.5, 1.0))
    assert torch.equal(in_place.mel.values[:, :, 50:100], other.mel.values[:, :, 50:100])


def test_two_windows_change_places(heard: Example) -> None:
    swapped = heard.swapped((0.5, 1.0), (1.4, 1.6))
    expected = heard.mel.values.clone()
    expected[:, :, 50:70] = heard.mel.values[:, :, 140:160]
    expected[:, :, 70:100] = -1.5  # behind the shorter one
    expected[:, :, 140:160] = heard.mel.values[:, :, 50:70]  # as much as there is room for
    assert torch.equal(swapped.mel.values, expected)


def test_what_it_refuses(model: Any, heard: Example) -> None:
    with pytest.raises(SiteError, match=r"29 to 31 s; it must lie in 0 to 30\.0 s"):
        heard.with_silence((29, 31))
    with pytest.raises(SiteError, match=r"29\.8 to 30\.3"):
        heard.spliced(heard, (0.5, 1.0), from_s=29.8)
    two = Example(Mel.cat([heard.mel, heard.mel]), heard.tokens.repeat(2, 1))
    with pytest.raises(AlignmentError, match="as many recordings"):
        heard.spliced(two, (0.5, 1.0))
    with pytest.raises(InputError, match="2 recordings and 1 rows"):
        Example(two.mel, heard.tokens)
    with pytest.raises(AlignmentError, match="1 recordings and 2 cannot be paired"):
        check_pair(model, heard, two)
    with pytest.raises(AlignmentError, match="7 tokens and the corrupted one 5"):
        check_pair(model, heard, heard.with_tokens(heard.tokens[:, :5]))
    with pytest.raises(TokenError, match="60000"):
        check_pair(model, heard.with_tokens(heard.tokens * 0 + 60000), heard)
