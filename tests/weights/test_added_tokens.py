"""Fine-tunes with tokens of their own: they are read from the folder, written and decoded."""

import json
from dataclasses import replace

import pytest
import torch

from hooked_whisper import HookedWhisper, HookedWhisperConfig
from hooked_whisper.config import Vocabulary
from hooked_whisper.errors import ArchitectureError, ConfigError, TokenError

BASE = 51865
ADDED = {"[UH]": BASE, "<|laugh|>": BASE + 1, "Ünique": BASE + 2}
SMALL = {"n_audio_ctx": 20, "n_text_ctx": 40, "n_audio_layers": 1, "n_text_layers": 1}
SMALL |= {"d_model": 12, "n_audio_heads": 2, "n_text_heads": 2}


def files(kind):
    """The tokenizer's files of a fine-tune, as they are written in different ways."""
    rows = [
        {"id": number, "content": token, "special": token.startswith("<|")}
        for token, number in ADDED.items()
    ]
    match kind:
        case "tokenizer.json":
            return {"tokenizer.json": {"added_tokens": rows, "model": {"vocab": {"a": 64}}}}
        case "added_tokens.json":
            return {"added_tokens.json": {**ADDED, "<|notimestamps|>": 50363}}
        case "tokenizer_config.json":
            held = {str(row["id"]): row for row in rows}
            return {"tokenizer_config.json": {"added_tokens_decoder": held}}
        case "vocab.json":
            spelled = {"[UH]": BASE, "<|laugh|>": BASE + 1, "Ãľnique": BASE + 2}
            return {"vocab.json": {"a": 64, **spelled}}
    raise AssertionError(kind)


KINDS = ("tokenizer.json", "added_tokens.json", "tokenizer_config.json", "vocab.json")


