from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.architectures import ARCHITECTURES, make_sae
from hooked_whisper.sae.architectures.relu import ReLUConfig
from hooked_whisper.sae.training.fold import fold_scale_


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folded_autoencoder_does_at_full_scale_what_it_did_on_scaled_data(name: str) -> None:
    config = ARCHITECTURES[name].Config
    names = [each.name for each in fields(config)]
    sizes: dict[str, Any] = {"k": 4, "matryoshka_widths": (6, 12), "d_out": 7}
    own = {key: value for key, value in sizes.items() if key in names}
    sae = make_sae(config(d_in=5, d_sae=12, **own), torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for key, value in [*sae.named_parameters(), *sae.named_buffers()]:
            if key != "W_dec":
                value.abs_() if "threshold" in key else value.add_(0.1 * torch.rand_like(value))
    scale_in, scale_out = 0.02, 0.5 if sae.cfg.is_transcoder else 0.02
    x = 50 * torch.randn(40, 5)
    latents, recons = sae.encode(scale_in * x), sae(scale_in * x) / scale_out
    lengths = sae.W_dec.norm(dim=-1)
    fold_scale_(sae, scale_in, scale_out)
    torch.testing.assert_close(sae.encode(x), latents / scale_out, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(x), recons, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), lengths)
    assert (latents > 0).any() and (latents == 0).any()


def test_a_tied_encoder_stays_tied() -> None:
    sae = make_sae(ReLUConfig(d_in=5, d_sae=12, tied=True))
    x = 50 * torch.randn(40, 5)
    expected = sae(0.02 * x) / 0.02
    fold_scale_(sae, 0.02, 0.02)
    torch.testing.assert_close(sae(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(sae.W_enc, sae.W_dec.T)


def test_a_weight_of_unknown_scale_is_refused() -> None:
    sae = make_sae(ReLUConfig(d_in=5, d_sae=12))
    sae.extra = nn.Parameter(torch.ones(3))
    with pytest.raises(TrainingError, match="'extra' of a ReLUSAE"):
        fold_scale_(sae, 2.0, 2.0)
