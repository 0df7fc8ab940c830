"""What is written for others is read by them, and by this package."""

import json
from dataclasses import replace

import pytest
import torch

from hooked_whisper import HookedWhisper, HookedWhisperConfig
from hooked_whisper.config import Vocabulary
from hooked_whisper.errors import ConfigError, SourceError, StoreWriteError

_for = HookedWhisperConfig.for_release
SMALL = {"n_audio_ctx": 20, "n_text_ctx": 9, "n_audio_layers": 2, "n_text_layers": 3}
SMALL |= {"d_model": 12, "n_audio_heads": 3, "n_text_heads": 2}
CONFIGS = {
    "english": _for("tiny.en", **SMALL),
    "99-languages": _for("tiny", **SMALL),
    "100-languages": _for("large-v3", **SMALL),
    "own-tokens": _for("tiny", **SMALL, d_vocab=101),
}


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def model(request, make_model):
    return make_model(CONFIGS[request.param])


def inputs(cfg):
    generator = torch.Generator().manual_seed(3)
    mel = torch.randn(2, cfg.n_mels, cfg.n_frames, generator=generator).clamp(-1, 1)
    return mel, torch.randint(0, cfg.d_vocab, (2, 7), generator=generator)


def assert_same(model, other):
    assert replace(model.cfg, model_name="") == replace(other.cfg, model_name="")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_openai_reads_it(model, tmp_path):
    import whisper

    model.save_pretrained(tmp_path / "a.pt", format="openai")
    theirs = whisper.load_model(str(tmp_path / "a.pt"), device="cpu")
    mel, tokens = inputs(model.cfg)
    with torch.no_grad():
        assert torch.equal(theirs(mel, tokens), model(mel, tokens))
    assert_same(model, HookedWhisper.from_pretrained(tmp_path / "a.pt", device="cpu"))


def test_transformers_reads_it(model, tmp_path):
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model.alignment_heads = torch.zeros(3, 2).index_fill(0, torch.tensor(1), 1.0).bool().to_sparse()
    model.save_pretrained(tmp_path / "hf", format="huggingface")
    theirs, told = WhisperForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    mel, tokens = inputs(model.cfg)
    with torch.no_grad():
        logits = theirs(input_features=mel, decoder_input_ids=tokens).logits
        assert (logits - model(mel, tokens)).abs().max() < 1e-5 * max(1, logits.abs().max())
    extractor = WhisperFeatureExtractor.from_pretrained(tmp_path / "hf")
    assert extractor.feature_size == model.cfg.n_mels
    again = HookedWhisper.from_pretrained(tmp_path / "hf", device="cpu")
    assert_same(model, again)
    assert again.alignment_heads.to_dense().nonzero().tolist() == [[1, 0], [1, 1]]


@pytest.fixture(scope="module", params=["tiny.en", "base", "large-v3"])
def written(request, make_model, tmp_path_factory):
    """The name of a release, a small model of its vocabulary, and that as a folder."""
    model, folder = make_model(_for(request.param, **SMALL)), tmp_path_factory.mktemp("hf") / "a"
    model.save_pretrained(folder, format="huggingface")
    return request.param, model, folder


def test_generation_is_what_openai_released(written):
    """Against ids of the released generation_config.json."""
    name, _, folder = written
    values = json.loads((folder / "generation_config.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    suppressed = values["suppress_tokens"]
    expected = {
        "tiny.en": (50257, 50256, 50256, 50257, 50362, None, 50361, 357, [220, 50256]),
        "base": (50257, 50257, 50257, 50258, 50363, 50359, 50362, 359, [220, 50257]),
        "large-v3": (50257, 50257, 50257, 50258, 50364, 50360, 50363, 359, [220, 50257]),
    }[name]
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    assert tuple(config[key] for key in ids) == tuple(values[key] for key in ids) == expected[:4]
    tasks = values.get("task_to_id", {})
    assert values["no_timestamps_token_id"] == expected[4]
    assert tasks.get("transcribe") == expected[5]
    assert suppressed[-1] == expected[6] and expected[7] in suppressed
    assert values["begin_suppress_tokens"] == expected[8]
    assert values.get("lang_to_id", {}).get("<|yue|>") == (50358 if name == "large-v3" else None)
    assert values["is_multilingual"] == (name != "tiny.en")


def test_the_dtype_that_is_stored(make_model, tmp_path, without_shape_checks):
    model = make_model(CONFIGS["own-tokens"])
    model.half().save_pretrained(tmp_path / "a.pt", format="openai")
    assert HookedWhisper.from_pretrained(tmp_path / "a.pt", dtype="auto").dtype == torch.float16
    assert HookedWhisper.from_pretrained(tmp_path / "a.pt").dtype == torch.float32
    model.bfloat16().save_pretrained(tmp_path / "hf", format="huggingface")
    assert HookedWhisper.from_pretrained(tmp_path / "hf", dtype="auto").dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype is 'fp16'; weights are kept in"):
        HookedWhisper.from_pretrained(tmp_path / "hf", dtype="fp16")


# Refused


def test_nothing_is_overwritten(make_model, tmp_path, without_shape_checks):
    model = make_model(CONFIGS["own-tokens"])
    (tmp_path / "a.pt").write_text("mine")
    with pytest.raises(SourceError, match=r"a\.pt exists already\. Name a new path"):
        model.save_pretrained(tmp_path / "a.pt", format="openai")
    with pytest.raises(SourceError, match=r"cannot be made: there is no .*missing"):
        model.save_pretrained(tmp_path / "missing" / "a.pt", format="openai")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"config\.json exists already"):
        model.save_pretrained(tmp_path, format="huggingface")
    with pytest.raises(SourceError, match=r"a\.pt.* exists already"):
        model.save_pretrained(tmp_path / "a.pt", format="huggingface")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "config.json"]
    assert (tmp_path / "a.pt").read_text() == "mine"
    with pytest.raises(SourceError, match="is no path to write to"):
        model.save_pretrained("a\0b", format="huggingface")
    with pytest.raises(
        ConfigError, match=r"format is 'ggml'; it must be one of \('hooked_whisper', 'hugg"
    ):
        model.save_pretrained(tmp_path / "b", format="ggml")


