"""The study of hallucinations, on a narrow random model that has Whisper's vocabulary."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.data import Recording, non_speech_sounds
from hooked_whisper.errors import InputError, RecordingsError, ReportError
from hooked_whisper.interventions import Interventions
from hooked_whisper.metrics import EndMargin
from hooked_whisper.sae import TopKConfig, make_sae
from hooked_whisper.study import HallucinationStudy, hallucination_study
from hooked_whisper.study.hallucinations import run as module
from hooked_whisper.study.hallucinations.candidates import NOTHING, head_name
from hooked_whisper.study.hallucinations.carriers import Carriers
from hooked_whisper.study.hallucinations.clips import half, sound_clips, speech_clips
from hooked_whisper.study.hallucinations.listening import WORK, Listener

EOT = 50256
OPTIONS: dict[str, Any] = {
    "generated": 1,
    "n_screened": 2,
    "n_random": 1,
    "max_new_tokens": 4,
    "progress": False,
}


@pytest.fixture(scope="module")
def model(tiny_cfg: Any, make_model: Callable[..., Any]) -> HookedWhisper:
    found: HookedWhisper = make_model(replace(tiny_cfg, d_vocab=51864), 1)
    with torch.no_grad():
        found.decoder.W_E[EOT] *= -4  # or its texts would hardly ever end
    return found


@pytest.fixture(scope="module")
def sae(model: HookedWhisper) -> Any:
    name = "encoder.ln_final.hook_normalized"
    return make_sae(TopKConfig(d_in=model.cfg.d_model, d_sae=48, k=4, hook_name=name))


@pytest.fixture(scope="module")
def speech() -> list[Recording]:
    """Six recordings of four speakers."""
    generator = torch.Generator().manual_seed(1)
    return [
        Recording(
            f"speech-{i}",
            (0.3 * torch.randn(6400 + 400 * i, generator=generator), 16_000),
            {"speaker": "abcd"[i % 4]},
            text="one two three",
        )
        for i in range(6)
    ]


@pytest.fixture(scope="module")
def sounds() -> list[Recording]:
    """One of noise, and one in which somebody speaks French."""
    generator = torch.Generator().manual_seed(2)
    samples = (0.1 * torch.randn(6400, generator=generator), 16_000)
    return [
        Recording("rain", samples, {"kind": "noise"}),
        Recording("bonjour", samples, {"kind": "speech", "language": "fr"}),
    ]


@pytest.fixture(scope="module")
def found(
    model: HookedWhisper,
    sae: Any,
    sounds: list[Recording],
    speech: list[Recording],
    tmp_path_factory: pytest.TempPathFactory,
) -> HallucinationStudy:
    folder = tmp_path_factory.mktemp("nothing") / "out"
    return hallucination_study(model, sounds, speech, folder, sae=sae, **OPTIONS)


def test_rates_are_what_generate_writes(
    found: HallucinationStudy, model: HookedWhisper, sounds: list[Recording]
) -> None:
    every = [*sounds, *non_speech_sounds(1, max_s=model.cfg.window_s)]
    texts = {
        each.id: model.generate(model.to_mel(each.audio), max_new_tokens=4).texts[0]
        for each in every
    }
    assert {row["name"]: row["text"] for row in found.sounds} == texts
    row = found.rates[0]
    assert row["kind"] == "all sounds" and row["n"] == 11  # not the French one
    spoken = {name for name in texts if name != "bonjour"}
    assert row["raw"] == sum(bool(texts[name]) for name in spoken) / 11
    assert {row["kind"] for row in found.rates} >= {"noise", "speech (fr)", "hum", "silence"}


def test_a_family_is_judged_on_what_did_not_choose_it(found: HallucinationStudy) -> None:
    assert [row["family"] for row in found.edits] == [
        *("heads", "decoder direction", "encoder direction", "subspace", "latents")
    ]
    halves = {row["name"]: row["half"] for row in found.sounds}
    assert halves["bonjour"] == "" and set(halves.values()) == {"", "choose", "judge"}
    n_judged = sum(half == "judge" for half in halves.values())
    for row in found.edits:
        assert row["n"] == n_judged and len(row["random_rates"]) == 1
        low, high = row["rate_interval"]
        assert low <= row["rate"] <= high


def test_the_page_and_the_numbers(found: HallucinationStudy) -> None:
    again = HallucinationStudy.load(found.folder)
    assert again.to_dict() == found.to_dict()
    assert len(found.to_dataframe("sounds")) == 12
    page = found.report.read_text(encoding="utf-8")
    assert "bonjour" in page and "data:audio" in page and "http://" not in page
    assert not (found.folder / WORK).exists()
    assert "HallucinationStudy" in found._repr_html_()
    with pytest.raises(ReportError, match="no table 'sound'"):
        found.to_dataframe("sound")
    (found.folder / "report.json").rename(found.folder / "kept.json")
    (found.folder / "report.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ReportError, match="does not hold what it should"):
        HallucinationStudy.load(found.folder)
    (found.folder / "kept.json").rename(found.folder / "report.json")


@torch.no_grad()
def test_a_head_is_what_a_plain_loop_gives(
    found: HallucinationStudy, model: HookedWhisper, sounds: list[Recording]
) -> None:
    clips = half(sound_clips(model, [*sounds, *_made(model)], 0), "choose", 2)
    margin = EndMargin(model)
    changes = []
    for clip in clips:
        mel = model.to_mel((clip.window.samples, 16_000))
        tokens = torch.tensor([[50257, 50362]])

        def zero(value: torch.Tensor, hook: Any) -> torch.Tensor:
            return value.index_fill(2, torch.tensor([1]), 0.0)

        before = margin(model(mel, tokens))
        with model.hooks([("decoder.blocks.1.cross_attn.hook_z", zero)]):
            changes.append(float((margin(model(mel, tokens)) - before)[0]))
    row = next(row for row in found.heads if row["head"] == "decoder cross 1.1")
    assert row["sounds"] == pytest.approx(sum(changes) / 2, abs=1e-4)
    assert head_name(("encoder.blocks.0.attn.hook_z", 1)) == "encoder self 0.1"


def _made(model: HookedWhisper) -> list[Recording]:
    return non_speech_sounds(1, max_s=model.cfg.window_s)


@torch.no_grad()
def test_the_margin_says_whether_anything_is_written(model: HookedWhisper) -> None:
    mel = model.to_mel([each.audio for each in _made(model)])
    found = model.generate(mel, max_new_tokens=2)
    is_end = found.tokens[:, 2] == EOT
    assert 0 < int(is_end.sum()) < len(is_end)
    prompt = torch.tensor([[50257, 50362]]).repeat(len(mel), 1)
    assert torch.equal(EndMargin(model)(model(mel, prompt)) > 0, is_end)


@torch.no_grad()
def test_the_gates_are_those_of_decoding(model: HookedWhisper) -> None:
    found = model.generate(model.to_mel([each.audio for each in _made(model)]), max_new_tokens=2)
    for no_speech_prob, avg_logprob, unsure, silence in (
        (0.5, -3.0, False, False),
        (0.7, -0.5, False, False),
        (0.7, -1.0, True, True),
        (0.95, -0.1, False, True),
    ):
        each = replace(
            found,
            no_speech_prob=torch.full((10,), no_speech_prob),
            avg_logprob=torch.full((10,), avg_logprob),
        )
        assert each.unsure_silence.tolist() == [unsure] * 10
        assert each.silence.tolist() == [silence] * 10


@torch.no_grad()
def test_screening_is_one_run_for_each_edit(
    model: HookedWhisper, sae: Any, speech: list[Recording], tmp_path: Path
) -> None:
    saes = {"encoder.ln_final.hook_normalized": sae}
    listener = Listener(model, tmp_path, "test", saes, 2**20, max_new_tokens=4)
    heard, spoken = sound_clips(model, _made(model), 0), speech_clips(model, speech, 0)
    with listener.keeping():
        listener.listen([*heard, *spoken])
        some = half(heard, "choose")[:2], half(spoken, "choose")[:2]
        carriers = Carriers(listener, *some, *some, progress=False)
        candidates = carriers.candidates()
        clip = heard[0]
        margins = listener.screen(clip, [NOTHING, *candidates])
    mel, tokens = listener.mel(clip), listener.prompt(clip)
    families: dict[str, int] = {}
    for candidate, margin in zip(candidates, margins[1:], strict=True):
        families[candidate.family] = families.get(candidate.family, 0) + 1
        if families[candidate.family] > 4:
            continue
        spliced = model.saes(saes, use_error_term=True) if candidate.spliced else model.hooks([])
        with spliced, Interventions(model, *candidate.edits):
            logits = model(mel, tokens)
        assert margin == pytest.approx(float(EndMargin(model)(logits)[0]), abs=1e-4)
    assert len(families) == 5


@torch.no_grad()
def test_the_gradient_is_that_of_a_small_step(
    model: HookedWhisper, speech: list[Recording], tmp_path: Path
) -> None:
    listener = Listener(model, tmp_path, "test", {}, 2**20, max_new_tokens=4)
    [clip, *_] = speech_clips(model, speech, 0)
    with listener.keeping():
        listener.listen([clip])
        listener.gradient(clip)
    for site in ("encoder.blocks.0.hook_resid_post", "decoder.blocks.1.hook_resid_post"):
        gradient = listener.vector(clip, f"gradient {site}")
        step = 1e-2 * gradient / gradient.norm()

        def move(value: torch.Tensor, hook: Any, step: torch.Tensor = step) -> torch.Tensor:
            value = value.clone()
            value[:, -1 if hook.name.startswith("decoder") else slice(None)] += step
            return value

        margins = []
        for hooks in ([], [(site, move)]):
            with model.hooks(hooks):
                logits = model(listener.mel(clip), listener.prompt(clip))
            margins.append(float(EndMargin(model)(logits)[0]))
        assert margins[1] - margins[0] == pytest.approx(1e-2 * float(gradient.norm()), rel=0.1)


@pytest.mark.slow
def test_a_broken_off_study_goes_on(
    model: HookedWhisper,
    sae: Any,
    sounds: list[Recording],
    speech: list[Recording],
    found: HallucinationStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_choose", broken)
        with pytest.raises(KeyboardInterrupt):
            hallucination_study(model, sounds, speech, tmp_path / "out", sae=sae, **OPTIONS)
    assert (tmp_path / "out" / WORK / "texts.json").exists()

    def again(*args: Any, **options: Any) -> None:
        raise AssertionError("this was heard already")

    with monkeypatch.context() as patch:
        patch.setattr(Listener, "_first", again)
        patch.setattr(Listener, "_side_by_side", again)
        gone_on = hallucination_study(model, sounds, speech, tmp_path / "out", sae=sae, **OPTIONS)
    theirs, ours = gone_on.to_dict(), found.to_dict()
    assert {**theirs, "about": None} == {**ours, "about": None}


def test_what_cannot_be_studied_is_refused(
    model: HookedWhisper, speech: list[Recording], tmp_path: Path
) -> None:
    make = lambda *args, **more: hallucination_study(*args, **{**OPTIONS, **more})  # noqa: E731
    with pytest.raises(InputError, match="speech is missing"):
        make(model, None, None, tmp_path / "a")
    with pytest.raises(RecordingsError, match="no sounds"):
        make(model, None, speech, tmp_path / "a", generated=0)
    with pytest.raises(RecordingsError, match="of 1 speakers"):
        make(model, None, speech[:1], tmp_path / "a")
    with pytest.raises(RecordingsError, match="too few to choose"):
        make(model, _made(model)[:2], speech, tmp_path / "a", generated=0)
    with pytest.raises(InputError, match="n_screened is 1"):
        make(model, None, speech, tmp_path / "a", n_screened=1)
    with model.hooks([("decoder.hook_embed", lambda value, hook: None)]):
        with pytest.raises(InputError, match="has hooks"):
            make(model, None, speech, tmp_path / "a")
    assert not (tmp_path / "a").exists()
