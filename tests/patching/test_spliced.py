"""Latents of spliced autoencoders are sites of every tool, and give the plain loop's numbers."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import Mel
from hooked_whisper.errors import SiteError
from hooked_whisper.interventions import (
    Interventions,
    MeanAblation,
    Patch,
    Site,
    Steer,
    ZeroAblation,
)
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import as_metric
from hooked_whisper.patching import attribution_patch, patch_sweep

AUDIO, TEXT = "encoder.blocks.0.hook_resid_post", "decoder.blocks.1.hook_resid_mid_cross"
Z, KEY = "decoder.blocks.2.cross_attn.hook_z", "decoder.blocks.1.cross_attn.hook_k"
LATENTS = ".hook_sae_acts_post"


@pytest.fixture
def spliced(tiny_model: Any, plain_autoencoder: Callable[..., Any]) -> Iterator[Any]:
    """The tiny model with autoencoders at a site of each kind, two of them at one."""
    width = tiny_model.cfg.d_model
    first, second = (plain_autoencoder(width, seed=seed) for seed in (1, 2))
    with tiny_model.saes({AUDIO: [first, second], Z: first}, use_error_term=True):
        with tiny_model.saes({TEXT: first, KEY: second}, use_error_term=False):
            yield tiny_model


def make_example(model: Any, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((1, 80, model.cfg.n_frames), generator=generator).clamp(-1, 1)
    tokens = torch.randint(0, model.cfg.d_vocab, (1, 6), generator=generator)
    return Example(Mel(values, torch.tensor([model.cfg.n_frames])), tokens)


def last_logits(logits: Tensor) -> Tensor:
    return logits[:, -1, 3] - logits[:, :, 5].mean(dim=1)


METRIC = as_metric(last_logits)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("name", "per", "parts"),
    [
        (AUDIO + LATENTS, "latent", [0, 3, 9]),
        (AUDIO + ".sae2" + LATENTS, "latent", [1, 4]),
        (AUDIO + ".hook_sae_error", None, None),
        (AUDIO, "window", None),
        (TEXT + LATENTS, "latent", None),
        (TEXT + LATENTS, "pos", None),
        (TEXT + ".hook_sae_output", "pos", [0, -1]),
        (TEXT, "pos", [2, 5]),
        (Z + LATENTS, "latent", [2, 5]),
        (Z, "head", None),
        (KEY + LATENTS, "latent", [0, 1]),
        ("encoder.blocks.1.attn.hook_z", "head", None),
        ("decoder.blocks.*.hook_mlp_out", "pos", [1, 4]),
    ],
    ids=lambda value: str(value).removeprefix("encoder.").removeprefix("decoder."),
)
def test_a_sweep_gives_the_plain_loops_numbers(
    spliced: Any, name: str, per: Any, parts: Any
) -> None:
    clean, corrupted = make_example(spliced, 1), make_example(spliced, 2)
    result = patch_sweep(
        spliced, clean, corrupted, name, metric=METRIC, per=per, parts=parts, window_s=0.2
    )
    with torch.no_grad():
        _, source = spliced.run_with_cache(clean.mel, clean.tokens, names_filter=name)
        for column, each in enumerate(result.names[0]):
            for number, label in enumerate(result.axes[result.part_axis]):
                options = {} if per is None else {"window_s" if per == "window" else per: label}
                patch = Patch(Site(each, **options), source)
                with Interventions(spliced, patch):
                    want = last_logits(spliced(corrupted.mel, corrupted.tokens))
                got = result.values[0, 0, column, number]
                assert abs(float(got - want[0])) < 1e-5, (each, label)
    assert result.values.std(correction=0) > 1e-4 or result.values.numel() == 1


@pytest.mark.usefixtures("without_shape_checks")
def test_a_transcoder_anywhere_leaves_sweeps_right(
    tiny_model: Any, plain_autoencoder: Callable[..., Any]
) -> None:
    """What it reads may lie before the place where a patched row would join."""
    transcoder = plain_autoencoder(tiny_model.cfg.d_model)
    clean, corrupted = make_example(tiny_model, 1), make_example(tiny_model, 2)
    for stack, reads, writes in (
        ("encoder", "encoder.blocks.0.hook_resid_pre", "encoder.blocks.1.hook_mlp_out"),
        ("decoder", "decoder.blocks.0.hook_resid_mid", "decoder.blocks.2.hook_attn_out"),
    ):
        tiny_model.add_sae(transcoder, reads, hook_name_out=writes)
        names = [f"{stack}.blocks.1.hook_resid_post", writes + LATENTS, writes]
        result = patch_sweep(tiny_model, clean, corrupted, names, metric=METRIC).to_dataframe()
        with torch.no_grad():
            _, source = tiny_model.run_with_cache(clean.mel, clean.tokens, names_filter=names)
            for name in names:
                with Interventions(tiny_model, Patch(Site(name), source)):
                    want = float(last_logits(tiny_model(corrupted.mel, corrupted.tokens)))
                layer, site = int(name.split(".")[2]), name.split(".", 3)[3]
                row = result[(result.layer == layer) & (result.site == f"{stack}.{site}")]
                assert abs(row.value.item() - want) < 1e-5, name
        tiny_model.reset_saes()


def test_attribution_reaches_latents(spliced: Any) -> None:
    """For a small change the estimate is the effect of patching, latent by latent."""
    base = make_example(spliced, 1)
    near = Example(
        Mel(base.mel.values + 1e-3 * torch.randn_like(base.mel.values), base.mel.n_frames),
        base.tokens,
    )
    name = AUDIO + LATENTS
    true = patch_sweep(spliced, near, base, name, metric=METRIC, per="latent")
    estimate = attribution_patch(spliced, near, base, name, metric=METRIC, per="latent", n_steps=1)
    change = true.values - true.values.new_tensor(float(true.corrupted[0]))
    torch.testing.assert_close(
        estimate.values - float(true.corrupted[0]), change, rtol=0.05, atol=2e-6
    )
    assert change.abs().max() > 2e-5


@pytest.mark.parametrize("stepped", [False, True], ids=["one-pass", "decoding"])
def test_edits_act_on_latents(
    spliced: Any,
    tiny_mel: Tensor,
    tiny_tokens: Tensor,
    one_pass: Callable[..., Tensor],
    in_steps: Callable[..., Tensor],
    stepped: bool,
) -> None:
    run = in_steps if stepped else one_pass
    site, latent = Site(TEXT + LATENTS, latent=[2, 4], pos=[1, -1]), TEXT + LATENTS
    clean = run(spliced, tiny_mel, tiny_tokens)

    def zero(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, [1, -1], 2] = 0
        value[:, [1, -1], 4] = 0
        return value

    with torch.no_grad():
        want = spliced.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=[(latent, zero)])
    if not stepped:
        got = run(spliced, tiny_mel, tiny_tokens, ZeroAblation(site))
        torch.testing.assert_close(got, want)
    means = torch.full((10,), 0.3)
    for edit in (MeanAblation(site, means), Steer(Site(latent), means, 2.0)):
        edited = run(spliced, tiny_mel, tiny_tokens, edit)
        assert not torch.allclose(edited, clean, atol=1e-4)
    torch.testing.assert_close(edited, one_pass(spliced, tiny_mel, tiny_tokens, edit))


def test_latents_that_do_not_exist(spliced: Any) -> None:
    with pytest.raises(SiteError, match=r"no latent 10 .* it has latents 0 to 9"):
        Site(TEXT + LATENTS, latent=10).names(spliced)
    with pytest.raises(SiteError, match=r"no latents\. Those of an autoencoder are at"):
        Site(TEXT, latent=0).names(spliced)
    with pytest.raises(SiteError, match="no neurons"):
        Site(TEXT + LATENTS, neuron=0).names(spliced)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", ["encoder.blocks.0.attn.hook_z", "encoder.hook_embed"])
def test_what_is_padding_is_that_of_the_patched_run(
    tiny_model: Any, plain_autoencoder: Callable[..., Any], name: str, direction: Any
) -> None:
    """An autoencoder that leaves padding alone, and two recordings of other lengths."""
    clean, corrupted = (
        Example(Mel(each.mel.values, torch.tensor([n])), each.tokens)
        for each, n in ((make_example(tiny_model, 1), 52), (make_example(tiny_model, 2), 20))
    )
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    sae = {"encoder.blocks.1.hook_resid_post": plain_autoencoder(tiny_model.cfg.d_model)}
    with torch.no_grad(), tiny_model.saes(sae, speech_only=True):
        found = patch_sweep(
            tiny_model, clean, corrupted, name, metric=METRIC, direction=direction, progress=False
        )
        _, cache = tiny_model.run_with_cache(source.mel, source.tokens, names_filter=name)
        logits = tiny_model.run_with_hooks(
            base.mel, base.tokens, fwd_hooks=[(name, lambda value, hook: cache[name])]
        )
    assert found.values.item() == pytest.approx(METRIC(logits).item(), abs=1e-5)
    with torch.no_grad(), tiny_model.saes(sae):
        everywhere = patch_sweep(
            tiny_model, clean, corrupted, name, metric=METRIC, direction=direction, progress=False
        )
    assert abs(everywhere.values.item() - found.values.item()) > 1e-3
