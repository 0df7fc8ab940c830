"""A model whose weights were made so that the edges which matter are known: they come first."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.circuits import EdgeScores, find_circuit
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics import LogitDifference
from hooked_whisper.speech.mel import Mel

D, RIGHT, WRONG, SPOKEN = 24, 3, 5, 7

LOUD = 40.0
"""Of what is there in every run alike: LayerNorms then divide by nearly the same always."""
GAIN = LOUD / D**0.5
"""What undoes that division."""

PLANTED = {
    "encoder.embed->encoder.0.attn.1.k",
    "encoder.embed->encoder.0.attn.1.v",
    "encoder.0.attn.1->encoder.1.attn.0.v",
    "encoder.1.attn.0->decoder.1.cross_attn.1.v",
    "decoder.1.cross_attn.1->logits",
    "encoder.embed->encoder.1.mlp",
    "encoder.1.mlp->decoder.0.cross_attn.0.v",
    "decoder.0.cross_attn.0->decoder.0.mlp",
    "decoder.0.mlp->logits",
}
"""Two ways from the sound to the logits, each step on a channel of its own."""


def channel(number: int) -> Tensor:
    """A direction of the stream that no other channel shares, and that has no mean."""
    found = torch.zeros(D)
    found[2 * number], found[2 * number + 1] = 0.5**0.5, -(0.5**0.5)
    return found


def plant_head(attention: Any, head: int, reads: int, writes: int) -> None:
    """A head whose values read one channel, and that writes to another."""
    first = head * (D // attention.n_heads)
    attention.value.weight[first] = GAIN * channel(reads)
    attention.out.weight[:, first] = channel(writes)


def plant_mlp(mlp: Any, reads: int, writes: int) -> None:
    mlp.fc_in.weight[0] = GAIN * channel(reads)
    mlp.fc_out.weight[:, 0] = 2 * channel(writes)


@pytest.fixture(scope="module")
def planted(make_model: Any) -> Any:
    model = make_model(
        HookedWhisperConfig(
            n_mels=80,
            n_audio_ctx=20,
            n_audio_layers=2,
            n_audio_heads=2,
            n_text_ctx=8,
            n_text_layers=2,
            n_text_heads=2,
            d_model=D,
            d_vocab=11,
            model_name="planted",
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("ln1.weight", "ln2.weight", "ln3.weight", "ln_final.weight")):
                parameter.zero_()
        # The sound's loudness goes to channel 1; channel 0 is there in every run alike.
        encoder, decoder = model.encoder, model.decoder
        encoder.conv1.weight[0, :, 1] = 0.05
        encoder.conv2.weight[:, 0, 1] = channel(1)
        encoder.positional_embedding.copy_(
            LOUD * channel(0).expand_as(encoder.positional_embedding)
        )
        decoder.token_embedding.weight[SPOKEN] = LOUD * channel(0)
        head = encoder.blocks[0].attn
        plant_head(head, 1, reads=1, writes=2)
        first = D // head.n_heads
        head.query.bias[first + 1] = 4.0  # every query looks for a loud place
        head.key.weight[first + 1] = GAIN * channel(1)
        plant_head(encoder.blocks[1].attn, 0, reads=2, writes=3)
        plant_head(decoder.blocks[1].cross_attn, 1, reads=3, writes=4)
        plant_mlp(encoder.blocks[1].mlp, reads=1, writes=5)
        plant_head(decoder.blocks[0].cross_attn, 0, reads=5, writes=6)
        plant_mlp(decoder.blocks[0].mlp, reads=6, writes=7)
        decoder.token_embedding.weight[RIGHT] = channel(4) + channel(7)
    return model


def sound(model: Any, seed: int, loudness: float) -> Example:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, model.cfg.n_mels, model.cfg.n_frames)
    values = loudness * torch.rand(shape, generator=generator).round(decimals=0)
    place = torch.rand(1, 1, model.cfg.n_frames, generator=generator)
    tokens = torch.full((1, 3), SPOKEN)
    return Example(Mel(values * place, torch.tensor([model.cfg.n_frames])), tokens)


def auroc(scores: EdgeScores) -> float:
    from sklearn.metrics import roc_auc_score

    is_planted = [str(edge) in PLANTED for edge in scores.edges]
    assert sum(is_planted) == len(PLANTED)
    return float(roc_auc_score(is_planted, scores.scores().abs().numpy()))


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("method", ["exact", "eap-ig-inputs", "eap-ig-activations"])
def test_planted_edges_come_first(planted: Any, method: Any, direction: Any) -> None:
    pairs = [(sound(planted, i, 1.5), sound(planted, 10 + i, 0.5)) for i in range(2)]
    found = find_circuit(
        planted,
        pairs,
        LogitDifference(RIGHT, WRONG),
        method,
        direction=direction,
        progress=False,
    )
    assert auroc(found) == 1.0
    assert {str(edge) for edge in found.top(len(PLANTED))} == PLANTED
