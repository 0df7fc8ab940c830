"""The study of hallucinations, from sounds to a page."""

import importlib.metadata
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.data import as_recordings, non_speech_sounds
from hooked_whisper.display import json_value, progress_bar
from hooked_whisper.errors import InputError, ReportError, check_count, check_number
from hooked_whisper.io import as_path, write_json
from hooked_whisper.reports import sound_page
from hooked_whisper.speech import get_tokenizer
from hooked_whisper.store import model_identity
from hooked_whisper.study.autoencoder import given
from hooked_whisper.study.folder import NUMBERS, REPORT, study_folder
from hooked_whisper.study.hallucinations.candidates import Candidate
from hooked_whisper.study.hallucinations.carriers import Carriers
from hooked_whisper.study.hallucinations.clips import (
    Clip,
    half,
    sound_clips,
    speech_clips,
    with_generated,
)
from hooked_whisper.study.hallucinations.judging import Judge, Limits, rates, share
from hooked_whisper.study.hallucinations.listening import WORK, Listener, Written
from hooked_whisper.study.hallucinations.result import TABLES, HallucinationStudy, shown_table

MOST_TRIES = 2
"""Candidates of a family that are listened to on the whole choosing half, at most."""
ALL = "all sounds"


def hallucination_study(
    model: HookedWhisper,
    sounds: Any = None,
    speech: Any = None,
    folder: str | os.PathLike[str] = "hallucinations",
    *,
    generated: int = 6,
    sae: Any = None,
    hook_name: str | None = None,
    n_screened: int = 12,
    n_random: int = 3,
    max_rate: float | int = 0.3,
    max_wer_rise: float | int = 0.01,
    language: str | None = None,
    max_new_tokens: int | None = None,
    max_bytes: int = 2**29,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> HallucinationStudy:
    """What a Whisper writes where nobody speaks, what carries it, and which edits stop it.

    Every sound is transcribed greedily: raw, and behind the gates of this package and of
    openai-whisper. On half of the sounds and half of the speakers, heads, layers and latents are
    measured by what they do to the end of the text behind the prompt, and of each family of edits
    one is chosen: heads zeroed, a direction added in the decoder or in the encoder, a
    subspace projected out, latents of an autoencoder. The other half judges it: how many
    sounds still get a text, and the word error rate; and so do edits of equal size at random.
    An interrupted run goes on where it was when the same call is made again.

    Args:
        model: The model, without hooks.
        sounds: Recordings in which nobody speaks, in what `as_recordings` takes, with a label
            `kind`. Those with a language or a text are speech: their rates are told, and
            no edit is chosen or judged on them.
        speech: Recordings with texts and speakers, for the word error rate.
        folder: Gets report.html, on which to listen, and report.json.
        generated: Sounds of each kind that are made beside these; 0 for none.
        sae: An autoencoder of the encoder, its file or folder, or a suite, for its latents.
        hook_name: What it reads, where it does not say so.
        n_screened: Sounds, and as many windows of speech, on which all heads and edits are
            measured by their first token.
        n_random: Edits at random for each that is judged.
        max_rate: The share of sounds that may still get a text where an edit passes.
        max_wer_rise: By how much the word error rate may rise: 0.01 is one point.
        language: Of what is said; None has a multilingual model find out.
        max_new_tokens: Of a text, at most.
        max_bytes: Of encoder outputs that are kept in memory.
        seed: Of the sounds that are made, of the halves, of what is random.
        overwrite: Replace a report that is in the folder.
        progress: Show bars on stderr.

    Raises:
        ReportError: The folder holds a report, or cannot be written.
        RecordingsError: Too few sounds or speakers for two halves, or none that can be used.
        InputError: The model has hooks, or settings that make no sense.
        SpliceError: An autoencoder that does not fit.
        TokenError: A vocabulary that is not Whisper's.

    Source: the edits after Calm-Whisper (2505.12969), 2606.07473 and 2609.04561.
    """
    place = as_path(folder, ReportError)
    _check(model, generated, n_screened, n_random, seed, max_bytes)
    for name, value in (("max_rate", max_rate), ("max_wer_rise", max_wer_rise)):
        check_number(name, value, InputError, 0)
    get_tokenizer(model.cfg)
    if speech is None:
        raise InputError(
            "speech is missing: recordings with texts, on which the word error rate is kept."
        )
    autoencoder = None if sae is None else given(model, sae, hook_name)
    saes = {} if autoencoder is None else {autoencoder.hook_name: autoencoder.sae}
    made = []
    if generated:
        made = non_speech_sounds(generated, seed=seed, max_s=model.cfg.window_s)
    listed, said = as_recordings(with_generated(sounds, made)), as_recordings(speech)
    heard, spoken = sound_clips(model, listed, seed), speech_clips(model, said, seed)
    settings = {
        "generated": generated,
        "sae": None if autoencoder is None else autoencoder.source,
        "hook_name": None if autoencoder is None else autoencoder.hook_name,
        "n_screened": n_screened,
        "n_random": n_random,
        "max_rate": max_rate,
        "max_wer_rise": max_wer_rise,
        "language": language,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    about: dict[str, Any] = {
        "model": model_identity(model),
        "settings": settings,
        "recordings_digests": [listed.digest, said.digest],
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "openai-whisper")
        },
    }
    with study_folder(place, (WORK,), overwrite=overwrite) as inside:
        listener = Listener(
            model,
            inside,
            about | {"sizes": [[clip.name, clip.window.seconds] for clip in (*heard, *spoken)]},
            saes,
            max_bytes,
            language=language,
            max_new_tokens=max_new_tokens,
        )
        limits = Limits(float(max_rate), float(max_wer_rise), n_random)
        with listener.keeping(), torch.no_grad():
            tables = _tables(listener, heard, spoken, n_screened, limits, progress=progress)
        about |= _numbers(heard, spoken)
        found = HallucinationStudy(place, about, **tables)
        _write_page(found, listener, heard, inside, progress=progress)
        write_json(inside / NUMBERS, json_value(found.to_dict()))
        listener.forget()
    return found


