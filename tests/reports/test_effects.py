"""A feature of each row multiplied, against the whole autoencoder spliced in with its error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hooked_whisper.reports.effects import RowScale
from hooked_whisper.reports.sites import feature_site
from hooked_whisper.speech.mel import Mel

RESID, MLP_IN, MLP_OUT = (
    f"encoder.blocks.1.{name}"
    for name in ("hook_resid_post", "ln2.hook_normalized", "hook_mlp_out")
)
HEADS, LAST = "encoder.blocks.0.attn.hook_z", "encoder.ln_final.hook_normalized"


@pytest.mark.parametrize(
    ("name", "name_out"),
    [(RESID, RESID), (MLP_OUT, MLP_OUT), (HEADS, HEADS), (LAST, LAST), (MLP_IN, MLP_OUT)],
    ids=["resid_post", "mlp_out", "heads", "behind the last block", "transcoder"],
)
def test_latents_change_what_they_change_in_a_splice_with_its_error_term(
    name: str,
    name_out: str,
    tiny_model: Any,
    tiny_mel: torch.Tensor,
    plain_autoencoder: Callable[..., Any],
) -> None:
    sae = plain_autoencoder(24, 10)
    sae.cfg = {"hook_name": name, "hook_name_out": name_out}
    site, mel = feature_site(tiny_model, sae, name), Mel(tiny_mel, torch.tensor([21, 34]))
    features, factors = [3, 7], [0.0, 4.0]
    scale = RowScale(site, features, factors)
    with torch.no_grad():
        stream, hooks = site.before(mel), scale.hooks
        if site.resume is not None and site.resume.is_behind:
            assert name == RESID
            stream, hooks = scale(stream), []
        with tiny_model.hooks(hooks):
            found = site.behind(stream, mel.n_positions)

        def edit(latents: torch.Tensor, hook: Any) -> torch.Tensor:
            for row, (feature, by) in enumerate(zip(features, factors, strict=True)):
                latents[row, :, feature] *= by
            return latents

        with (
            tiny_model.saes({name: sae}, use_error_term=True),
            tiny_model.hooks([("*hook_sae_acts_post", edit)]),
        ):
            expected = tiny_model.encoder(mel)
        plain = tiny_model.encoder(mel)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert all((found - plain).abs().amax(dim=(1, 2)) > 1e-3), "each row is changed"


@pytest.mark.parametrize("name", [RESID, HEADS, "encoder.hook_embed"])
def test_neurons_are_multiplied(name: str, tiny_model: Any, tiny_mel: torch.Tensor) -> None:
    scale = RowScale(feature_site(tiny_model, None, name), [5, 1], [0.0, -3.0])
    with torch.no_grad():
        _, cache = tiny_model.run_with_cache(tiny_mel, names_filter=name)
    before, found = cache[name], scale(cache[name])
    expected = before.flatten(2).clone()
    expected[0, :, 5], expected[1, :, 1] = 0.0, -3.0 * expected[1, :, 1]
    assert torch.equal(found, expected.view(before.shape))
