"""`hooked-whisper harvest` and `hooked-whisper store`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from hooked_whisper import HookedWhisper
from hooked_whisper.store import harvest

Run = Callable[..., Result]
NO_STORE = {"info": "holds no activation store", "verify": "holds no store"}
HOOK = "encoder.blocks.*.hook_resid_pre"


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, digits_model: HookedWhisper, clip: Path
) -> Path:
    """A store of one recording of digits."""
    folder = tmp_path_factory.mktemp("cli") / "store"
    harvest(digits_model, [clip, "no.wav"], HOOK, folder, n_workers=0, note="why")
    return folder


def test_it_goes_on_where_it_was_and_tells_what_it_skipped(run: Run, clip: Path) -> None:
    command = ["harvest", clip, "no.wav", "--hook", HOOK, "--out", "s", "--workers", 0]
    done = run(*command)
    assert done.exit_code == 0, done.output
    assert "4 hooks, 1 recordings" in done.stdout
    assert "skipped no.wav: there is no file 'no.wav'" in done.stderr
    assert "2/2" in done.stderr  # the bar
    again = run(*command, "--json", "--quiet")
    told = json.loads(again.stdout)
    assert (told["model"], told["n_recordings"]) == ("digits", 1)
    assert told == json.loads(run("store", "info", "s", "--json").stdout)
    other = run(*command, "--all-frames")
    assert other.exit_code == 1 and "s holds another harvest: frames is" in other.stderr


def test_info_says_what_is_there(run: Run, store: Path) -> None:
    done = run("store", "info", store)
    assert done.exit_code == 0, done.output
    for part in ("digits (", "float16", "encoder.blocks.3.hook_resid_pre", "skipped no.wav"):
        assert part in done.stdout
    assert "note        why" in done.stdout
    told = json.loads(run("store", "info", store, "--json").stdout)
    assert told["hooks"][0] == {
        "hook": "encoder.blocks.0.hook_resid_pre",
        "rows": 70,
        "kind": "encoder",
        "shape": [96],
    }
    assert told["skipped"][0]["id"] == "no.wav"


def test_verify_finds_damage(run: Run, store: Path) -> None:
    done = run("store", "verify", store)
    assert (done.exit_code, done.output) == (0, "every file is as its checksum says\n")
    assert json.loads(run("store", "verify", store, "--json").stdout)["damaged"] == {}
    path = store / "shard-000000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = run("store", "verify", store)
    as_json = run("store", "verify", store, "--json")
    path.write_bytes(whole)
    assert done.exit_code == as_json.exit_code == 1
    assert "shard-000000.safetensors has the checksum" in done.stdout
    assert "--verify" in done.stderr
    assert list(json.loads(as_json.stdout)["damaged"]) == ["shard-000000.safetensors"]


@pytest.mark.parametrize("command", ["info", "verify"])
def test_no_store(run: Run, command: str, folder: Path) -> None:
    for where in (folder, "nowhere"):
        done = run("store", command, where)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith("Error: ") and NO_STORE[command] in done.stderr