def _check(
    model: HookedWhisper, generated: Any, n_screened: Any, n_random: Any, seed: Any, max_bytes: Any
) -> None:
    hooked = [name for name, point in model.hook_dict.items() if point.is_hooked]
    if hooked:
        raise InputError(
            f"{hooked[0]!r} has hooks or an SAE, and a study is of the model as it is. Call "
            "model.reset_hooks() and model.reset_saes() first."
        )
    check_count("generated", generated, 0, InputError)
    check_count("n_screened", n_screened, 2, InputError)
    check_count("n_random", n_random, 0, InputError)
    check_count("seed", seed, 0, InputError)
    check_number("max_bytes", max_bytes, InputError, 1)


def _tables(
    listener: Listener,
    heard: Sequence[Clip],
    spoken: Sequence[Clip],
    n_screened: int,
    limits: Limits,
    *,
    progress: bool,
) -> dict[str, Any]:
    """All that is found."""
    bar: dict[str, Any] = {"desc": "listening", "unit": "clip", "show": progress}
    with progress_bar(total=len(heard) + len(spoken), **bar) as moving:
        judge = Judge(listener, limits, moving)
        written = judge.listen(heard)
        judge.listen(spoken)
    carriers = Carriers(
        listener,
        half(heard, "choose", n_screened),
        half(spoken, "choose", n_screened),
        half(heard, "choose"),
        half(spoken, "choose"),
        progress=progress,
    )
    candidates = carriers.candidates()
    tried = carriers.screened(candidates, limits.wer_rise)
    judged_sounds, judged_speech = half(heard, "judge"), half(spoken, "judge")
    edits = []
    with progress_bar(**{**bar, "desc": "judging"}) as moving:
        judge = Judge(listener, limits, moving)
        for family in dict.fromkeys(each.family for each in candidates):
            chosen, choice = _choose(judge, tried, candidates, family, carriers)
            outcome = judge.outcome(chosen, judged_sounds, judged_speech)
            controls = judge.controls(chosen, judged_sounds, judged_speech)
            row = {"family": family, "edit": chosen.name, **choice, **outcome, **controls}
            row["passes"] = outcome["passes"] and choice["chosen_passes"]
            edits.append(row)
    return {
        "rates": _rates(heard, written),
        "edits": edits,
        "heads": carriers.heads,
        "layers": carriers.layers(judged_sounds, judged_speech),
        "latents": carriers.latents,
        "tried": tried,
        "sounds": [_sound(clip, each) for clip, each in zip(heard, written, strict=True)],
    }


