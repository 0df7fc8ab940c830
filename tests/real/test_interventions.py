"""Patching, ablation, paths, attribution, knockouts, steering: against loops on openai-whisper."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.interventions import CutAttention, Site, SkipLayer, Steer, ZeroAblation
from hooked_whisper.metrics import LogProb
from hooked_whisper.patching import Head, attribution_patch, patch_sweep, path_patch
from tests.real.conftest import Run, torch_hooks

POS = 6
"""The position whose prediction is measured: that of " a", behind " having been"."""
WINDOWS = [(0.5, 1.0), (3.5, 4.0), (2.0, 2.5)]
"""The second is behind the end of the shorter recording."""
D_HEAD = 64

Loop = Callable[[Tensor], float]


@pytest.fixture
def measure(runs: tuple[Run, Run]) -> Loop:
    """The log-probability of the next token of the text, as a number of openai-whisper's logits."""
    token = int(runs[0].tokens[0, POS + 1])

    def function(logits: Tensor) -> float:
        return float(logits[0, POS].double().log_softmax(dim=-1)[token])

    return function


@pytest.fixture
def metric(runs: tuple[Run, Run]) -> LogProb:
    return LogProb(int(runs[0].tokens[0, POS + 1]), pos=POS)


def at(positions: slice, new: Tensor) -> Callable[..., Tensor]:
    """A torch hook that puts other values into some positions of what a block gives."""

    def function(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, positions] = new[:, positions]
        return output

    return function


ENCODER = pytest.mark.parametrize(
    ("layer", "direction"),
    [
        pytest.param(1, "denoising", id="1-denoising"),
        *[
            pytest.param(layer, way, marks=pytest.mark.slow, id=f"{layer}-{way}")
            for layer, way in ((0, "noising"), (2, "noising"), (3, "denoising"))
        ],
    ],
)


@ENCODER
def test_a_sweep_over_time_is_the_plain_loop(
    model: HookedWhisper,
    reference: Any,
    runs: tuple[Run, Run],
    metric: LogProb,
    measure: Loop,
    layer: int,
    direction: Any,
) -> None:
    name = f"encoder.blocks.{layer}.hook_resid_post"
    options: dict[str, Any] = {"per": "window", "window_s": 0.5, "progress": False}
    options |= {"metric": metric, "direction": direction}
    clean, corrupted = (run.example for run in runs)
    windows = WINDOWS[:2] if (layer, direction) == (1, "denoising") else WINDOWS
    if len(windows) < len(WINDOWS):
        options["parts"] = windows
    every = patch_sweep(model, clean, corrupted, name, **options)
    base, source = runs[::-1] if direction == "denoising" else runs
    found = []
    for start_s, end_s in windows:
        place = slice(round(50 * start_s), round(50 * end_s))
        hook = at(place, source.streams[f"encoder.{layer}"])
        with torch.no_grad(), torch_hooks((reference.encoder.blocks[layer], hook)):
            found.append(
                measure(reference.decoder(base.tokens, reference.encoder(base.mel.values)))
            )
    ours = every.values.flatten()
    if len(ours) > len(windows):  # to the longer one's end
        assert len(ours) == 9
        ours = ours[[1, 7, 4]]
    ours = ours.tolist()
    assert ours == pytest.approx(found, abs=2e-3)
    assert float(every.clean[0]) == pytest.approx(measure(runs[0].logits), abs=1e-3)
    assert float(every.corrupted[0]) == pytest.approx(measure(runs[1].logits), abs=1e-3)
    assert max(ours) - min(ours) > 0.05


