"""Transcripts, word times, error rates, pages and the study on people who read sentences."""

import csv
import json
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.cli.main import main
from hooked_whisper.reports import attention_page, feature_page
from hooked_whisper.sae import TopKConfig, TopKSAE
from hooked_whisper.speech import load_audio, word_error_rate
from hooked_whisper.speech.wer import normalizer
from hooked_whisper.store import harvest
from hooked_whisper.study import study
from tests.real.conftest import Sentence
from tests.speech.encoding import encode

# openai-whisper leaves the file of its vocabulary to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*tiktoken:pytest.PytestUnraisableExceptionWarning")


def assert_transcribes_alike(model: HookedWhisper, reference: Any, path: Path) -> dict[str, Any]:
    """The same text, segments and word times, to the digit; gives what both say."""
    import whisper

    sound = load_audio(path).numpy()
    reference.alignment_heads = model.alignment_heads
    options: dict[str, Any] = {"word_timestamps": True, "temperature": 0.0, "fp16": False}
    theirs = whisper.transcribe(reference, sound, **options)
    ours = model.transcribe(path, **options)
    assert ours["text"] == theirs["text"]
    for one, other in zip(ours["segments"], theirs["segments"], strict=True):
        assert (one["start"], one["end"], one["tokens"]) == (
            *(other["start"], other["end"], other["tokens"]),
        )
        assert one["avg_logprob"] == pytest.approx(other["avg_logprob"], abs=1e-4)
        assert one["no_speech_prob"] == pytest.approx(other["no_speech_prob"], abs=1e-4)
        for word, their in zip(one["words"], other["words"], strict=True):
            assert (word["word"], word["start"], word["end"]) == (
                *(their["word"], their["start"], their["end"]),
            )
    return ours


def test_a_transcript_is_openai_whispers_with_every_words_time(
    model: HookedWhisper, reference: Any, short: list[Path]
) -> None:
    found = assert_transcribes_alike(model, reference, short[0])
    said = "his statement of having been a shop boy was the thing i liked best of all"
    assert word_error_rate(said, found["text"]) == 0


def test_a_transcript_of_m4a_is_that_of_the_recording(
    model: HookedWhisper, short: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("av", reason="needs the extra `audio`")
    samples, path = load_audio(short[0]), tmp_path / "speech.m4a"
    path.write_bytes(encode(samples[None].numpy(), "ipod", "aac", rate_hz=16_000))
    assert load_audio(path).shape == samples.shape
    whole, again = (model.transcribe(each, temperature=0.0)["text"] for each in (short[0], path))
    assert again == whole


@pytest.mark.slow
def test_transcripts_of_many_people_are_openai_whispers(
    model: HookedWhisper, reference: Any, sentences: list[Sentence]
) -> None:
    chosen = sentences[:6]
    assert len({each.speaker for each in chosen}) == 6
    written = [assert_transcribes_alike(model, reference, each.path)["text"] for each in chosen]
    normalize = normalizer("english")  # openai-whisper's
    said = [each.text for each in chosen]
    theirs = jiwer.wer([normalize(text) for text in said], [normalize(text) for text in written])
    assert word_error_rate(said, written) == pytest.approx(theirs) and theirs < 0.4


def test_silence_and_noise_are_written_down_as_nothing(model: HookedWhisper) -> None:
    generator = torch.Generator().manual_seed(0)
    sounds = [torch.zeros(48000), 0.05 * torch.randn(48000, generator=generator)]
    mel = model.to_mel([(sound, 16000) for sound in sounds])
    assert all(model.generate(mel, 4).texts)
    assert model.generate(mel, 4, skip_silence=True).texts == ["", ""]


def test_speech_is_no_silence(model: HookedWhisper, short: list[Path]) -> None:
    written = model.generate(model.to_mel(short[1]), 20, skip_silence=True)
    assert written.texts == ["The more proposals, the more credit."]
    assert float(written.no_speech_prob[0]) < 0.2


def test_a_manifest_says_the_language_and_what_is_no_speech_stays_empty(
    model: HookedWhisper, short: list[Path], tmp_path: Path
) -> None:
    import soundfile

    soundfile.write(tmp_path / "nothing.wav", torch.zeros(48000).numpy(), 16000)
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = [["path", "language"], [short[1], "en"], ["nothing.wav", "en"]]
        csv.writer(file).writerows(rows)
    hook = "decoder.blocks.3.hook_resid_post"
    store = harvest(
        *(model, tmp_path / "list.csv", hook, tmp_path / "store"), text="transcript", n_workers=0
    )
    texts = [entry.windows[0].get("text") for entry in store.recordings()]
    assert texts == ["The more proposals, the more credit.", ""]
    assert len(store.of_recording(1, hook)[hook]) == 2  # start, no timestamps


@pytest.mark.slow
def test_pages_show_the_clip(model: HookedWhisper, short: list[Path], tmp_path: Path) -> None:
    page = attention_page(model, short[0], tmp_path / "attention.html")
    assert page.text.startswith("His statement of having been a shop boy")
    sae = autoencoder(0)
    options: dict[str, Any] = {"latents": list(range(20)), "n_effects": 1, "progress": False}
    features = feature_page(model, sae, short, tmp_path / "features.html", **options)
    assert len(features.table) == 20
    for path in (page.path, features.path):
        assert short[0].name in path.read_text(encoding="utf-8")


def autoencoder(seed: int) -> TopKSAE:
    torch.manual_seed(seed)
    name = "encoder.blocks.3.hook_resid_post"
    return TopKSAE(TopKConfig(d_in=384, d_sae=768, k=32, hook_name=name))


@pytest.mark.slow
def test_a_study_of_a_few_people(
    model: HookedWhisper, sentences: list[Sentence], tmp_path: Path
) -> None:
    path = tmp_path / "list.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "text", "speaker"])
        for each in sentences[:4]:
            writer.writerow([each.path, each.text, each.speaker])
    options: dict[str, Any] = {"sae": autoencoder(0), "pages": False, "max_new_tokens": 40}
    found = study(model, path, tmp_path / "study", progress=False, **options)
    numbers = json.loads(found.numbers.read_text(encoding="utf-8"))["sections"]
    rate = numbers["transcripts"]["numbers"]["wer"]
    said = [each.text for each in sentences[:4]]
    written = [model.generate(model.to_mel(each.path)).texts[0] for each in sentences[:4]]
    assert rate == pytest.approx(word_error_rate(said, written))
    widths = numbers["encoder_attention"]["numbers"]["width_by_layer"]
    assert widths[0] < widths[1] < widths[2] > widths[3]  # as in trials of 12 clips


@pytest.mark.slow
def test_the_word_that_is_named_is_patched_where_it_is_said(
    weights: Path, short: list[Path], tmp_path: Path
) -> None:
    from click.testing import CliRunner

    words = ["--corrupt", "noise", "--corrupt-word", "shop"]
    hook = ["--hook", "encoder.blocks.1.hook_resid_post", "--window-s", "0.25", "--json"]
    command = ["patch", str(short[0]), "--model", str(weights), *words, *hook, "--quiet"]
    done = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["measures"].startswith("measured is ' shop'")
    start_s, end_s = map(float, told["corrupted"].split("from ")[1].split(" s")[0].split(" to "))
    best = told["best"][0]
    assert best["start_s"] < end_s and best["end_s"] > start_s and best["effect"] > 0.2