def _choose(
    judge: Judge,
    tried: Sequence[dict[str, Any]],
    candidates: Iterable[Candidate],
    family: str,
    carriers: Carriers,
) -> tuple[Candidate, dict[str, Any]]:
    """The first of a family, in the order of the screening, that passes on the choosing half.

    Else that with the least rate whose word error rate keeps to its limit, or the first.
    """
    by_name = {each.name: each for each in candidates}
    order = [by_name[row["edit"]] for row in tried if row["family"] == family]
    found = []
    for candidate in order[:MOST_TRIES]:
        outcome = judge.outcome(candidate, carriers.all_sounds, carriers.all_speech)
        choice = {
            "chosen_rate": outcome["rate"],
            "chosen_wer_rise": outcome["wer_rise"],
            "chosen_passes": outcome["passes"],
        }
        found.append((candidate, choice))
        if outcome["passes"]:
            return candidate, choice
    kept = [each for each in found if each[1]["chosen_wer_rise"] <= judge.limits.wer_rise]
    return min(kept or found[:1], key=lambda each: each[1]["chosen_rate"])


def _rates(clips: Sequence[Clip], written: Sequence[Written]) -> list[dict[str, Any]]:
    rows = []
    for kind in sorted({(not clip.is_sound, clip.kind) for clip in clips}):
        some = [
            each
            for clip, each in zip(clips, written, strict=True)
            if (not clip.is_sound, clip.kind) == kind
        ]
        rows.append({"kind": kind[1], "speech": kind[0], **rates(some)})
    every = [each for clip, each in zip(clips, written, strict=True) if clip.is_sound]
    return [{"kind": ALL, "speech": False, **rates(every)}, *rows]


def _sound(clip: Clip, written: Written) -> dict[str, Any]:
    return {
        "name": clip.name,
        "kind": clip.kind,
        "half": clip.half,
        "seconds": round(clip.window.seconds, 2),
        "text": written.text,
        "no_speech_prob": written.no_speech_prob,
        "avg_logprob": written.avg_logprob,
        "gated": written.gate,
        "openai_gated": written.openai_gate,
        "loop": written.is_loop,
    }


def _numbers(heard: Sequence[Clip], spoken: Sequence[Clip]) -> dict[str, Any]:
    return {
        "n_sounds": sum(clip.is_sound for clip in heard),
        "n_speech": len(spoken),
        "n_speakers": len({clip.window.speaker or clip.name for clip in spoken}),
        "share_with_kind": share([clip.kind != "sound" for clip in heard]),
    }


def _write_page(
    found: HallucinationStudy,
    listener: Listener,
    heard: Sequence[Clip],
    inside: Path,
    *,
    progress: bool,
) -> None:
    clips = progress_bar(list(heard), desc="sounds", unit="clip", show=progress)
    shown = [
        (clip.window.samples, listener.mel(clip), {k: v for k, v in row.items() if k != "half"})
        for clip, row in zip(clips, found.sounds, strict=True)
    ]
    titles = {
        "rates": "Rates by kind of sound",
        "edits": "The edit that each family chose, judged on the other half",
        "heads": "Each head zeroed: change of the end's margin (logits)",
        "layers": "Layers",
        "latents": "Latents",
        "tried": "Every edit that was tried, by its first token on the choosing half",
    }
    sound_page(
        shown,
        inside / REPORT,
        title=f"What {listener.model.cfg.model_name} hears in nothing",
        lead=found.findings,
        tables=[
            (titles[name], shown_table(getattr(found, name), 300))
            for name in TABLES
            if name in titles and getattr(found, name)
        ],
    )
