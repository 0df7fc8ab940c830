"""Fine-tunes whose ordinary tokens are others than OpenAI's, against the tokenizers library."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from hooked_whisper import HookedWhisper, HookedWhisperConfig
from hooked_whisper.config import Vocabulary
from hooked_whisper.errors import ArchitectureError, ConfigError, TokenError
from hooked_whisper.speech.tokens import get_tokenizer
from hooked_whisper.weights.tokenizer_files import tokenizer_files

SMALL = {"n_audio_ctx": 20, "n_text_ctx": 40, "n_audio_layers": 1, "n_text_layers": 1}
SMALL |= {"d_model": 4, "n_audio_heads": 2, "n_text_heads": 2}
CFG = HookedWhisperConfig.for_release("large-v3", **SMALL)
SPOKEN = ["der Vogel singt, der Vogel fliegt: drei, vier", "die Vögel fliegen über das Feld"]
TEXTS = [" der Vogel singt nicht", "Drei  Vögel, die\n fliegen!", " 日本語 \U0001f600 it's", ""]


def byte_level(model: Any) -> tokenizers.Tokenizer:
    """A tokenizer that cuts and spells texts as GPT-2's does."""
    found = tokenizers.Tokenizer(model)
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    return found


def trained() -> tokenizers.Tokenizer:
    found = byte_level(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, show_progress=False, initial_alphabet=alphabet, special_tokens=[]
    )
    found.train_from_iterator(SPOKEN, trainer)
    return found


def with_spaces_apart() -> tokenizers.Tokenizer:
    """As CrisperWhisper's: OpenAI's without what begins with a space, but for the space alone."""
    whole = json.loads(
        tokenizer_files(HookedWhisperConfig.for_release("large-v3"))["tokenizer.json"]
    )
    vocab = {
        token: number
        for token, number in whole["model"]["vocab"].items()
        if "\u0120" not in token or token == "\u0120"
    }
    merges = [tuple(each.split(" ")) for each in whole["model"]["merges"] if "\u0120" not in each]
    return byte_level(models.BPE(vocab, merges))


MADE = {"trained": trained, "crisper": with_spaces_apart}


