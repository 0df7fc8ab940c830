"""What a source means, and what a user reads when it means nothing."""

from pathlib import Path

import pytest

from hooked_whisper.config import release_names
from hooked_whisper.errors import ArchitectureError, CheckpointError, SourceError
from hooked_whisper.weights import load_weights, resolve


def test_the_releases_are_openai_whispers():
    import whisper

    assert sorted(release_names()) == sorted(whisper.available_models())


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("digits", "digits"),
        ("tiny", "release"),
        ("large-v3-turbo", "release"),
        ("openai/whisper-tiny", "hub"),
        ("distil-whisper/distil-large-v3.5", "hub"),
    ],
)
def test_names(source, kind):
    assert resolve(source).kind == kind


def test_names_go_before_paths_and_paths_before_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("tiny", "digits", "openai/whisper-tiny"):
        Path(folder).mkdir(parents=True)
    Path("my.pt").touch()
    assert resolve("tiny").kind == "release"
    assert resolve("./tiny").kind == "folder"
    assert resolve(Path("tiny")).kind == "folder"
    assert resolve(Path("digits")).kind == "folder"
    assert resolve("openai/whisper-tiny").kind == "folder"
    assert resolve("my.pt").kind == "file"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.pt").touch()
    assert resolve("~/my.pt").location == str(tmp_path / "my.pt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tinny", "'tinny' leads to no weights; did you mean 'tiny'"),
        ("whisper-tiny.en", "did you mean 'tiny.en'?"),
        ("Digits", "did you mean 'digits'?"),
        ("large-v4", "did you mean 'large-v"),
        ("gpt2", "Allowed are 'digits', a release of OpenAI .*turbo.*'openai/whisper-tiny'"),
        ("", "'' leads to no weights"),
        ("weights/tiny.pt", "there is no such file or folder"),
        ("a/b/c", "there is no such file or folder"),
        ("nul\0byte", "leads to no weights|is no path"),
        ("x" * 5000, "leads to no weights|is no path"),
        (None, "the source is None, a NoneType"),
        (7, "the source is 7, a int"),
        (b"tiny", "the source is b'tiny', a bytes"),
    ],
    ids=str,
)
def test_no_source(source, message):
    with pytest.raises(SourceError, match=message):
        load_weights(source)


def test_a_part_of_a_checkpoint_is_no_source(hf_folder):
    with pytest.raises(SourceError, match=r"Give its folder .*hf, with"):
        load_weights(hf_folder / "model.safetensors")


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, SourceError, r"has no config\.json; it holds \[\]"),
        ({"a.bin": ""}, SourceError, r"has no config\.json; it holds \['a\.bin'\]"),
        ({"config.json": "{}"}, ArchitectureError, "neither 'model_type'"),
        ({"config.json": "[1]"}, CheckpointError, r"Expected `object`, got `array`"),
        ({"config.json": '{"model_type"'}, CheckpointError, "does not hold what it should"),
        ({"config.json": "[" * 100_000}, CheckpointError, "does not hold what it should"),
        (
            {"config.json": '{"model_type": "bert", "architectures": ["BertModel"]}'},
            ArchitectureError,
            r"of a 'bert' model \['BertModel'\]",
        ),
    ],
    ids=["empty", "no-config", "no-type", "list", "cut", "deep", "bert"],
)
def test_a_folder_that_is_no_model(tmp_path, files, error, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        load_weights(tmp_path)
