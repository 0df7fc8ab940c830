"""Alignment heads: of a release that its weights tell, in every form, and none that is known."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import whisper

from hooked_whisper import HookedWhisper, HookedWhisperConfig
from hooked_whisper.config import release_names
from hooked_whisper.data import align_words
from hooked_whisper.errors import CheckpointError, WeightShapeError
from hooked_whisper.weights import alignment_heads, load_weights
from hooked_whisper.weights.alignment_heads import (
    default_heads,
    fingerprint,
    pack_heads,
    release_heads,
    unpack_heads,
)

OFFICIAL = [[1, 0], [2, 0], [2, 5], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]]
"""OpenAI's heads of tiny.en, as transformers' generation_config lists them."""
SMALL = {"n_mels": 8, "n_audio_ctx": 6, "n_text_ctx": 5}


@pytest.fixture(scope="module")
def small() -> HookedWhisper:
    """A random model with the layers, heads and width of tiny.en, in values of float16."""
    model = HookedWhisper(HookedWhisperConfig.for_release("tiny.en", **SMALL, d_vocab=9))
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(torch.randn_like(weights).half().float())
    return model


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, small: HookedWhisper) -> None:
    """That model is tiny.en."""
    name = fingerprint(small.decoder.ln_final.weight.detach())
    monkeypatch.setattr(alignment_heads, "RELEASES", {name: "tiny.en"})


def pairs(model: HookedWhisper) -> list[list[int]]:
    return model.alignment_heads.to_dense().nonzero().tolist()


def as_openai_file(model: HookedWhisper, path: Path, dtype: torch.dtype) -> Path:
    from hooked_whisper.weights.rename import openai_name

    state = {openai_name(name): value.to(dtype) for name, value in model.state_dict().items()}
    torch.save({"dims": vars(model.dims), "model_state_dict": state}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_file_of_a_release_is_known_by_its_weights(
    dtype: torch.dtype, known: None, small: HookedWhisper, tmp_path: Path
) -> None:
    path = as_openai_file(small, tmp_path / "whatever.pt", dtype)
    assert pairs(HookedWhisper.from_pretrained(path, device="cpu")) == OFFICIAL


@pytest.mark.parametrize("listed", [None, "later half"])
def test_so_is_a_folder_that_names_no_heads_or_openais_stopgap(
    listed: str | None, known: None, small: HookedWhisper, tmp_path: Path
) -> None:
    small.save_pretrained(tmp_path)  # which writes the later half: nothing else is known
    if listed is None:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "alignment_heads": None}))
    assert pairs(HookedWhisper.from_pretrained(tmp_path, device="cpu")) == OFFICIAL


def test_heads_that_a_source_names_go_before(
    known: None, small: HookedWhisper, tmp_path: Path
) -> None:
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "alignment_heads": [[0, 3]]}))
    assert pairs(HookedWhisper.from_pretrained(tmp_path, device="cpu")) == [[0, 3]]
    named = HookedWhisper.from_pretrained(tmp_path, device="cpu", alignment_heads=[(1, 2), (3, 5)])
    assert pairs(named) == [[1, 2], [3, 5]]


def test_a_training_step_makes_another_model_of_it(
    known: None, small: HookedWhisper, tmp_path: Path
) -> None:
    path = as_openai_file(small, tmp_path / "tuned.pt", torch.float32)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["model_state_dict"]["decoder.ln.weight"] *= 1.01
    torch.save(checkpoint, path)
    model = HookedWhisper.from_pretrained(path, device="cpu")
    assert torch.equal(model.alignment_heads.to_dense(), default_heads(model.cfg))


def test_a_model_of_other_layers_is_no_release(
    known: None, small: HookedWhisper, tmp_path: Path
) -> None:
    cfg = HookedWhisperConfig.for_release("tiny.en", **SMALL, d_vocab=9, n_text_layers=2)
    distilled = HookedWhisper(cfg)
    distilled.decoder.ln_final.load_state_dict(small.decoder.ln_final.state_dict())
    path = as_openai_file(distilled, tmp_path / "distilled.pt", torch.float32)
    assert load_weights(path).alignment_heads is None


@pytest.mark.parametrize("whose", ["OpenAI's", "another"])
def test_a_file_that_bears_a_name_is_held_against_openais_checksum(
    whose: str, small: HookedWhisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_openai_file(small, tmp_path / "tiny.en.pt", torch.float32)
    sha = hashlib.sha256(path.read_bytes()).hexdigest() if whose == "OpenAI's" else "0" * 64
    monkeypatch.setitem(whisper._MODELS, "tiny.en", f"https://somewhere/models/{sha}/tiny.en.pt")
    heads = load_weights(path).alignment_heads
    assert (None if heads is None else heads.nonzero().tolist()) == (
        OFFICIAL if whose == "OpenAI's" else None
    )


def test_transformers_models_in_memory_are_known_too(
    monkeypatch: pytest.MonkeyPatch, hf_model: Any
) -> None:
    monkeypatch.setattr(hf_model.generation_config, "alignment_heads", None)
    monkeypatch.setattr(alignment_heads, "find_release", lambda *_: "tiny.en")
    monkeypatch.setattr(alignment_heads, "release_heads", lambda name, cfg: ~default_heads(cfg))
    model = HookedWhisper.from_hf(hf_model, device="cpu")
    assert torch.equal(model.alignment_heads.to_dense(), ~default_heads(model.cfg))


# Forms


@pytest.mark.parametrize("form", ["name", "bytes", "pairs", "mask", "sparse", "file", "path"])
def test_heads_are_taken_in_every_form(form: str, small: HookedWhisper, tmp_path: Path) -> None:
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[tuple(torch.tensor(OFFICIAL).T)] = True
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"alignment_heads": OFFICIAL}))
    forms: dict[str, Any] = {
        "name": "tiny.en",
        "bytes": whisper._ALIGNMENT_HEADS["tiny.en"],
        "pairs": OFFICIAL,
        "mask": mask,
        "sparse": mask.to_sparse(),
        "file": str(path),
        "path": path,
    }
    model = HookedWhisper(small.cfg)
    model.set_alignment_heads(forms[form])
    assert pairs(model) == OFFICIAL


@pytest.mark.parametrize("name", release_names())
def test_openais_form_is_written_and_read(name: str) -> None:
    cfg = HookedWhisperConfig.for_release(name)
    heads = release_heads(name, cfg)
    assert torch.equal(unpack_heads(pack_heads(heads), cfg), heads)


@pytest.mark.parametrize(
    ("heads", "error", "message"),
    [
        ([], CheckpointError, "[] names no alignment head"),
        (3, CheckpointError, "3 names no alignment head"),
        ([[0]], CheckpointError, "[0] is no alignment head: each is a pair"),
        ([[0, True]], CheckpointError, "[0, True] is no alignment head"),
        ([[4, 0]], WeightShapeError, "decoder layers 0 to 3 and heads 0 to 5"),
        ([[0, -1]], WeightShapeError, "[0, -1] is none of this model"),
        (torch.zeros(4, 6), CheckpointError, "names no alignment head"),
        (torch.ones(6, 4), WeightShapeError, "is (6, 4); this one has"),
        (b"no dump", CheckpointError, "gzip in base 85"),
        ("large-v3", WeightShapeError, "a mask of 640; this one has"),
        ("tyni", CheckpointError, "'tyni' is neither a release (tiny.en, "),
    ],
    ids=str,
)
def test_other_things_are_refused(
    heads: Any, error: type[Exception], message: str, small: HookedWhisper
) -> None:
    before = small.alignment_heads
    with pytest.raises(error, match=re.escape(message)) as raised:
        small.set_alignment_heads(heads)
    assert small.alignment_heads is before and len(str(raised.value)) < 600


def test_a_file_without_heads_is_refused(small: HookedWhisper, tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="has no 'alignment_heads'"):
        small.set_alignment_heads(path)


# None that is known


def test_word_timing_says_that_no_heads_are_known(digits_model: HookedWhisper) -> None:
    from hooked_whisper.digits import recordings

    one = recordings()[0]
    unknown = HookedWhisper.from_pretrained("digits", device="cpu")
    unknown.alignment_heads = default_heads(unknown.cfg).to_sparse()
    for word_timing in (
        lambda model: model.transcribe(one.path, word_timestamps=True),
        lambda model: align_words(model, [one.path], progress=False),
    ):
        with pytest.warns(UserWarning, match=r"no alignment heads are known .* layers from 2 on"):
            word_timing(unknown)
        word_timing(digits_model)  # whose heads are known; a warning would be an error
    unknown.transcribe(one.path)