@pytest.fixture(scope="module", params=MADE, ids=str)
def theirs(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    return MADE[request.param]()


@pytest.fixture(scope="module")
def weights(make_hf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model with large-v3's vocabulary, without a tokenizer."""
    folder = tmp_path_factory.mktemp("weights")
    make_hf(CFG).save_pretrained(folder)
    values = json.loads((folder / "generation_config.json").read_text())
    values |= {"no_timestamps_token_id": 50364, "is_multilingual": True}
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def folder(weights: Path, tmp_path: Path) -> Path:
    """The same, its weights shared, to which files may be added."""
    for path in weights.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def save(tokenizer: tokenizers.Tokenizer, folder: Path, kind: str) -> None:
    if kind == "tokenizer.json":
        tokenizer.save(str(folder / kind))
    else:  # vocab.json and merges.txt
        tokenizer.model.save(str(folder))


def test_texts_are_written_and_read_by_its_own(
    folder: Path, theirs: tokenizers.Tokenizer, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["theirs"]
    save(theirs, folder, "tokenizer.json" if name == "trained" else "vocab.json")
    model = HookedWhisper.from_pretrained(folder, device="cpu")
    for text in TEXTS:
        ids = theirs.encode(text).ids
        assert model.to_tokens(text, prepend_sot=False)[0].tolist() == ids
        assert model.to_string(ids) == theirs.decode(ids) == text
    start = [50258, 50259, 50360, 50364]
    assert model.to_tokens("<|0.00|>")[0].tolist() == [*start, 50365]
    assert model.to_string([5, 50258, 40000]) == theirs.decode([5]) + "<|40000|>"


def test_words_are_transformers(folder: Path) -> None:
    """A space that is a token is the first of its word, for openai-whisper and transformers."""
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

    own = with_spaces_apart()
    save(own, folder, "vocab.json")
    model = HookedWhisper.from_pretrained(folder, device="cpu")
    ids = model.to_tokens(" uh, this is it. No", prepend_sot=False)[0].tolist()
    assert ids.count(220) == 5
    words, tokens = get_tokenizer(model.cfg).split_to_word_tokens(ids)
    assert words == [" uh", ",", " this", " is", " it", ".", " No"]
    (folder / "whole").mkdir()
    for name, text in tokenizer_files(model.cfg).items():
        (folder / "whole" / name).write_text(text)
    written = WhisperTokenizer.from_pretrained(folder / "whole")
    assert written(" uh, this is it. No", add_special_tokens=False).input_ids == ids
    found, found_tokens, _ = _combine_tokens_into_words(written, ids, "english", "", "")
    assert found == words and found_tokens == tokens


def test_it_goes_round(folder: Path, tmp_path: Path) -> None:
    save(trained(), folder, "tokenizer.json")
    model = HookedWhisper.from_pretrained(folder, device="cpu")
    model.save_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "hf", format="huggingface")
    for name in ("own", "hf"):
        again = HookedWhisper.from_pretrained(tmp_path / name, device="cpu")
        assert again.cfg.vocabulary == model.cfg.vocabulary
        assert again.to_tokens(TEXTS).tolist() == model.to_tokens(TEXTS).tolist()
    assert "ordinary" not in repr(model.cfg) and len(repr(model.cfg)) < 1000


def damaged(how: str) -> dict[str, Any]:
    values = json.loads(trained().to_str())
    match how:
        case "order":
            values["model"]["merges"].reverse()
        case "normalizer":
            values["normalizer"] = {"type": "Lowercase"}
        case "cut":
            values["pre_tokenizer"] = {"type": "Whitespace"}
        case "shifted":
            vocab = values["model"]["vocab"]
            values["model"]["vocab"] = {token: number + 50100 for token, number in vocab.items()}
        case "merges":
            values["model"]["merges"] = 3
    return values


@pytest.mark.parametrize("how", ["order", "normalizer", "cut", "shifted", "merges"])
def test_what_cannot_be_read_is_spelled_in_ids(folder: Path, how: str) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(damaged(how)))
    with pytest.warns(UserWarning, match="has other ordinary tokens .* cannot be read .*token ids"):
        model = HookedWhisper.from_pretrained(folder, device="cpu")
    assert model.cfg.vocabulary == Vocabulary(51866, ordinary=None)
    assert model.to_string([300, 7, 50257]) == "<|300|><|7|>"
    with pytest.raises(TokenError, match="ordinary tokens of its own, which could not be read"):
        model.to_tokens(" eins")
    mel = torch.zeros(1, 128, CFG.n_frames)
    done = model.generate(mel, max_new_tokens=2, language="de")
    assert done.tokens.shape[1] == done.n_prompt + 2


@pytest.mark.parametrize(
    ("ordinary", "message"),
    [
        ("a\nb", "must be each byte and others"),
        ("a b", "not in GPT-2's letters"),
        (3, "ordinary tokens of a vocabulary are 3"),
    ],
)
def test_no_ordinary_tokens(ordinary: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Vocabulary.from_dict({"base": 51865, "special": [], "text": [], "ordinary": ordinary})


def test_a_told_size_goes_before(folder: Path) -> None:
    save(trained(), folder, "tokenizer.json")
    model = HookedWhisper.from_pretrained(folder, device="cpu", d_vocab=51865)
    vocabulary = HookedWhisper.from_pretrained(folder, device="cpu").cfg.vocabulary
    assert model.cfg.vocabulary == replace(vocabulary, base=51865)
    with pytest.raises(ArchitectureError, match="d_vocab is 0"):
        HookedWhisper.from_pretrained(folder, d_vocab=0)
