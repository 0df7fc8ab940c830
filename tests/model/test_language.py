"""Languages: told for all recordings or for each, or found out as openai-whisper finds them out."""

import csv
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.data import Recording, load_windows
from hooked_whisper.errors import InputError, TokenError
from hooked_whisper.interventions import Example
from hooked_whisper.lenses import encoder_lens
from hooked_whisper.metrics import as_transcript_metric
from hooked_whisper.model.language import find_languages, language_of_tokens
from hooked_whisper.patching import patch_sweep
from hooked_whisper.speech.tokens import get_tokenizer
from hooked_whisper.store import harvest

HOOK = "decoder.hook_embed"
STREAM = "encoder.blocks.0.hook_resid_post"


def tokens_of(store: Any) -> list[list[int]]:
    """What the decoder read of each recording."""
    found = []
    for index in range(3):
        rows = store.rows_of(index, HOOK)
        where = store.where(HOOK, torch.tensor(rows))
        found.append(where.token.tolist())
    return found


def spoken_in(model: Any, rows: Any) -> list[str]:
    """The language that each row of tokens begins with, read by the tokenizer."""
    names = model.to_string([[int(row[1])] for row in rows], skip_special=False)
    return [name.strip("<|>") for name in names]


@pytest.fixture(scope="module")
def model(tiny_cfg: Any, make_model: Any) -> HookedWhisper:
    """Random, with 99 languages, of which each sound gets another one."""
    cfg = replace(tiny_cfg, d_vocab=51865, n_text_layers=2, n_text_ctx=16)
    get_tokenizer(cfg)
    made: HookedWhisper = make_model(cfg)
    return made


@pytest.fixture(scope="module")
def english(tiny_cfg: Any, make_model: Any) -> HookedWhisper:
    made: HookedWhisper = make_model(
        replace(tiny_cfg, d_vocab=51864, n_text_ctx=16, n_audio_ctx=1500, model_name="some.en")
    )
    return made


@pytest.fixture(scope="module")
def heard(model: HookedWhisper, tiny_mel: Tensor) -> list[str]:
    """By openai-whisper's own function."""
    from whisper.decoding import detect_language

    tokens, _ = detect_language(model, tiny_mel)
    codes = model.to_string(tokens[:, None], skip_special=False)
    found = [code.strip("<|>") for code in codes]
    assert found != ["en", "en"]
    return found


@pytest.fixture(scope="module")
def other(heard: list[str]) -> str:
    return next(code for code in ("de", "fr", "ru") if code not in heard)


class TestGenerate:
    def test_finds_out_like_openai_whisper(
        self, model: HookedWhisper, tiny_mel: Tensor, heard: list[str]
    ) -> None:
        written = model.generate(tiny_mel, 3)
        assert written.languages == heard == spoken_in(model, written.tokens)
        theirs = model.decode(tiny_mel, language=None, without_timestamps=True, sample_len=3)
        assert [each.language for each in theirs] == heard

    def test_takes_one_for_all_or_one_for_each(
        self, model: HookedWhisper, tiny_mel: Tensor, heard: list[str], other: str
    ) -> None:
        assert model.generate(tiny_mel, 1, language="German").languages == ["de", "de"]
        written = model.generate(tiny_mel, 1, language=[None, other])
        assert written.languages == [heard[0], other] == spoken_in(model, written.tokens)

    def test_no_hook_fires_while_it_finds_out(self, model: HookedWhisper, tiny_mel: Tensor) -> None:
        seen: list[int] = []
        hook = ("decoder.hook_embed", lambda value, hook: seen.append(value.shape[1]))
        with model.hooks([hook]):
            model.generate(tiny_mel, 2)
        assert seen == [4, 1]
        with model.hooks([("decoder.*.hook_resid_post", lambda value, hook: value * 0)]):
            edited = model.generate(tiny_mel, 1).languages
        assert edited == model.generate(tiny_mel, 1).languages

    def test_refuses_what_does_not_fit(self, model: HookedWhisper, tiny_mel: Tensor) -> None:
        with pytest.raises(InputError, match="3 languages and 2 recordings"):
            model.generate(tiny_mel, 1, language=["de"] * 3)
        with pytest.raises(TokenError, match="'dutchish'"):
            model.generate(tiny_mel, 1, language="dutchish")


