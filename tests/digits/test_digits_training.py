"""The training script's shortcuts compute what the model computes."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hooked_whisper import HookedWhisper

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def scripts():
    """The modules of the training script, imported as it imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import digits_data
        import digits_model
        import digits_windows

        yield SimpleNamespace(data=digits_data, model=digits_model, windows=digits_windows)
        for name in ("digits_data", "digits_model", "digits_windows"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def window(scripts):
    """Two bursts of noise as digits, in faint noise."""
    rng = np.random.default_rng(0)
    pieces = []
    for digit, start in ((3, 40_123), (7, 52_001)):
        samples = rng.standard_normal(6_400).astype(np.float32) * np.float32(0.1)
        pieces.append(
            scripts.data.Piece(
                scripts.data.Recording("george", digit, 10, (samples,)), start, samples
            )
        )
    noise = rng.standard_normal(scripts.data.WINDOW_SAMPLES).astype(np.float32)
    return scripts.data.Window(pieces, (noise, 1e-3), (0, 200_000))


@pytest.fixture(scope="module")
def small_model(scripts):
    torch.manual_seed(0)
    return HookedWhisper(scripts.model.digits_config(scripts.model.vocabulary().n_rows)).eval()


@pytest.fixture(scope="module")
def forward(scripts, small_model):
    weights = dict(small_model.named_parameters())
    return scripts.model.ThinForward(weights, small_model.encoder.positional_embedding, 4, 6)


def test_log_mel_is_whispers(scripts, window):
    from whisper.audio import log_mel_spectrogram

    audio = torch.from_numpy(scripts.windows.render(window, np.arange(1500)))
    both = scripts.windows.log_mel(torch.stack([audio, 0.1 * audio]))
    torch.testing.assert_close(both[0], log_mel_spectrogram(audio), atol=1e-4, rtol=0)
    torch.testing.assert_close(both[1], log_mel_spectrogram(0.1 * audio), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_whole_window_gives_the_models_logits(scripts, window, small_model, forward):
    batch = scripts.windows.make_batch([window], 1500, np.random.default_rng(0), augment=False)
    assert batch.log_weights.abs().max() == 0
    tokens = scripts.model.make_targets([window], [True], [False]).tokens
    audio = forward.encode(batch.mel, batch.positions, batch.log_weights)
    logits = forward.decode(tokens, audio, batch.log_weights)
    expected = small_model(batch.mel, tokens)
    torch.testing.assert_close(audio, small_model.encoder(batch.mel), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[..., :-1], expected[..., :-1], atol=1e-4, rtol=0)
    shift = logits[..., -1] - expected[..., -1]
    torch.testing.assert_close(shift.exp().round(), torch.full_like(shift, 51_865 - 168))


def test_thinned_positions_stand_for_the_whole_window(scripts, window):
    rng = np.random.default_rng(0)
    positions, log_weights = scripts.windows.thin(window, 160, rng)
    assert len(positions) == 160
    assert np.exp(log_weights).sum() == pytest.approx(1500, rel=1e-3)
    whole = scripts.windows.render(window, np.arange(1500))
    thin = scripts.windows.render(window, positions).reshape(160, 320)
    for piece in window.pieces:
        spoken = (positions * 320 >= piece.start) & (positions * 320 + 320 <= piece.end)
        heard = whole.reshape(1500, 320)[positions[spoken]]
        assert np.abs(thin[spoken] - heard).max() < 0.01  # but for another stretch of noise


def test_targets_say_what_follows_each_token(scripts, window):
    v = scripts.model.vocabulary()
    silence = scripts.data.Window()
    targets = scripts.model.make_targets(
        [window, window, silence], [True, False, False], [False] * 3
    )
    speech = [v.english, v.transcribe]
    words = [v.digits[3], v.digits[7]]
    timed = [*speech, v.timestamp(0.0), *words, v.timestamp(3.8), v.eot]
    assert targets.first[0].tolist() == timed
    assert targets.tokens[0].tolist() == [v.sot, *timed[:-1]]
    plain = [*speech, v.no_timestamps, *words, v.eot]
    assert targets.first[1].tolist() == [*plain, scripts.model.IGNORE]
    assert targets.first[2, [0, 3, 4]].tolist() == [v.no_speech, v.eot, v.eot]
    assert targets.second[2, [0, 3, 4]].tolist() == [v.english, v.timestamp(0.0), v.eot]


@pytest.mark.parametrize(
    ("seconds", "stamp"), [(0.0, "0.00"), (3.65, "3.80"), (3.8, "3.80"), (30.0, "30.00")]
)
def test_timestamps_round_up_to_a_fifth_of_a_second(scripts, seconds, stamp):
    v = scripts.model.vocabulary()
    token = v.token_ids[v.timestamp(seconds)]
    assert f"{(token - 50364) * 0.02:.2f}" == stamp
