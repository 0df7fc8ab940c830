"""What a page of attention holds: means of the pattern, within its bytes."""

import base64
import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

from hooked_whisper.analysis import attention_entropy
from hooked_whisper.config import HookedWhisperConfig, release_names
from hooked_whisper.errors import InputError
from hooked_whisper.reports.attention_data import (
    KINDS,
    Axis,
    PatternReducer,
    choose_axes,
    kind_of,
    reduce_heads,
    time_axis,
    token_axis,
)


def pattern_of(n_head: int, n_query: int, n_key: int, sharpness: float = 3.0) -> Tensor:
    return (sharpness * torch.randn(n_head, n_query, n_key)).softmax(dim=-1)


def means(pattern: Tensor, query: Axis, key: Axis) -> Tensor:
    """The mean over each pair of bins, one by one."""
    out = torch.empty(len(pattern), len(query), len(key))
    for i in range(len(query)):
        for j in range(len(key)):
            rows = slice(query.edges[i], query.edges[i + 1])
            columns = slice(key.edges[j], key.edges[j + 1])
            out[:, i, j] = pattern[:, rows, columns].mean(dim=(1, 2))
    return out


@pytest.mark.parametrize("width", [1, 3], ids=["positions", "bins"])
def test_cells_are_means_of_the_pattern(width: int) -> None:
    axis = time_axis(20, 110, width)
    pattern = pattern_of(2, 110, 110)
    for head, expected in zip(
        reduce_heads(pattern, axis, axis), means(pattern, axis, axis), strict=True
    ):
        # A step of the 255 in the root, at most half a step away.
        largest = expected.max()
        assert ((head.values() / largest).sqrt() - (expected / largest).sqrt()).abs().max() < (
            0.5001 / 255
        )
        assert head.largest == pytest.approx(float(largest))


def test_padding_is_in_bins_of_its_own() -> None:
    axis = time_axis(7, 100, 2)
    assert axis.edges[:6] == (0, 2, 4, 6, 7, 11)
    assert axis.edges[-1] == 100
    assert (axis.n_sound, axis.end_of_sound, axis.width) == (4, 7, 2)
    assert len(axis) - axis.n_sound <= 30


def test_the_peak_is_the_patterns_own_where_nothing_is_gathered() -> None:
    pattern = pattern_of(3, 40, 60)
    for head, p in zip(
        reduce_heads(pattern, token_axis(40), time_axis(25, 60)), pattern, strict=True
    ):
        assert head.peaks.tolist() == p[:, :25].argmax(dim=-1).tolist()
        assert torch.allclose(head.peak_values, p[:, :25].amax(dim=-1))
        assert torch.allclose(head.on_sound, p[:, :25].sum(dim=-1), atol=1e-6)


def test_the_peak_of_a_bin_is_a_position_of_its_mean_row() -> None:
    pattern = torch.full((1, 4, 100), 1 / 200)
    pattern[0, :2, 37] += 0.5
    pattern[0, 2:, 62] += 0.5
    (head,) = reduce_heads(pattern, token_axis(4, 2), time_axis(80, 100, 10))
    assert head.peaks.tolist() == [37, 62]
    assert head.peak_values.tolist() == pytest.approx([0.505, 0.505])


def test_rows_beyond_the_axis_are_left_out() -> None:
    pattern = pattern_of(1, 6, 12)
    (head,) = reduce_heads(pattern, token_axis(5), time_axis(12, 12))
    assert head.codes.shape == (5, 12)


def test_entropy_is_that_of_the_sound() -> None:
    pattern = pattern_of(2, 30, 30)
    axis = time_axis(11, 30, 4)
    expected = attention_entropy(pattern[None], 11)[0].nanmean(dim=-1)
    found = [head.entropy_nats for head in reduce_heads(pattern, axis, axis)]
    assert found == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_pattern_of_zeros_is_black_and_has_no_entropy() -> None:
    (head,) = reduce_heads(torch.zeros(1, 4, 4), token_axis(4), token_axis(4))
    assert head.values().eq(0).all()
    assert head.entropy_nats is None


def test_packed_numbers_come_back() -> None:
    (head,) = reduce_heads(pattern_of(1, 5, 40), token_axis(5), time_axis(40, 40, 3))
    raw = zlib.decompress(base64.b64decode(head.packed()))
    n_cells = head.codes.numel()
    numbers = np.frombuffer(raw, "<u2", offset=n_cells).reshape(3, 5)
    assert np.array_equal(np.frombuffer(raw, np.uint8, n_cells).reshape(5, -1), head.codes)
    assert numbers[0].tolist() == head.peaks.tolist()
    assert numbers[1] / 65535 == pytest.approx(head.peak_values.numpy(), abs=1e-5)
    assert numbers[2] / 65535 == pytest.approx(head.on_sound.numpy(), abs=1e-5)


@pytest.mark.parametrize("name", release_names())
@pytest.mark.parametrize(("n_sound", "n_tokens"), [(1500, 448), (160, 8), (1, 5)])
def test_any_release_fits(name: str, n_sound: int, n_tokens: int) -> None:
    cfg = HookedWhisperConfig.for_release(name)
    axes = choose_axes(cfg, n_sound, n_tokens, 12)
    n_bytes = 0
    for kind in KINDS:
        query, key = axes[kind]
        stack = "encoder" if kind == "encoder" else "decoder"
        n_heads = cfg.n_layers(stack) * cfg.n_heads(stack)
        noise = torch.randint(256, (len(query) * len(key) + 6 * len(query),), dtype=torch.uint8)
        packed = base64.b64encode(zlib.compress(noise.numpy().tobytes(), 1))
        n_bytes += n_heads * (len(packed) + 120)
    assert n_bytes < 12e6


def test_tinys_bins_for_30_s() -> None:
    axes = choose_axes(HookedWhisperConfig.for_release("tiny"), 1500, 100, 12)
    widths = {kind: (query.width, key.width) for kind, (query, key) in axes.items()}
    assert widths == {"encoder": (4, 4), "cross": (1, 2), "decoder": (1, 1)}


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(InputError, match=r"max_mb is 0.01.*has 640 encoder heads"):
        choose_axes(HookedWhisperConfig.for_release("large"), 1500, 100, 0.01)


def test_kinds_and_layers_from_names() -> None:
    assert kind_of("encoder.blocks.2.attn.hook_pattern") == ("encoder", 2)
    assert kind_of("decoder.blocks.11.attn.hook_pattern") == ("decoder", 11)
    with pytest.raises(InputError, match="no hook of a pattern"):
        kind_of("encoder.blocks.2.hook_resid_post")


def test_the_reducer_keeps_every_head(tiny_model, tiny_mel, tiny_tokens) -> None:
    mel, tokens = tiny_mel[:1], tiny_tokens[:1]
    axes = choose_axes(tiny_model.cfg, 13, tokens.shape[1], 12)
    reducer = PatternReducer(axes)
    with torch.no_grad():
        tiny_model.run_with_hooks(mel, tokens, fwd_hooks=[("*.hook_pattern", reducer)])
        _, cache = tiny_model.run_with_cache(mel, tokens, names_filter="*.hook_pattern")
    for name, pattern in cache.items():
        kind, layer = kind_of(name)
        heads = reducer.heads[kind][layer]
        query = axes[kind][0].edges[-1]
        expected = means(pattern[0, :, :query], *axes[kind])
        for head, values in zip(heads, expected, strict=True):
            assert torch.allclose(head.values(), values, atol=float(values.max()) / 250)
