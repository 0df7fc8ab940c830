"""The floor's arithmetic, against counts by hand and against PyTorch's own count."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floor import (
    ATTENTION,
    CROSS,
    DECODER,
    ENCODER,
    LOGITS,
    SOFTMAX,
    Floor,
    Work,
    product,
    seconds,
)
from benchmarks.sweep_tasks import Place
from hooked_whisper import HookedWhisper, HookedWhisperConfig

T, LAST = 32, (31,)
D, M, V, N = 384, 1536, 51865, 1500
MLP = 2 * 2 * D * M


@pytest.fixture(scope="module")
def cfg() -> HookedWhisperConfig:
    return HookedWhisperConfig.for_release("tiny")


def test_product_counts_a_multiplication_and_an_addition_each() -> None:
    assert product(3, 4, 5) == 2 * 60


def test_a_run_has_as_many_flop_as_pytorch_counts(tiny_model: HookedWhisper) -> None:
    cfg, n_tokens = tiny_model.cfg, 5
    mel = torch.zeros(1, cfg.n_mels, cfg.n_frames)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tiny_model(mel, torch.zeros(1, n_tokens, dtype=torch.long))
    counts = counter.get_flop_counts()["Global"]
    counted = sum(n for operator, n in counts.items() if str(operator) in ("aten.mm", "aten.addmm"))
    work = Floor(cfg, n_tokens).run()
    attention = cfg.n_text_layers * 4 * cfg.d_model * n_tokens**2
    assert work[ENCODER] + work[DECODER] + work[LOGITS] - attention == counted
    assert work[ATTENTION] == cfg.n_audio_layers
    assert work[CROSS] == cfg.n_text_layers * n_tokens


def row(n_query: int, n_key: int) -> int:
    """FLOP of a decoder layer for one row: its products, the MLP, and attention to the text."""
    return 2 * D * D * (n_query + 2 * n_key + 3) + MLP + 4 * D * T


@pytest.mark.parametrize(
    ("hook", "layer", "pos", "read", "decoder", "logit_rows"),
    [
        pytest.param("hook_resid_pre", 3, 31, LAST, row(1, 1), 1, id="pre-last-layer-last-pos"),
        pytest.param("hook_resid_pre", 3, 30, LAST, row(0, 1), 1, id="pre-last-layer-key-only"),
        pytest.param(
            "hook_resid_pre", 2, 30, LAST, row(1, 1) + row(0, 0) + row(1, 2), 1, id="pre-two-layers"
        ),
        pytest.param(
            "hook_resid_pre", 3, 29, None, row(1, 1) + 2 * row(0, 0), 3, id="pre-all-read"
        ),
        pytest.param("hook_resid_mid", 3, 30, LAST, 0, 0, id="mid-reaches-nothing"),
        pytest.param(
            "hook_resid_mid", 3, 31, LAST, 2 * 2 * D * D + MLP, 1, id="mid-last-layer-last-pos"
        ),
        pytest.param("hook_resid_mid_cross", 3, 30, None, MLP, 1, id="cross-last-layer-own-row"),
        pytest.param(
            "hook_resid_mid_cross", 2, 31, None, MLP + row(1, 1), 1, id="cross-then-a-layer"
        ),
    ],
)
def test_a_decoder_patch_counts_only_rows_that_change_and_matter(
    cfg: HookedWhisperConfig,
    hook: str,
    layer: int,
    pos: int,
    read: tuple[int, ...] | None,
    decoder: int,
    logit_rows: int,
) -> None:
    work = Floor(cfg, T, read).patch(Place("decoder", layer, hook, "pos", pos))
    assert work[DECODER] == decoder
    assert work[LOGITS] == 2 * logit_rows * D * V
    assert work[SOFTMAX] == logit_rows
    assert work[ENCODER] == work[ATTENTION] == 0


def test_a_window_behind_the_last_encoder_layer_costs_its_cross_keys(
    cfg: HookedWhisperConfig,
) -> None:
    place = Place("encoder", 3, "hook_resid_post", "window", 7)
    work = Floor(cfg, T, LAST).patch(place)
    assert work[ENCODER] == 4 * 2 * 50 * D * 2 * D
    assert work[ATTENTION] == 0
    # Layer 0 behind self-attention; layers 1 and 2 whole; layer 3: keys of all, one row more.
    first, whole = T * (2 * D * D + MLP), T * row(1, 1)
    assert work[DECODER] == first + 2 * whole + row(1, T)
    assert work[CROSS] == 3 * T + 1


def test_a_window_leaves_whole_layers_behind_the_next_one(cfg: HookedWhisperConfig) -> None:
    place = Place("encoder", 1, "hook_resid_post", "window", 7)
    work = Floor(cfg, T, LAST).patch(place)
    rest = N * (2 * D * D + MLP)
    keys = 4 * 2 * N * D * 2 * D
    assert work[ENCODER] == 2 * 50 * D * 3 * D + rest + 2 * N * D * 3 * D + rest + keys
    assert work[ATTENTION] == 2


def test_a_head_costs_its_layers_output_and_mlp(cfg: HookedWhisperConfig) -> None:
    place = Place("encoder", 3, "attn.hook_z", "head", 2)
    work = Floor(cfg, T, LAST).patch(place)
    assert work[ENCODER] == N * (2 * D * D + MLP) + 4 * 2 * N * D * 2 * D
    strict = Floor(cfg, T, LAST, strict=True).patch(place)
    assert work[ENCODER] - strict[ENCODER] == 2 * N * D * (D - 64)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(Place("decoder", 0, "hook_resid_pre", "pos", 4), id="same-embeddings"),
        pytest.param(Place("decoder", 1, "hook_resid_mid_cross", "pos", 4), id="as-next-layer"),
        pytest.param(Place("decoder", 3, "hook_resid_mid_cross", "pos", 4), id="clean-logits"),
    ],
)
def test_the_strict_floor_reads_off_what_the_runs_hold(
    cfg: HookedWhisperConfig, place: Place
) -> None:
    assert Floor(cfg, T).patch(place)
    assert not Floor(cfg, T, strict=True).patch(place)


def test_the_strict_floor_takes_a_patched_rows_projections_from_the_clean_run(
    cfg: HookedWhisperConfig,
) -> None:
    place = Place("decoder", 3, "hook_resid_pre", "pos", 31)
    assert Floor(cfg, T, LAST, strict=True).patch(place)[DECODER] == row(0, 0)


def test_seconds_leave_elementwise_work_out_unless_asked() -> None:
    work, speeds = Work({ENCODER: 10, SOFTMAX: 3}), {ENCODER: 0.5, SOFTMAX: 2.0}
    assert seconds(work, speeds) == 5
    assert seconds(work, speeds, elementwise=True) == 11
