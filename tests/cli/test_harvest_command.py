"""`hooked-whisper harvest` and `hooked-whisper store`."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from hooked_whisper.cli import main
from hooked_whisper.digits import FOLDER


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one recording of digits, made by the command."""
    folder = tmp_path_factory.mktemp("cli") / "store"
    hook = "encoder.blocks.*.hook_resid_pre"
    recording, missing = sorted(FOLDER.glob("*.flac"))[0], "no.wav"
    options = ["--out", folder, "--workers", "0", "--batch-size", "2", "--quiet"]
    run = CliRunner().invoke(
        main,
        list(
            map(str, ["harvest", recording, missing, "--model", "digits", "--hook", hook, *options])
        ),
    )
    assert run.exit_code == 0, run.output
    assert "4 hooks, 1 recordings" in run.output
    assert "skipped no.wav: there is no file 'no.wav'" in run.output
    return folder


def test_info_says_what_is_there(store: Path) -> None:
    run = CliRunner().invoke(main, ["store", "info", str(store)])
    assert run.exit_code == 0, run.output
    for part in ("digits (", "float16", "encoder.blocks.3.hook_resid_pre", "encoder rows (96,)"):
        assert part in run.output


def test_verify_finds_damage(store: Path) -> None:
    run = CliRunner().invoke(main, ["store", "verify", str(store)])
    assert (run.exit_code, run.output) == (0, "every file is as its checksum says\n")
    path = store / "shard-000000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    run = CliRunner().invoke(main, ["store", "verify", str(store)])
    path.write_bytes(whole)
    assert run.exit_code == 1
    assert "shard-000000.safetensors has the checksum" in run.output
    assert "--verify" in run.output


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["store", "info", str(tmp_path)])
    assert run.exit_code == 1
    assert run.output.startswith("Error: ") and "holds no activation store" in run.output


def test_an_unknown_command() -> None:
    run = CliRunner().invoke(main, ["harvets"])
    assert run.exit_code == 2
    assert "No such command 'harvets'" in run.output
