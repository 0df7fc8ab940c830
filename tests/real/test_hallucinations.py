"""What tiny.en hears in nothing, against openai-whisper's decoding of the same sounds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.data import non_speech_sounds
from hooked_whisper.interventions import Interventions, Site, Steer
from hooked_whisper.metrics import EndMargin

SITE = "decoder.blocks.0.hook_resid_post"
PROMPT = torch.tensor([[50257, 50362]])


@pytest.fixture(scope="module")
def heard(model: HookedWhisper, speech: Path) -> dict[str, torch.Tensor]:
    """The encoder's output for three sounds and a sentence."""
    made = {each.labels["kind"]: each.audio for each in non_speech_sounds(1)}
    sounds: dict[str, Any] = {kind: made[kind] for kind in ("white", "clicks", "silence")}
    sounds["sentence"] = speech / "sentences" / "ls-1688-142285-0004.flac"
    with torch.no_grad():
        return {name: model.encoder(model.to_mel(sound)) for name, sound in sounds.items()}


@torch.no_grad()
def test_it_is_what_openai_writes_and_says_of_silence(
    model: HookedWhisper, reference: Any, heard: dict[str, torch.Tensor]
) -> None:
    from whisper.decoding import DecodingOptions, decode

    output = torch.cat(list(heard.values()))
    ours = model.generate(encoder_output=output, suppress_blank=True, max_new_tokens=30)
    options = DecodingOptions(language="en", without_timestamps=True, fp16=False, sample_len=30)
    theirs = decode(reference, output, options)
    for row, each in enumerate(theirs):
        assert ours.texts[row] == each.text
        assert float(ours.no_speech_prob[row]) == pytest.approx(each.no_speech_prob, abs=1e-4)
        is_unsure = each.no_speech_prob > 0.6 and each.avg_logprob <= -1
        assert bool(ours.unsure_silence[row]) == is_unsure
    assert all(ours.texts[:3]) and not bool(ours.silence[3])  # raw: a text for every sound


def test_a_step_along_the_margins_gradient_silences_sounds_and_no_speech(
    model: HookedWhisper, heard: dict[str, torch.Tensor]
) -> None:
    margin = EndMargin(model)
    shift = torch.zeros(model.cfg.d_model, requires_grad=True)
    sounds = torch.cat([heard[kind] for kind in ("white", "clicks")])

    def add(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([value[:, :-1], value[:, -1:] + shift], dim=1)

    with model.hooks([(SITE, add)]):
        logits = model(None, PROMPT.repeat(2, 1), encoder_output=sounds)
    (gradient,) = torch.autograd.grad(margin(logits).sum(), shift)
    lengths = []
    keep = lambda value, hook: lengths.append(value[:, -1].norm(dim=-1).mean())  # noqa: E731
    with torch.no_grad(), model.hooks([(SITE, keep)]):
        model(None, PROMPT, encoder_output=heard["white"])
    random = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0))
    found = {}
    for name, vector in (("gradient", gradient), ("random", random)):
        steer = Steer(Site(SITE, pos=1), vector / vector.norm(), 0.25 * float(lengths[0]))
        with torch.no_grad(), Interventions(model, steer):
            found[name] = {
                kind: model.generate(encoder_output=output, max_new_tokens=20).texts[0]
                for kind, output in heard.items()
            }
    assert found["gradient"]["clicks"] == found["gradient"]["silence"] == ""  # one chose, one not
    assert all(found["random"].values())
    assert found["gradient"]["sentence"] == found["random"]["sentence"]
