"""On a person saying digits: the padding matters, and cross-attention follows the words."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.attention import (
    attention_entropy,
    diagonal_half_width,
    mean_distance,
    share_on_padding,
)
from hooked_whisper.analysis.attention_timing import frame_energy, monotonicity, time_alignment
from hooked_whisper.analysis.residual import cosine_by_layer, kurtosis, norm_by_layer, residual_norm
from hooked_whisper.analysis.tables import head_table
from hooked_whisper.digits import SpokenDigits, recordings

N_START = 3
"""Start tokens before the last one, whose query writes the first word."""


@pytest.fixture(scope="module")
def heard() -> SpokenDigits:
    return recordings()[0]


@pytest.fixture(scope="module")
def run(heard: SpokenDigits) -> tuple[Any, Any]:
    """The mel, and the patterns and streams of one pass over the recording's own transcript."""
    model = HookedWhisper.from_pretrained("digits", device="cpu")
    mel = model.to_mel(heard.path)
    names = [
        "encoder.blocks.[13].attn.hook_pattern",
        "*.cross_attn.hook_pattern",
        "*.hook_resid_post",
    ]
    with torch.no_grad():
        _, cache = model.run_with_cache(mel, model.to_tokens(" " + heard.text), names_filter=names)
    return mel, cache


def cut_out(pattern: Tensor, n: int) -> Tensor:
    speech = pattern[..., :n, :n]
    return speech / speech.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize(
    "statistic", [attention_entropy, mean_distance, diagonal_half_width], ids=lambda f: f.__name__
)
def test_padding_inflates_an_encoder_head_unless_it_is_left_out(
    run: tuple[Any, Any], statistic: Any
) -> None:
    mel, cache = run
    pattern, n = cache["encoder", 1, "pattern"], int(mel.n_positions[0])
    speech = statistic(pattern, mel.n_positions).nanmean(dim=-1)
    everything = statistic(pattern, mel.n_positions, all_frames=True).mean(dim=-1)
    torch.testing.assert_close(
        speech, statistic(cut_out(pattern, n)).mean(-1), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(everything, statistic(pattern).mean(-1), atol=1e-4, rtol=1e-4)
    # 3.2 s of sound in 30 s: all six heads look far wider than they are.
    assert bool((everything > 1.3 * speech).all())


def test_padding_changes_the_residual_statistics(run: tuple[Any, Any]) -> None:
    mel, cache = run
    stream, n = cache["encoder", -1, "resid_post"], int(mel.n_positions[0])
    for statistic in (
        lambda x, **options: norm_by_layer([x], **options)[0],
        kurtosis,
        lambda x, **options: residual_norm(x, **options).nanmean(),
    ):
        speech = statistic(stream, n_positions=mel.n_positions)
        torch.testing.assert_close(speech, statistic(stream[:, :n]), atol=1e-4, rtol=1e-4)
        everything = statistic(stream, n_positions=mel.n_positions, all_frames=True)
        torch.testing.assert_close(everything, statistic(stream), atol=1e-4, rtol=1e-4)
        assert abs(everything - speech) > 0.05 * abs(speech)


def test_neighbouring_layers_are_more_alike_than_distant_ones(run: tuple[Any, Any]) -> None:
    mel, cache = run
    streams = [cache["encoder", layer, "resid_post"] for layer in range(4)]
    cosines = cosine_by_layer(streams, mel.n_positions)
    assert cosines[2, 3] > cosines[1, 3] > cosines[0, 3]


def test_a_layer_trained_to_look_at_the_next_digit_does(
    run: tuple[Any, Any], heard: SpokenDigits
) -> None:
    """Decoder layer 2 was; see the model card."""
    mel, cache = run
    n = len(heard.words)
    pattern = cache["decoder", 2, "pattern", "cross_attn"][:, :, N_START : N_START + n]
    assert bool((monotonicity(pattern, mel.n_positions, n_tokens=n) == 1).all())
    words_s = torch.tensor([[word.start_s, word.end_s] for word in heard.words])
    aligned = time_alignment(pattern, words_s, mel.n_positions)
    assert aligned.in_word.mean() > 0.9
    assert aligned.error_s.abs().max() < 0.25
    assert bool((aligned.correlation > 0.99).all())
    assert share_on_padding(pattern, mel.n_positions, n_tokens=n).max() < 0.01


def test_the_table_of_all_heads_on_speech(run: tuple[Any, Any], heard: SpokenDigits) -> None:
    mel, cache = run
    table = head_table(
        cache,
        mel.n_positions,
        text_queries=slice(N_START, N_START + len(heard.words)),
        energy=frame_energy(mel.values),
    )
    assert len(table) == 2 * 6 + 4 * 6
    aligned = table[(table["kind"] == "cross_attn") & (table["layer"] == 2)]
    assert aligned["monotonicity"].tolist() == [1] * 6
    expected = attention_entropy(cache["encoder", 3, "pattern"], mel.n_positions)[0].nanmean(dim=-1)
    got = table[(table["stack"] == "encoder") & (table["layer"] == 3)]["entropy_nats"]
    assert got.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
