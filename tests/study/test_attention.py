"""The encoder's numbers against plain computations on a small model, and what the claims say."""

from typing import Any

import pytest
import torch

from hooked_whisper.analysis import attention_entropy, diagonal_width
from hooked_whisper.data import as_recordings
from hooked_whisper.study.decoder import DecoderAttention
from hooked_whisper.study.encoder import (
    REACH,
    EncoderAttention,
    by_offset,
    entropy_claim,
    trend,
    width_claim,
)
from hooked_whisper.study.residual import (
    KURTOSIS,
    ResidualStreams,
    hoyer_references,
    is_sparse,
    is_uniform,
)
from hooked_whisper.study.windows import run_windows


@pytest.fixture
def heard(small_model: Any, noise: Any) -> Any:
    encoder, residual = EncoderAttention(small_model.cfg), ResidualStreams(2)
    decoder = DecoderAttention(small_model)
    recordings = as_recordings(noise)
    run_windows(small_model, recordings, [encoder, residual], [decoder], progress=False)
    return encoder, residual, decoder


def caches(model: Any, noise: Any) -> list[Any]:
    found = []
    for each in noise:
        mel = model.to_mel([each.audio])
        _, cache = model.run_with_cache(mel, torch.tensor([each.tokens]))
        found.append((cache, int(mel.n_positions[0])))
    return found


def test_head_numbers_are_means_over_clips_of_means_over_speech(
    heard: Any, small_model: Any, noise: Any
) -> None:
    numbers = heard[0].numbers()
    for name, function in (("entropy_nats", attention_entropy), ("diagonal_width", diagonal_width)):
        for layer in range(2):
            by_clip = [
                function(cache["encoder", layer, "pattern"], n).nanmean(dim=(0, 2))
                for cache, n in caches(small_model, noise)
            ]
            expected = torch.stack(by_clip).mean(dim=0)
            found = torch.tensor(numbers["heads"][name][layer])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    width = torch.tensor(numbers["heads"]["diagonal_width"])
    assert numbers["width_by_layer"] == pytest.approx(width.mean(dim=1).tolist())
    assert numbers["width_of_first_head"] == pytest.approx(width[:, 0].tolist())


def test_the_mean_pattern_is_that_around_the_diagonal(
    heard: Any, small_model: Any, noise: Any
) -> None:
    expected = torch.zeros(2 * REACH + 1)
    for cache, n in caches(small_model, noise):
        pattern = cache["encoder", 1, "pattern"][0, 0, :n, :n]
        pattern = pattern / pattern.sum(dim=-1, keepdim=True)
        for offset in range(-n + 1, n):
            expected[offset + REACH] += pattern.diagonal(offset).sum() / n / len(noise)
    torch.testing.assert_close(heard[0].profile[1, 0], expected, rtol=1e-4, atol=1e-6)
    assert float(heard[0].profile[1, 0].sum()) == pytest.approx(1, abs=1e-4)


def test_offsets_count_from_the_query() -> None:
    pattern = torch.zeros(1, 5, 5)
    pattern[0, torch.arange(1, 5), torch.arange(4)] = 1.0  # each looks one back
    assert by_offset(pattern, 2)[0].tolist() == pytest.approx([0, 0.8, 0, 0, 0])


def test_the_whole_window_of_the_first_clip_is_kept_beside_speech(
    heard: Any, small_model: Any, noise: Any
) -> None:
    cache, _ = caches(small_model, noise)[0]
    expected = attention_entropy(cache["encoder", 0, "pattern"]).mean(dim=(0, 2))
    found = heard[0].numbers()["whole_window_of_first_clip"]["heads"]["entropy_nats"][0]
    assert found == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize(("stream", "hook"), [("before", "resid_post"), ("after", "normalized")])
def test_residual_numbers_are_those_of_all_vectors(
    heard: Any, small_model: Any, noise: Any, stream: str, hook: str
) -> None:
    from hooked_whisper.analysis import hoyer_sparsity, kurtosis, participation_ratio

    name = {
        "resid_post": "encoder.blocks.1.hook_resid_post",
        "normalized": "encoder.ln_final.hook_normalized",
    }[hook]
    x = torch.cat([cache[name][0, :n] for cache, n in caches(small_model, noise)])
    numbers = heard[1].streams[stream].to_dict()
    assert numbers["n_vectors"] == len(x)
    assert numbers["kurtosis"] == pytest.approx(float(kurtosis(x)), abs=1e-3)
    assert numbers["hoyer"] == pytest.approx(float(hoyer_sparsity(x).mean()), rel=1e-4)
    assert numbers["participation_ratio"] == pytest.approx(participation_ratio(x), rel=1e-3)
    assert numbers["norm"] == pytest.approx(float(x.norm(dim=-1).mean()), rel=1e-4)
    times = x.square().mean(dim=0).sqrt()
    assert numbers["largest_dimension"] == int(times.argmax())
    assert numbers["largest_times"] == pytest.approx(float(times.max() / times.median()), rel=1e-3)


