"""`hooked-whisper cache`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from hooked_whisper import HookedWhisper, WhisperCache, digits

Run = Callable[..., Result]
HOOK = "encoder.blocks.1.hook_resid_post"
DECODER = "decoder.blocks.1.hook_resid_post"


def test_it_keeps_what_a_run_gives(
    run: Run, clip: Path, folder: Path, digits_model: HookedWhisper
) -> None:
    done = run("cache", clip, "--hook", HOOK, "--hook", DECODER)
    assert done.exit_code == 0, done.output
    (path,) = folder.glob("digits-cache/*.safetensors")
    assert path.name in done.stdout and "WhisperCache.load" in done.stderr
    mel = digits_model.to_mel(clip)
    n_positions = int(mel.n_positions[0])
    tokens = digits_model.to_tokens(" seven")
    _, wanted = digits_model.run_with_cache(mel, tokens, names_filter=[HOOK, DECODER])
    found = WhisperCache.load(path)
    torch.testing.assert_close(found[HOOK], wanted[HOOK][:, :n_positions])
    torch.testing.assert_close(found[DECODER], wanted[DECODER])


def test_the_residual_stream_of_the_shipped_recordings_by_default(
    run: Run, clip: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = digits.recordings()[:2]
    monkeypatch.setattr(digits, "recordings", lambda: shipped)  # the first two will do
    done = run("cache", "--json", "--quiet")
    told = json.loads(done.stdout)
    assert (told["out"], len(told["caches"])) == ("digits-cache", 2)
    first = told["caches"][0]
    assert first["activations"] == 8 and first["text"] == "three one four"
    assert (folder / "digits-cache" / first["file"]).is_file()
    again = run("cache", "--quiet")
    assert again.exit_code == 1 and "digits-cache exists" in again.stderr
    other = run("cache", clip, "--overwrite", "--quiet", "--hook", HOOK)
    assert other.exit_code == 1 and "of another run, which would stay beside" in other.stderr
    for row in told["caches"]:
        (folder / "digits-cache" / row["file"]).unlink()
    assert run("cache", clip, "--overwrite", "--quiet", "--hook", HOOK).exit_code == 0


@pytest.mark.parametrize(
    ("options", "hook", "shape", "dtype"),
    [
        (["--all-frames"], HOOK, [1, 1500, 96], torch.float32),
        (["--window", "0.1", "0.3"], HOOK, [1, 10, 96], torch.float32),
        (["--dtype", "bf16", "--all-frames"], HOOK, [1, 1500, 96], torch.bfloat16),
        (["--text", "one two three"], DECODER, [1, 7, 96], torch.float32),
        (["--last-position"], DECODER, [1, 1, 96], torch.float32),
    ],
    ids=["all", "window", "dtype", "text", "last"],
)
def test_options(
    run: Run, clip: Path, options: list[str], hook: str, shape: list[int], dtype: torch.dtype
) -> None:
    done = run("cache", clip, "--hook", hook, "--out", "mine", "--json", "--quiet", *options)
    assert done.exit_code == 0, done.output
    (told,) = json.loads(done.stdout)["caches"]
    assert told["shapes"] == {hook: shape}
    kept = WhisperCache.load(Path("mine") / told["file"])
    assert (list(kept[hook].shape), kept[hook].dtype) == (shape, dtype)


def test_the_language_is_in_the_tokens(run: Run, clip: Path) -> None:
    hook = "decoder.hook_embed"
    for language in ("en", "de"):
        options = ["--text", "seven", "--language", language, "--out", language]
        assert run("cache", clip, "--hook", hook, *options).exit_code == 0
    english, german = (
        WhisperCache.load(next(Path(each).glob("*.safetensors")))[hook] for each in ("en", "de")
    )
    differs = (english != german).any(dim=-1)[0]
    assert differs.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--window", "1", "0"], 1, "the window is 1.0 to 0.0 s"),
        (["--window", "0", "1", "--all-frames"], 2, "one of --window and --all-frames"),
        (["--hook", "nope"], 1, "no hook 'nope'"),
        (["--out", "no/where"], 1, "there is no folder no to write where into"),
    ],
    ids=["window", "both", "hook", "folder"],
)
def test_what_cannot_be_done_leaves_nothing(
    run: Run, clip: Path, folder: Path, options: list[str], code: int, message: str
) -> None:
    done = run("cache", clip, *options, "--quiet")
    assert done.exit_code == code and message in done.stderr, done.output
    assert list(folder.iterdir()) == []
