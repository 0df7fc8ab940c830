"""`hooked-whisper sae eval`."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import hooked_whisper.sae as room
from hooked_whisper import io
from hooked_whisper.sae.evaluation.evaluate import _Judging
from hooked_whisper.sae.io.load import SHIPPED

Run = Callable[..., Result]
HOOK = "encoder.blocks.2.hook_resid_post"


def test_a_table_and_the_same_numbers_as_json(
    run: Run, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Any] = []
    judge = room.evaluate_saes

    def kept(*args: Any, **options: Any) -> Any:
        judged.append(judge(*args, **options))
        return judged[0]

    monkeypatch.setattr(room, "evaluate_saes", kept)
    options = [clip, "--hook", HOOK, "--no-transcripts", "--quiet"]
    done = run("sae", "eval", *options)
    assert done.exit_code == 0, done.output
    names, row = done.stdout.splitlines()
    wanted = ["hook", "frames", "architecture", "latents", "FVU", "FVU without massive"]
    wanted += ["FVU normalised", "L0", "k", "never active"]
    assert re.split(r"\s{2,}", names)[:10] == wanted
    assert row.split()[:4] == [HOOK, "speech", "topk", "768"]
    monkeypatch.setattr(room, "evaluate_saes", lambda *args, **options: judged[0])
    told = json.loads(run("sae", "eval", *options, "--json").stdout)["saes"][HOOK]
    fvu = told["speech"]["reconstruction"]["fvu"]
    assert float(row.split()[4]) == pytest.approx(fvu, rel=1e-3) and 0 < fvu < 0.3
    assert [row.split()[n] for n in (7, 8)] == ["32", "32"] and told["k"] == 32
    assert told["n_recordings"] == 1


def test_one_autoencoder_of_a_folder(
    run: Run, clip: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Any] = []

    def note(saes: Any, *args: Any, **options: Any) -> None:
        judged.append(dict(saes))
        raise SystemExit(0)

    monkeypatch.setattr(room, "evaluate_saes", note)
    one = SHIPPED["digits"] / HOOK
    assert run("sae", "eval", clip, "--sae", one).exit_code == 0
    assert list(judged[0]) == [HOOK] and judged[0][HOOK].cfg.d_sae == 768
    shutil.copytree(one, "unknown")
    cfg = Path("unknown/cfg.json")
    cfg.write_text(cfg.read_text().replace(f'"hook_name": "{HOOK}"', '"hook_name": null'))
    done = run("sae", "eval", clip, "--sae", "unknown")
    assert done.exit_code == 1 and "does not say which hook it belongs to" in done.stderr
    assert run("sae", "eval", clip, "--sae", "unknown", "--hook", HOOK).exit_code == 0
    assert list(judged[1]) == [HOOK]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sae", "nowhere"], "there is no folder nowhere"),
        (["--hook", "encoder.hook_embed"], "no hook 'encoder.hook_embed'"),
        (["no.wav"], "there is no file or folder 'no.wav'"),
    ],
    ids=["sae", "hook", "file"],
)
def test_what_cannot_be_done(run: Run, options: list[str], message: str) -> None:
    done = run("sae", "eval", *options, "--quiet")
    assert (done.exit_code, done.stdout) == (1, "") and message in done.stderr


@pytest.mark.parametrize("command", ["sae eval", "features"])
def test_another_model_needs_an_autoencoder_of_its_own(
    run: Run, clip: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    from hooked_whisper import HookedWhisper

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(HookedWhisper, "from_pretrained", never)
    done = run(*command.split(), clip, "--model", "tiny.en", "--quiet")
    assert done.exit_code == 1 and "loaded" not in done.stderr
    assert "no autoencoder comes with the package for the model 'tiny.en'" in done.stderr
    assert "--sae" in done.stderr and ("--neurons" in done.stderr) is (command == "features")
    done = run(*command.split(), clip, "--model", "tiny.en", "--sae", "digits", "--quiet")
    assert "the model is loaded" in done.stderr


def test_transcripts_are_compared_with_the_models_own_and_with_texts(
    run: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--hook", HOOK, "--quiet"]
    compared = {"same as model": 1, "WER to model": 0}
    read = {}
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"path,text\n{clip},nine nine nine nine\n")
    for source in (clip, manifest):
        done = run("sae", "eval", source, *options)
        assert done.exit_code == 0, done.output
        names, row = ([*filter(None, line.split("  "))] for line in done.stdout.splitlines())
        read[source] = dict(zip(map(str.strip, names), map(str.strip, row), strict=True))
    assert not {"right", "WER", "model's WER"} & set(read[clip])
    for found in read.values():
        assert {name: float(found[name]) for name in compared} == compared
    assert float(read[manifest]["WER"]) == float(read[manifest]["model's WER"]) > 0


def test_after_ctrl_c_the_same_command_does_the_rest(
    run: Run, clip: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sae", "eval", clip, "--hook", HOOK, "--no-transcripts"]
    whole = run(*command)
    assert whole.exit_code == 0 and list(folder.iterdir()) == []
    read, judge = [], _Judging._clean_run
    monkeypatch.setattr(io, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(io, "SAVE_EVERY_WRITES", 0.0)
    real = _Judging._read
    monkeypatch.setattr(_Judging, "_read", lambda self, *args: read.append(1) or real(self, *args))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Judging, "_clean_run", interrupt)
    done = run(*command)
    (kept,) = folder.glob("digits-judging-*.safetensors")
    assert done.exit_code == 130 and done.stdout == ""
    assert f"what is done is in {kept.name}: the same command does the rest." in done.stderr
    monkeypatch.setattr(_Judging, "_clean_run", judge)
    other = run(*command[:-1], "--no-transcripts", "--all-frames")
    assert other.exit_code == 0 and kept.exists() and len(read) == 2
    rest = run(*command)
    assert rest.exit_code == 0 and rest.stdout == whole.stdout and len(read) == 2
    assert f"going on from {kept.name}." in rest.stderr
    assert list(folder.iterdir()) == []
