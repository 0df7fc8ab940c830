"""A judgement keeps on the disk what is done, and goes on after a kill to the same numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hooked_whisper import io
from hooked_whisper.errors import InputError, StoreBusyError, StoreWriteError
from hooked_whisper.sae import evaluate_sae, evaluate_saes
from hooked_whisper.sae.evaluation import evaluate as module

from ...kills import SOME_KILLS, check_kills

ENCODER, STREAM, DECODER = (
    "encoder.blocks.1.hook_mlp_out",
    "encoder.blocks.0.hook_resid_post",
    "decoder.blocks.1.hook_resid_post",
)
FILE = "judging.safetensors"
N_BATCHES = 2
Judge = Callable[..., dict[str, Any]]


@pytest.fixture
def saes(plain_sae: Any) -> dict[str, nn.Module]:
    return {name: plain_sae(24, 40, seed=i) for i, name in enumerate((ENCODER, STREAM, DECODER))}


@pytest.fixture
def judge(tiny_model: Any, saes: Any, tmp_path: Path, without_shape_checks: None) -> Judge:
    """`judge(**options)`: three autoencoders on four recordings, of which one cannot be used."""
    heard: list[Any] = [
        (0.1 * torch.randn(1600 * n, generator=torch.Generator().manual_seed(n)), 16_000)
        for n in (3, 1, 2)
    ]
    heard.insert(1, tmp_path / "no.wav")
    tokens = [[1, 2, 3, 4], [5, 6], [7, 8, 9], [5, 6, 7, 8, 9]]
    given: dict[str, Any] = {"tokens": tokens, "batch_size": 2, "progress": False}

    def run(saes: Any = saes, recordings: Any = heard, **options: Any) -> dict[str, Any]:
        return evaluate_saes(saes, tiny_model, recordings, **given | options)

    return run


def numbers(judged: dict[str, Any]) -> Any:
    """All of the numbers, and what was skipped."""
    return {name: (each.to_dict(), each.skipped) for name, each in judged.items()}


@pytest.fixture
def _saved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAVE_EVERY_S", "SAVE_EVERY_WRITES"):
        monkeypatch.setattr(io, name, 0.0)


@SOME_KILLS
@pytest.mark.usefixtures("_saved_at_once")
@pytest.mark.filterwarnings("ignore:1 of 4 recordings:UserWarning")
def test_kills(judge: Judge, n_kills: int, tmp_path: Path) -> None:
    expected = numbers(judge())

    def look(folder: Path) -> None:
        if (folder / FILE).exists():
            with safe_open(folder / FILE, "pt") as file:
                json.loads(file.metadata()["judging"])

    def found(folder: Path) -> Any:
        judged = numbers(judge(save_to=folder / FILE))
        assert judged == expected
        return judged

    (tmp_path / "kills").mkdir()
    place = tmp_path / "kills"
    check_kills(lambda folder: judge(save_to=folder / FILE), look, found, place, n_kills)


@pytest.mark.usefixtures("_saved_at_once")
@pytest.mark.filterwarnings("ignore:1 of 4 recordings:UserWarning")
@pytest.mark.parametrize("stop", range(1, 2 * N_BATCHES + 1))
def test_what_is_done_is_not_done_again(
    stop: int, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All batches are read, then judged; each one once, whenever Ctrl-C comes inside of one."""
    path, done = tmp_path / FILE, []
    for name in ("_read", "_clean_run"):
        real = getattr(module._Judging, name)

        def counted(self: Any, *batch: Any, real: Any = real) -> Any:
            found = real(self, *batch)
            done.append(real.__name__)
            if len(done) == stop_at:
                done[-1] = "stopped"
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(module._Judging, name, counted)
    stop_at = 0
    expected, once = numbers(judge()), list(done)
    assert len(once) == 2 * N_BATCHES
    done.clear()
    stop_at = stop
    with pytest.raises(KeyboardInterrupt):
        judge(save_to=path)
    assert numbers(judge(save_to=path)) == expected
    done.remove("stopped")
    assert done == once
    assert numbers(judge(save_to=path)) == expected and done == once