def test_the_decoders_numbers_are_those_of_the_tokens(
    heard: Any, small_model: Any, noise: Any
) -> None:
    by_clip = [
        cache["decoder", 2, "pattern", "attn"][0, 1].diagonal(-1).mean()
        for cache, _ in caches(small_model, noise)
    ]
    found = heard[2].numbers()["self_attention"]["previous_token"][2][1]
    assert found == pytest.approx(float(torch.stack(by_clip).mean()), rel=1e-4)


def test_a_trend_is_found_with_its_peak_and_trough() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5], [4.0, 3.0, 3.5]])
    found = trend(scores)
    assert (found["peak"], found["peak_value"]) == (3, 4.0)
    assert (found["trough"], found["trough_value"]) == (2, 0.5)
    # Least squares: Σ (x - 2.5) y / Σ (x - 2.5)².
    assert found["slope"] == pytest.approx(9.5 / 17.5)
    # Spearman: 1 - 6 Σ d² / n (n² - 1), ranks 1 2 0 5 3 4.
    assert found["rank_correlation"] == pytest.approx(1 - 6 * (1 + 1 + 4 + 4 + 1 + 1) / 210)


def post_entropies() -> torch.Tensor:
    values = torch.linspace(3, 4, 24)
    values[15], values[5] = 5.0, 2.0
    return values.view(4, 6)


def test_the_posts_entropies_agree_with_the_post() -> None:
    claim = entropy_claim(trend(post_entropies()), "speech")
    assert claim["agrees"] is True
    assert "peak at 15: as in the post" in claim["because"]


def test_falling_entropies_disagree_and_other_numbers_of_heads_cannot_tell() -> None:
    falling = entropy_claim(trend(post_entropies().flatten().flip(0).view(4, 6)), "speech")
    assert falling["agrees"] is False
    assert "trend downward" in falling["because"]
    assert entropy_claim(trend(torch.rand(2, 2)), "speech")["agrees"] is None


def test_widths_agree_where_they_rise() -> None:
    up, down = [0.1, 0.2, 0.3, 0.1], [0.3, 0.2, 0.1]
    verdicts = [width_claim(*pair)["verdict"] for pair in ((up, up), (up, down), (down, down))]
    assert verdicts == ["agrees", "partly", "disagrees"]
    assert width_claim(up, down)["parts"] == {"mean over heads": True, "first head": False}
    assert width_claim([0.1, 0.2], [0.1, 0.2])["verdict"] == "cannot tell"


def test_a_weaker_trend_with_the_posts_peak_and_trough_agrees_in_part() -> None:
    values = 3 + 0.01 * torch.arange(24.0)
    ups = [0, 1, 2, 3, 4, 5, 4.5, 3.5, 2.5, 1.5, 0.5, -0.5]
    values[1::2] = 2 + 0.01 * torch.tensor(ups)  # every other one up and down
    values[14], values[4] = 5.0, 1.0
    found = entropy_claim(trend(values.view(4, 6)), "speech")
    assert (found["verdict"], found["agrees"]) == ("partly", None)
    assert found["parts"] == {"peak": True, "trough": True, "trend": False}
    assert "trend weaker, upward" in found["because"]


def test_whole_windows_of_all_clips_are_compared(small_model: Any, noise: Any, heard: Any) -> None:
    """At every eighth query, by the formula."""
    by_clip = []
    for cache, _ in caches(small_model, noise):
        layers = []
        for layer in range(small_model.cfg.n_audio_layers):
            pattern = cache[f"encoder.blocks.{layer}.attn.hook_pattern"][0, :, ::8].double()
            layers.append(-torch.special.xlogy(pattern, pattern).sum(dim=-1).mean(dim=-1))
        by_clip.append(torch.stack(layers))
    found = heard[0].numbers()["whole_windows"]
    expected = torch.stack(by_clip).mean(dim=0).flatten()
    assert found["entropy"]["values"] == pytest.approx(expected.tolist(), rel=1e-4)
    assert 0 < found["padding"] < 1


@pytest.mark.parametrize("name", ["uniform", "normal", "laplace"])
def test_references_are_those_of_drawn_numbers(name: str) -> None:
    from hooked_whisper.analysis import hoyer_sparsity, kurtosis

    torch.manual_seed(7)
    drawn = {
        "uniform": torch.rand(2000, 384) - 0.5,
        "normal": torch.randn(2000, 384),
        "laplace": torch.distributions.Laplace(0.0, 1.0).sample((2000, 384)),
    }[name]
    assert float(kurtosis(drawn)) == pytest.approx(KURTOSIS[name], abs=0.06)
    expected = hoyer_references(384)[name]
    assert float(hoyer_sparsity(drawn).mean()) == pytest.approx(expected, abs=0.005)


def test_uniform_and_sparse_have_a_rule() -> None:
    numbers = {"d_model": 384, "ks_to_uniform": 0.01, "ks_to_normal": 0.06, "hoyer": 0.2}
    assert is_uniform(numbers) and not is_sparse(numbers)
    numbers |= {"ks_to_uniform": 0.09, "ks_to_normal": 0.02, "hoyer": 0.9}
    assert not is_uniform(numbers) and is_sparse(numbers)
