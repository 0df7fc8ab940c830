"""Clamping, scaling and adding to chosen values, in one pass and while decoding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import InterventionError
from hooked_whisper.interventions import Add, Clamp, Scale, Site

NAME = "decoder.blocks.1.mlp.hook_post"
AUDIO = "encoder.blocks.1.hook_resid_post"


def by_hand(kind: str, value: Tensor) -> Tensor:
    if kind == "clamp":
        return torch.full_like(value, 2.5)
    return value * -3 if kind == "scale" else value + 1.5


EDITS: dict[str, Callable[[Site], Any]] = {
    "clamp": lambda site: Clamp(site, 2.5),
    "scale": lambda site: Scale(site, -3),
    "add": lambda site: Add(site, 1.5),
}


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("stepped", [False, True], ids=["one-pass", "decoding"])
def test_it_is_the_arithmetic_written_out(
    tiny_model: Any,
    tiny_mel: Tensor,
    tiny_tokens: Tensor,
    one_pass: Callable[..., Tensor],
    in_steps: Callable[..., Tensor],
    kind: str,
    stepped: bool,
) -> None:
    def edit(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, [2, 5], 7] = by_hand(kind, value[:, [2, 5], 7])
        return value

    with torch.no_grad():
        want = tiny_model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=[(NAME, edit)])
    run = in_steps if stepped else one_pass
    got = run(tiny_model, tiny_mel, tiny_tokens, EDITS[kind](Site(NAME, neuron=7, pos=[2, 5])))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, run(tiny_model, tiny_mel, tiny_tokens), atol=1e-4)


@pytest.mark.parametrize("kind", EDITS)
def test_latents_in_a_time_window(
    tiny_model: Any,
    tiny_mel: Tensor,
    plain_autoencoder: Callable[..., Any],
    kind: str,
) -> None:
    """Also of a latent that is not active: the stream moves along its decoder row there only."""
    sae = plain_autoencoder(tiny_model.cfg.d_model)
    name = f"{AUDIO}.hook_sae_acts_post"
    site = Site(name, latent=3, window_s=(0.1, 0.2))
    with torch.no_grad(), tiny_model.saes({AUDIO: sae}, use_error_term=True):
        names = [name, f"{AUDIO}.hook_sae_output"]
        _, clean = tiny_model.run_with_cache(tiny_mel, names_filter=names)
        hooks = EDITS[kind](site).hooks(tiny_model)
        _, edited = tiny_model.run_with_cache(tiny_mel, names_filter=names, fwd_hooks=hooks)
    old = clean[name][:, 5:10, 3]
    assert (old == 0).any() and (old > 0).any()
    moved = edited[names[1]] - clean[names[1]]
    want = torch.zeros_like(moved)
    want[:, 5:10] = (by_hand(kind, old) - old)[..., None] * sae.W_dec[3]
    torch.testing.assert_close(moved, want, rtol=1e-4, atol=1e-5)


def test_numbers_that_are_none(tiny_model: Any) -> None:
    with pytest.raises(InterventionError, match="is given is nan; it must be a finite number"):
        Clamp(Site(NAME), float("nan")).hooks(tiny_model)