def test_one_alone(
    tiny_model: Any, saes: Any, tmp_path: Path, short_mel: Any, without_shape_checks: None
) -> None:
    def run(**options: Any) -> Any:
        rows = [[1, 2, 3], [4, 5]]
        given = {"tokens": rows, "progress": False} | options
        return evaluate_sae(saes[ENCODER], tiny_model, short_mel, ENCODER, **given).to_dict()

    assert run(save_to=tmp_path / FILE) == run() == run(save_to=str(tmp_path / FILE))


@pytest.mark.filterwarnings("ignore:1 of 4 recordings:UserWarning")
def test_another_judgement_is_refused(
    judge: Judge, saes: Any, plain_sae: Any, tmp_path: Path
) -> None:
    path = tmp_path / FILE
    judge(save_to=path)
    others: list[tuple[str, dict[str, Any]]] = [
        ("autoencoders", {"saes": saes | {ENCODER: plain_sae(24, 40, seed=7)}}),
        ("hooks", {"saes": dict(reversed(saes.items()))}),
        ("recordings", {"recordings": [(torch.zeros(1600), 16_000)] * 4}),
        ("recordings", {"tokens": [[1, 2]] * 4}),
        ("batch_size", {"batch_size": 3}),
        ("all_frames", {"all_frames": False}),
    ]
    for what, options in others:
        with pytest.raises(InputError, match=rf"holds a judgement of other (autoenc|{what})"):
            judge(save_to=path, **options)
    with (
        io.lock_file(path, "evaluation"),
        pytest.raises(StoreBusyError, match="another evaluation writes"),
    ):
        judge(save_to=path)
    with pytest.raises(StoreWriteError, match="no folder"):
        judge(save_to=tmp_path / "no folder" / FILE)


def test_a_file_with_other_sound_is_another_recording(judge: Judge, tmp_path: Path) -> None:
    """Of the same name and size; the same sound under its old name goes on."""
    import soundfile

    heard, path = tmp_path / "heard.wav", tmp_path / FILE

    def make(seed: int) -> int:
        noise = 0.1 * torch.randn(3200, generator=torch.Generator().manual_seed(seed))
        soundfile.write(heard, noise.numpy(), 16_000)
        return heard.stat().st_size

    options: dict[str, Any] = {"recordings": [heard], "tokens": [[1, 2]], "save_to": path}
    size = make(0)
    expected = numbers(judge(**options))
    assert make(1) == size
    with pytest.raises(InputError, match="holds a judgement of other recordings"):
        judge(**options)
    make(0)
    assert numbers(judge(**options)) == expected


def header_of(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return json.loads(file.metadata()["judging"]), tensors


@pytest.mark.filterwarnings("ignore:1 of 4 recordings:UserWarning")
def test_a_damaged_file_is_refused(judge: Judge, tmp_path: Path) -> None:
    path = tmp_path / FILE
    judge(save_to=path)
    whole = path.read_bytes()
    header, tensors = header_of(path)
    cut, flipped = whole[:-100], bytearray(whole)
    flipped[-3] ^= 1
    for data, message in (
        (b"", "cannot be read"),
        (cut, "cannot be read"),
        (bytes(flipped), "its checksum is of other content"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            judge(save_to=path)
    changes: list[tuple[Any, str]] = [
        (header | {"state": []}, "does not hold what it should"),
        (header | {"state": {}}, "its checksum is of other content"),
        ({}, "does not hold what it should"),
        (1, "does not hold what it should"),
    ]
    for changed, message in changes:
        save_file(tensors, path, metadata={"judging": json.dumps(changed)})
        with pytest.raises(InputError, match=message):
            judge(save_to=path)
    # Even where the checksum is of the change.
    for state in ({}, {**header["state"], "0.reconstruction": {"meter": {}}}):
        changed = {**header, "state": state}
        del changed["xxh3_128"]
        sums = io.checksum_of_tensors(tensors)
        changed["xxh3_128"] = io.checksum_of_json([changed, sums])
        save_file(tensors, path, metadata={"judging": json.dumps(changed)})
        with pytest.raises(InputError, match="is damaged: KeyError"):
            judge(save_to=path)