def test_a_sweep_over_positions_is_the_plain_loop(
    model: HookedWhisper, reference: Any, runs: tuple[Run, Run], metric: LogProb, measure: Loop
) -> None:
    parts, names = [2, 4, 6], [f"decoder.blocks.{layer}.hook_resid_post" for layer in (0, 2)]
    clean, corrupted = runs
    ours = patch_sweep(
        *(model, clean.example, corrupted.example, names),
        metric=metric,
        per="pos",
        parts=parts,
        progress=False,
    )
    found = []
    for layer in (0, 2):
        for pos in parts:
            hook = at(slice(pos, pos + 1), clean.streams[f"decoder.{layer}"])
            with torch.no_grad(), torch_hooks((reference.decoder.blocks[layer], hook)):
                found.append(measure(reference.decoder(clean.tokens, corrupted.features)))
    assert ours.values.flatten().tolist() == pytest.approx(found, abs=2e-3)
    assert max(found) - min(found) > 0.05


@pytest.mark.parametrize(
    ("stack", "kind", "layer", "head"),
    [
        ("decoder", "cross_attn", 3, 2),
        pytest.param("decoder", "attn", 1, 5, marks=pytest.mark.slow),
        pytest.param("encoder", "attn", 2, 0, marks=pytest.mark.slow),
    ],
)
def test_an_ablated_head_reads_nothing(
    model: HookedWhisper,
    reference: Any,
    runs: tuple[Run, Run],
    stack: str,
    kind: str,
    layer: int,
    head: int,
) -> None:
    run = runs[0]
    edit = ZeroAblation(Site(f"{stack}.blocks.{layer}.{kind}.hook_z", head=head))

    def silence(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[..., head * D_HEAD : (head + 1) * D_HEAD] = 0
        return (z,)

    out = getattr(getattr(reference, stack).blocks[layer], kind).out
    handle = out.register_forward_pre_hook(silence)
    try:
        with torch.no_grad():
            features = reference.encoder(run.mel.values) if stack == "encoder" else run.features
            theirs = reference.decoder(run.tokens, features)
    finally:
        handle.remove()
    with torch.no_grad():
        given = {"fwd_hooks": edit.hooks(model)}
        if stack == "encoder":
            ours = model.run_with_hooks(run.mel, run.tokens, **given)
        else:
            ours = model.run_with_hooks(None, run.tokens, encoder_output=run.features, **given)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    assert float((theirs - run.logits).abs().max()) > 0.05


def cross_attention(reference: Any, layer: int, features: Tensor, query: Tensor) -> Tensor:
    """What the heads of one block's cross-attention read, side by side, by the formula."""
    attention = reference.decoder.blocks[layer].cross_attn
    q, k, v = (
        value.unflatten(-1, (-1, D_HEAD)).transpose(1, 2)
        for value in (query, attention.key(features), attention.value(features))
    )
    pattern = (q @ k.mT / D_HEAD**0.5).softmax(dim=-1)
    return (pattern @ v).transpose(1, 2).flatten(2)


@torch.no_grad()
def test_a_path_to_the_logits_changes_the_last_stream_alone(
    model: HookedWhisper, reference: Any, runs: tuple[Run, Run], metric: LogProb, measure: Loop
) -> None:
    clean, corrupted = runs
    heads = [Head("decoder", layer, head, "cross_attn") for layer, head in ((2, 1), (3, 2))]
    ours = path_patch(model, clean.example, corrupted.example, heads, "logits", metric)
    found = []
    for head in heads:
        z = [
            cross_attention(reference, head.layer, run.features, run.streams[f"query.{head.layer}"])
            for run in runs
        ]
        place = slice(head.head * D_HEAD, (head.head + 1) * D_HEAD)
        W_O = reference.decoder.blocks[head.layer].cross_attn.out.weight[:, place]
        last = corrupted.streams["decoder.3"] + (z[0] - z[1])[..., place] @ W_O.T
        found.append(
            measure(reference.decoder.ln(last) @ reference.decoder.token_embedding.weight.T)
        )
    assert ours.values.flatten().tolist() == pytest.approx(found, abs=2e-3)
    assert abs(found[1] - measure(corrupted.logits)) > 0.01


@pytest.mark.parametrize("stack", ["decoder", pytest.param("encoder", marks=pytest.mark.slow)])
def test_attribution_is_the_gradient_times_the_difference(
    model: HookedWhisper,
    reference: Any,
    runs: tuple[Run, Run],
    metric: LogProb,
    measure: Loop,
    stack: str,
) -> None:
    clean, corrupted = runs
    layer, kept = 2, []

    def watch(module: Any, args: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    with torch_hooks((getattr(reference, stack).blocks[layer], watch)):
        if stack == "encoder":
            features = reference.encoder(corrupted.mel.values)
        else:
            features = corrupted.features
        logits = reference.decoder(clean.tokens, features)
    token = int(clean.tokens[0, POS + 1])
    logits[0, POS].log_softmax(dim=-1)[token].backward()
    moved = (clean.streams[f"{stack}.{layer}"] - kept[0].detach()) * kept[0].grad
    base = measure(corrupted.logits)
    name = f"{stack}.blocks.{layer}.hook_resid_post"
    options: dict[str, Any] = {"metric": metric, "n_steps": 1, "progress": False}
    if stack == "encoder":
        options |= {"per": "window", "parts": WINDOWS}
        places = [slice(round(50 * start), round(50 * end)) for start, end in WINDOWS]
    else:
        options |= {"per": "pos", "parts": [2, 4, 6]}
        places = [slice(pos, pos + 1) for pos in (2, 4, 6)]
    ours = attribution_patch(model, clean.example, corrupted.example, name, **options)
    found = [base + float(moved[:, place].sum()) for place in places]
    assert ours.values.flatten().tolist() == pytest.approx(found, abs=5e-3)
    reference.zero_grad()


def test_knocked_out_edges_are_keys_that_nobody_reads(
    model: HookedWhisper, reference: Any, runs: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cut = runs[0], slice(50, 100)
    edit = CutAttention("decoder.blocks.*.cross_attn.hook_attn_scores", window_s=(1.0, 2.0))

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> tuple[Tensor, None]:
        q, k, v = (each.unflatten(-1, (-1, D_HEAD)).transpose(1, 2) for each in (q, k, v))
        scores = q @ k.mT / D_HEAD**0.5
        scores[..., cut] = -torch.inf
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2), None

    for block in reference.decoder.blocks:
        monkeypatch.setattr(block.cross_attn, "qkv_attention", attend)
    with torch.no_grad():
        theirs = reference.decoder(run.tokens, run.features)
        ours = model.run_with_hooks(
            None, run.tokens, encoder_output=run.features, fwd_hooks=edit.hooks(model)
        )
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    assert float((theirs - run.logits).abs().max()) > 0.5


def test_a_layer_that_is_skipped_passes_the_stream_on(
    model: HookedWhisper, reference: Any, runs: tuple[Run, Run]
) -> None:
    run = runs[0]
    with torch.no_grad(), torch_hooks((reference.decoder.blocks[1], lambda m, args, out: args[0])):
        theirs = reference.decoder(run.tokens, run.features)
    with torch.no_grad():
        hooks = SkipLayer("decoder", 1).hooks(model)
        ours = model.run_with_hooks(None, run.tokens, encoder_output=run.features, fwd_hooks=hooks)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_steering_adds_a_vector_where_it_is_told_to(
    model: HookedWhisper, reference: Any, runs: tuple[Run, Run]
) -> None:
    run = runs[0]
    vector = F.normalize(torch.randn(384, generator=torch.Generator().manual_seed(0)), dim=0)

    def push(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, 3:6] += 20 * vector
        return output

    with torch.no_grad(), torch_hooks((reference.decoder.blocks[1], push)):
        theirs = reference.decoder(run.tokens, run.features)
    site = Site("decoder.blocks.1.hook_resid_post", pos=slice(3, 6))
    with torch.no_grad():
        hooks = Steer(site, vector, 20).hooks(model)
        ours = model.run_with_hooks(None, run.tokens, encoder_output=run.features, fwd_hooks=hooks)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    assert float((theirs - run.logits).abs().max()) > 0.5