class TestEnglishOnly:
    @pytest.mark.parametrize("call", ["generate", "transcribe", "decode"])
    def test_says_that_it_takes_no_other_language(self, english: HookedWhisper, call: str) -> None:
        zeros = torch.zeros(16000)
        given = zeros if call == "transcribe" else english.to_mel(zeros, rate_hz=16000)
        own = {"transcribe": {"sample_len": 1, "temperature": 0.0}, "decode": {"sample_len": 1}}
        options: dict[str, Any] = own.get(call, {"max_new_tokens": 1})
        with pytest.warns(UserWarning, match=r"'some.en' is an English-only model .* 'de'"):
            getattr(english, call)(given, language="de", **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            getattr(english, call)(given, language="en", **options)
        with pytest.raises(TokenError, match=r"'translate'; 'some\.en' is English only"):
            getattr(english, call)(given, task="translate", **options)

    def test_hears_english(self, english: HookedWhisper) -> None:
        mel = english.to_mel(torch.zeros(16000), rate_hz=16000)
        assert find_languages(english, english.encoder(mel)) == ["en"]


def test_rows_of_tokens_say_their_language(model: HookedWhisper, english: HookedWhisper) -> None:
    assert language_of_tokens(model.cfg, model.to_tokens(" a", language="fr")[0].tolist()) == "fr"
    assert language_of_tokens(model.cfg, [7, 8]) is None
    assert language_of_tokens(english.cfg, [50257, 50358]) is None


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise of several lengths and loudnesses, in files."""
    import soundfile

    generator, folder = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("sounds")
    paths = [folder / f"{i}.wav" for i in range(3)]
    for path, n, loud in zip(paths, (8000, 4000, 6000), (0.01, 0.3, 0.1), strict=True):
        soundfile.write(path, (loud * torch.randn(n, generator=generator)).numpy(), 16000)
    return paths


@pytest.fixture(scope="module")
def heard_second(model: HookedWhisper, sounds: list[Path]) -> str:
    [found] = find_languages(model, model.encoder(model.to_mel(sounds[1])))
    assert found not in ("de", "fr", "en", "ru")
    return found


@pytest.fixture
def manifest(tmp_path: Path, sounds: list[Path]) -> Path:
    """Three recordings of one text, of which two say their language."""
    path = tmp_path / "list.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "text", "language"])
        for each, language in zip(sounds, ("de", "", "french"), strict=True):
            writer.writerow([each, "so", language])
    return path


class TestManifest:
    def test_windows_say_it(self, model: HookedWhisper, manifest: Path) -> None:
        windows = load_windows(model, manifest)
        assert [window.language for window in windows] == ["de", None, "french"]

    @pytest.mark.parametrize("text", ["label", "transcript"])
    def test_harvest_goes_by_it(
        self, model: HookedWhisper, manifest: Path, tmp_path: Path, heard_second: str, text: Any
    ) -> None:
        options: dict[str, Any] = {"n_workers": 0, "text": text, "batch_size": 2}
        store = harvest(model, manifest, HOOK, tmp_path / text, **options)
        rows = tokens_of(store)
        assert spoken_in(model, rows) == ["de", heard_second, "fr"]
        if text == "label":  # what was stored is what the decoder read
            for index, row in enumerate(rows):
                embedded = model.decoder.token_embedding.weight[row].half()
                assert torch.equal(store.of_recording(index, HOOK)[HOOK], embedded)

    def test_a_word_for_all_goes_behind_it(
        self, model: HookedWhisper, manifest: Path, tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"n_workers": 0, "language": "ru"}
        store = harvest(model, manifest, HOOK, tmp_path / "s", **options)
        assert spoken_in(model, tokens_of(store)) == ["de", "ru", "fr"]


def test_an_example_and_its_sweeps_keep_to_what_is_heard(
    model: HookedWhisper, sounds: list[Path], heard_second: str
) -> None:
    example = Example.from_audio(model, sounds[1], " so")
    assert spoken_in(model, example.tokens) == [heard_second]
    asked: list[Any] = []
    metric = as_transcript_metric(lambda text: float(len(text)))
    with pytest.MonkeyPatch.context() as patch:
        plain = model.generate

        def note(*given: Any, **options: Any) -> Any:
            asked.append(options["language"])
            return plain(*given, **options)

        patch.setattr(model, "generate", note)
        silence = example.with_silence()
        patch_sweep(model, example, silence, STREAM, metric=metric, progress=False)
    assert set(asked) == {heard_second}


def test_every_depth_of_the_encoder_lens_writes_in_one_language(
    model: HookedWhisper, tiny_mel: Tensor, heard: list[str]
) -> None:
    lens = encoder_lens(model, tiny_mel, transcribe=True, max_new_tokens=1)
    assert lens.generations is not None
    assert {tuple(each.languages) for each in lens.generations} == {tuple(heard)}


class TestSilence:
    """By a model whose probability of no speech is set by hand."""

    @pytest.mark.parametrize(
        ("no_speech", "sure", "text"),
        [(0.5, False, True), (0.7, False, False), (0.7, True, True), (0.95, True, False)],
        ids=["speech", "unsure", "sure of the text", "sure of silence"],
    )
    def test_is_told_as_transcribe_tells_it(
        self, model: HookedWhisper, tiny_mel: Tensor, no_speech: float, sure: bool, text: bool
    ) -> None:
        tokenizer = get_tokenizer(model.cfg)
        word = tokenizer.encode(" so")[0]

        def set_logits(value: Tensor, hook: Any) -> Tensor:
            first = value.shape[1] > 1
            new = torch.full_like(value, -20.0)
            if first:  # at the start token: only no-speech and one other
                new[:, 0, tokenizer.no_speech] = torch.tensor(no_speech).logit()
                new[:, 0, word] = 0.0
            if sure:
                new[:, -1, word] = 0.0
            else:
                new[:, -1] = 0.0
                new[:, -1, word] = 0.1
            return new

        with model.hooks([("decoder.hook_logits", set_logits)]):
            plain = model.generate(tiny_mel, 2, language="en")
            written = model.generate(tiny_mel, 2, language="en", skip_silence=True)
        assert plain.no_speech_prob.tolist() == pytest.approx([no_speech] * 2, abs=1e-4)
        assert bool((plain.avg_logprob > -1).all()) is sure
        assert plain.texts == ["so so"] * 2
        assert written.texts == (plain.texts if text else ["", ""])
        assert bool((written.tokens[:, 4] == tokenizer.eot).all()) is not text

    def test_a_cache_of_it_is_refused(self, model: HookedWhisper, tiny_mel: Tensor) -> None:
        with pytest.raises(InputError, match="skip_silence drops texts"):
            model.generate(tiny_mel, 1, skip_silence=True, return_cache=True)


def test_recordings_say_their_language() -> None:
    assert Recording("a", None, {"language": "de"}).language == "de"
    assert Recording("a", None, {"language": ""}).language is None
