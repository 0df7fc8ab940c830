"""Greedy search on real speech."""

import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import recordings
from hooked_whisper.interventions.ablation import SkipLayer, ZeroAblation
from hooked_whisper.interventions.edits import Edit, Interventions
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.sites import Site
from hooked_whisper.metrics.sequences import KLDivergence
from hooked_whisper.metrics.transcripts import ExactTranscript
from hooked_whisper.patching.search import greedy_ablation, head_ablations


def test_by_the_transcript(digits_model: HookedWhisper) -> None:
    said = recordings()[0]
    spoken = Example.from_audio(digits_model, said.path, " " + said.text)
    candidates: list[Edit] = [
        SkipLayer("decoder", 0),
        ZeroAblation(Site("decoder.blocks.1.attn.hook_z", head=2)),
    ]
    found = greedy_ablation(
        digits_model,
        spoken,
        ExactTranscript(said.text),
        candidates,
        tolerance=0,
        max_new_tokens=6,
        progress=False,
    )
    assert found.baseline == 1
    expected = []
    for edit in candidates:
        with torch.no_grad(), Interventions(digits_model, edit):
            text = digits_model.generate(spoken.mel, 6).texts[0]
        expected.append(text == said.text)
    assert expected == [False, True]
    assert found.edits == candidates[1:] and found.left == tuple(candidates[:1])


def test_heads_can_go_without_a_change_of_the_text(digits_model: HookedWhisper) -> None:
    said = recordings()[0]
    spoken = Example.from_audio(digits_model, said.path, " " + said.text, append_eot=True)
    with torch.no_grad():
        reference = digits_model(spoken.mel, spoken.tokens)
    found = greedy_ablation(
        digits_model,
        spoken,
        KLDivergence(reference, pos=[3, 4, 5, 6]),
        head_ablations(digits_model, "decoder.blocks.[123].attn.hook_z"),
        tolerance=0.05,
        max_removals=3,
        progress=False,
    )
    assert len(found.removals) == 3
    with torch.no_grad(), Interventions(digits_model, *found.edits):
        assert digits_model.generate(spoken.mel).texts[0] == said.text