@pytest.mark.parametrize("form", ["openai", "huggingface"])
def test_processed_weights(make_model, tmp_path, form):
    model = make_model(CONFIGS["own-tokens"])
    model.process_weights_(fold_ln=True)
    with pytest.raises(ConfigError, match="the weights were processed: keys have biases"):
        model.save_pretrained(tmp_path / "a", format=form)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("form", ["openai", "huggingface"])
def test_a_disk_that_fails(make_model, tmp_path, monkeypatch, form):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(StoreWriteError, match=r"cannot be written to .*No space left"):
        make_model(CONFIGS["own-tokens"]).save_pretrained(tmp_path / "a", format=form)
    left = [path for path in (tmp_path / "a").glob("*")] if form == "huggingface" else []
    assert not left and not (tmp_path / "a").is_file()


# The tokenizer's files

TEXT = " Ask not what your country can do for you: 3.5 % äöü 日本語 \U0001f600\n don't"


def test_transformers_tokenizer_is_openais(written):
    from transformers import WhisperProcessor, WhisperTokenizer

    _, model, folder = written
    theirs = WhisperProcessor.from_pretrained(folder).tokenizer
    ours = model.to_tokens(TEXT, prepend_sot=False)[0].tolist()
    assert theirs(TEXT, add_special_tokens=False).input_ids == ours
    assert theirs.decode(ours) == TEXT
    whole = theirs(" one").input_ids
    assert whole[0] == model.to_tokens("")[0, 0] and whole[-1] == theirs.eos_token_id
    for token in ("<|startoftranscript|>", "<|notimestamps|>", "<|0.00|>", "<|30.00|>"):
        (expected,) = model.to_tokens(token, prepend_sot=False)[0].tolist()
        assert theirs.convert_tokens_to_ids(token) == expected
    said = [*model.to_tokens(" one")[0].tolist(), theirs.eos_token_id]
    assert theirs.decode(said, skip_special_tokens=True) == " one"
    if model.is_multilingual:
        theirs = WhisperTokenizer.from_pretrained(folder, language="de", task="translate")
        expected = model.to_tokens(" eins", language="de", task="translate", append_eot=True)
        assert theirs(" eins").input_ids == expected[0].tolist()
    assert HookedWhisper.from_pretrained(folder, device="cpu").cfg.vocabulary is None


def test_added_tokens_are_written_too(make_model, tmp_path):
    from transformers import WhisperTokenizer

    vocabulary = Vocabulary(51865, (("<|laugh|>", 51866),), (("[UH]", 51865),))
    model = make_model(_for("tiny", **SMALL, d_vocab=51868, vocabulary=vocabulary))
    model.save_pretrained(tmp_path / "a", format="huggingface")
    theirs = WhisperTokenizer.from_pretrained(tmp_path / "a")
    tokens = model.to_tokens(" so[UH]", prepend_sot=False)[0].tolist()
    assert theirs(" so[UH]", add_special_tokens=False).input_ids == tokens
    assert theirs.decode([*tokens, 51866], skip_special_tokens=True) == " so[UH]"
    again = HookedWhisper.from_pretrained(tmp_path / "a", device="cpu")
    assert again.cfg.vocabulary == vocabulary


def test_a_tokenizer_that_was_trained_anew(make_model, tmp_path):
    make_model(_for("tiny", **SMALL)).save_pretrained(tmp_path / "a", format="huggingface")
    path = tmp_path / "a" / "vocab.json"
    ids = json.loads(path.read_text())
    ids["one"], ids["two"] = ids["two"], ids["one"]
    path.write_text(json.dumps(ids))
    (tmp_path / "a" / "tokenizer.json").unlink()
    with pytest.warns(UserWarning, match=r"has other ordinary tokens than OpenAI's, and cannot be"):
        HookedWhisper.from_pretrained(tmp_path / "a", device="cpu")