@pytest.fixture(scope="module")
def finetune(make_hf, tmp_path_factory):
    """A folder of a model of 99 languages and three tokens more, in a vocabulary of 51,870."""
    cfg = HookedWhisperConfig.for_release("tiny", **SMALL, d_vocab=51870)
    folder = tmp_path_factory.mktemp("added") / "fine-tune"
    make_hf(cfg).save_pretrained(folder)
    values = json.loads((folder / "generation_config.json").read_text())
    values |= {"no_timestamps_token_id": 50363, "is_multilingual": True}
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def folder(finetune, tmp_path):
    """The fine-tune's folder, its weights shared, to which files may be added."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in finetune.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


def load(folder, kind):
    for name, values in files(kind).items():
        (folder / name).write_text(json.dumps(values))
    return HookedWhisper.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_which_tokens_there_are(folder, kind):
    model = load(folder, kind)
    assert model.cfg.vocabulary == Vocabulary(
        BASE, (("<|laugh|>", BASE + 1),), (("[UH]", BASE), ("Ünique", BASE + 2))
    )
    assert model.is_multilingual and model.num_languages == 99
    tokens = model.to_tokens(" so[UH] Ünique", append_eot=True)[0].tolist()
    assert tokens[4:] == [370, BASE, 220, BASE + 2, 50257]
    assert model.to_string(tokens) == " so[UH] Ünique"
    assert model.to_string([370, BASE + 1, 51869]) == " so"
    spelled = model.to_string([BASE + 1, 51869], skip_special=False)
    assert spelled == "<|laugh|><|51869|>"
    assert model.to_str_tokens([BASE, BASE + 2]) == ["[UH]", "Ünique"]


def saying(model, tokens):
    """The model with a decoder that writes some tokens one after the other."""
    n_prompt = 4

    def say(value, hook):
        start = hook.ctx.setdefault("n", 0)
        for pos in range(value.shape[1]):
            wanted = start + pos + 1 - n_prompt
            token = tokens[wanted] if 0 <= wanted < len(tokens) else 50257
            value[:, pos] = -100
            value[:, pos, token] = 100
        hook.ctx["n"] = start + value.shape[1]
        return value

    model.add_hook("decoder.hook_logits", say)
    return model


def test_written_tokens_are_decoded(folder):
    model = load(folder, "tokenizer.json")
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(1, 80, model.cfg.n_frames, generator=generator).clamp(-1, 1)
    written = [370, BASE, BASE + 1, 220, BASE + 2]
    saying(model, written)
    done = model.generate(mel, language="en", suppress_tokens="")
    assert done.tokens[0, done.n_prompt :].tolist()[:5] == written
    assert done.texts == ["so[UH] Ünique"]
    model.hook_dict["decoder.hook_logits"].ctx.clear()
    result = model.decode(mel, language="en", without_timestamps=True, suppress_tokens="")
    assert result[0].text == "so[UH] Ünique"
    model.hook_dict["decoder.hook_logits"].ctx.clear()


def test_transcribe_takes_them_for_text(make_model, monkeypatch):
    vocabulary = Vocabulary(BASE, (), (("[UH]", BASE),))
    cfg = HookedWhisperConfig.for_release(
        "tiny", **{**SMALL, "n_audio_ctx": 1500, "n_text_ctx": 448}
    )
    model = make_model(replace(cfg, d_vocab=BASE + 1, vocabulary=vocabulary))
    saying(model, [370, BASE])
    samples = torch.zeros(16_000).numpy()
    options = {"suppress_tokens": "", "no_speech_threshold": None, "logprob_threshold": None}
    found = model.transcribe(samples, language="en", temperature=0.0, **options)
    assert found["text"].strip() == "so[UH]"
    assert [segment["tokens"] for segment in found["segments"]] == [[370, BASE]]


def test_a_padded_vocabulary(folder):
    """More rows than tokens, as a multiple of 64 or 128 has."""
    model = HookedWhisper.from_pretrained(folder, device="cpu")
    assert model.cfg.vocabulary == Vocabulary(BASE)
    assert model.to_string(model.to_tokens(" one")[0]) == " one"


def test_saved_and_loaded(folder, tmp_path):
    model = load(folder, "tokenizer.json")
    model.save_pretrained(tmp_path / "own")
    again = HookedWhisper.from_pretrained(tmp_path / "own", device="cpu")
    assert again.cfg == model.cfg
    values = json.loads((tmp_path / "own" / "config.json").read_text())
    values["config"]["vocabulary"]["text"][0][1] = 3
    (tmp_path / "own" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ArchitectureError, match="is no added token"):
        HookedWhisper.from_pretrained(tmp_path / "own", device="cpu")


def test_one_token_more_than_english(make_hf, tmp_path):
    """It has the size of the next vocabulary; the tokenizer's files name its token."""
    make_hf(HookedWhisperConfig.for_release("tiny", **SMALL)).save_pretrained(tmp_path)
    rows = [{"id": 50362, "content": "<|notimestamps|>"}, {"id": 51864, "content": "[UM]"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": rows}))
    model = HookedWhisper.from_pretrained(tmp_path, device="cpu")
    assert not model.is_multilingual
    assert model.to_string(model.to_tokens(" a [UM]")[0]) == " a [UM]"
    cut = HookedWhisper.from_pretrained(tmp_path, device="cpu", d_vocab=51864)
    assert cut.cfg.vocabulary is None and cut.cfg.d_vocab == 51864


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base": 51863}, "base of a vocabulary is 51863"),
        ({"base": BASE, "text": (("a", 5),)}, "is no added token"),
        ({"base": BASE, "text": (("a", BASE),), "special": (("a", BASE + 1),)}, "one text or of"),
        ({"base": BASE, "text": (("a", 10**9),)}, "out of the vocabulary: d_vocab is 51870"),
    ],
    ids=["base", "id", "twice", "behind"],
)
def test_no_vocabulary(values, message):
    with pytest.raises(ConfigError, match=message):
        HookedWhisperConfig.for_release("tiny", d_vocab=51870, vocabulary=Vocabulary(**values))


def test_distilled_models_have_fewer_decoder_layers(make_hf, tmp_path):
    """As distil-whisper's: an encoder of 32 layers, a decoder of 2, its teacher's heads."""
    sizes = {**SMALL, "n_audio_layers": 4, "n_text_layers": 2, "d_vocab": 51866, "n_mels": 128}
    theirs = make_hf(HookedWhisperConfig.for_release("large-v3", **sizes))
    theirs.generation_config.alignment_heads = [[1, 0], [7, 0], [25, 6]]
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"\[\[7, 0\], \[25, 6\]\] as alignment heads, which"):
        model = HookedWhisper.from_pretrained(tmp_path, device="cpu")
    assert model.alignment_heads.to_dense().nonzero().tolist() == [[1, 0]]
    mel = torch.randn(2, 128, model.cfg.n_frames).clamp(-1, 1)
    tokens = torch.tensor([[50258, 50259, 50360, 50364, 370]] * 2)
    with torch.no_grad():
        logits = theirs(input_features=mel, decoder_input_ids=tokens).logits
        assert (model(mel, tokens) - logits).abs().max() < 1e-5 * max(1, float(logits.abs().max()))
    with pytest.raises(TokenError, match="out of the vocabulary"):
        model(mel, tokens + 51866)
