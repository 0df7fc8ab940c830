"""What follows a training: the CSV file, TensorBoard, Weights & Biases, and logs that fail."""

import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.architectures.jumprelu import JumpReLUConfig
from hooked_whisper.sae.architectures.topk import TopKConfig
from hooked_whisper.sae.training.checkpoint import read_checkpoint
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.logs import TensorBoardLog, TrainingLog, WandbLog
from hooked_whisper.sae.training.train import train_sae, train_saes

from ...processes import Child, shared_count

Make = Callable[..., Iterator[Tensor]]
Line = dict[str, Any]

TOPK = TopKConfig(d_in=16, d_sae=32, k=2)
CFG = TrainingConfig(TOPK, n_steps=8, batch_size=64, lr=2e-3, log_every=2)
STEPS = [1, 3, 5, 7, 8]
"""Steps that have a line: the first one, every other one, and the last one."""


def quick(cfg: TrainingConfig, activations: Any, **options: Any) -> Any:
    return train_sae(cfg, activations, progress=False, **options)


def stopping(batches: Iterator[Tensor], at: int) -> Iterator[Tensor]:
    """The batches, until one at which Ctrl-C is pressed."""
    for number, batch in enumerate(batches):
        if number == at:
            raise KeyboardInterrupt
        yield batch


def check_csv(folder: Path, lines: list[Line]) -> None:
    """The CSV file as pandas reads it has these lines; what they do not have is empty."""
    table = pd.read_csv(folder / "log.csv")
    rows = [row.dropna().to_dict() for _, row in table.iterrows()]
    known = [{name: n for name, n in line.items() if n is not None} for line in lines]
    assert rows == [pytest.approx(line, rel=1e-12) for line in known]
    assert list(table) == list(dict.fromkeys(name for line in lines for name in line))


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each number, as TensorBoard's own reader gives them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def expected_curves(lines: list[Line]) -> dict[str, list[tuple[int, float]]]:
    """The same of the lines themselves."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name in line.keys() - {"sae", "step"}:
            if line[name] is not None:
                value = pytest.approx(line[name], rel=1e-6)  # event files hold float32
                found.setdefault(f"training/{name}", []).append((line["step"], value))
    return found


# CSV


def test_the_csv_has_a_row_as_soon_as_the_line_is_known(
    sparse_batches: Make, tmp_path: Path
) -> None:
    lines: list[Line] = []

    def compare(line: Line) -> None:
        lines.append(line)
        check_csv(tmp_path, lines)

    quick(replace(CFG, folder=tmp_path), sparse_batches(8), on_log=compare)
    assert [line["step"] for line in lines] == STEPS
    assert [line["n_vectors"] for line in lines] == [64 * step for step in STEPS]
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    fvus = "fvu,fvu_without_massive,fvu_normalized"
    assert header == f"step,n_vectors,lr,loss,loss_mse,{fvus},l0,dead,never_active"


def test_a_number_that_comes_late_gets_a_column(sparse_batches: Make, tmp_path: Path) -> None:
    """The loss of dead latents, of which there are none at first."""
    cfg = replace(CFG, folder=tmp_path, dead_after_vectors=200, log_every=1)
    lines: list[Line] = []
    x = next(sparse_batches(1))[:1].repeat(64, 1)
    quick(cfg, [x] * 8, on_log=lines.append)  # one vector has two latents
    check_csv(tmp_path, lines)
    assert "loss_aux" not in lines[0] and "loss_aux" in lines[-1]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 9


def test_the_loss_of_l0_is_told_beside_l0(sparse_batches: Make) -> None:
    lines: list[Line] = []
    sae = JumpReLUConfig(d_in=16, d_sae=32, l0_coefficient=0.25)
    cfg = replace(CFG, sae=sae, sparsity_warm_up=0.0)
    quick(cfg, sparse_batches(8), on_log=lines.append)
    for line in lines:
        assert line["l0"] > 1
        assert line["loss_l0"] == pytest.approx(0.25 * line["l0"])
        assert line["loss"] == pytest.approx(line["loss_mse"] + line["loss_l0"])


def test_where_there_is_no_variance_there_is_no_fraction_of_it(tmp_path: Path) -> None:
    """Vectors that are all alike within a batch; those of the first one are given back."""
    cfg = replace(CFG, folder=tmp_path)
    lines: list[Line] = []
    log = [lines.append, TensorBoardLog(tmp_path / "tb")]
    quick(cfg, [torch.full((64, 16), 1.0 + step) for step in range(8)], on_log=log)
    assert [line["fvu"] for line in lines] == [0.0, None, None, None, None]
    check_csv(tmp_path, lines)
    assert curves(tmp_path / "tb") == expected_curves(lines)


def test_what_a_killed_training_left_is_not_gone_on_with(
    sparse_batches: Make, tmp_path: Path
) -> None:
    """A log without a checkpoint: the kill came before the first one."""
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n3,0.")
    lines: list[Line] = []
    quick(replace(CFG, folder=tmp_path), sparse_batches(8), on_log=lines.append)
    check_csv(tmp_path, lines)


# TensorBoard


def test_tensorboard_reads_every_number_at_its_step(sparse_batches: Make, tmp_path: Path) -> None:
    lines: list[Line] = []

    def compare(line: Line) -> None:
        lines.append(line)
        assert curves(tmp_path) == expected_curves(lines)  # at once, so that a kill loses none

    quick(CFG, sparse_batches(8), on_log=[TensorBoardLog(tmp_path), compare])
    assert [step for step, _ in curves(tmp_path)["training/fvu"]] == STEPS


def test_several_autoencoders_are_runs_beside_each_other(
    sparse_batches: Make, tmp_path: Path
) -> None:
    names = {"wide/k2": "wide/k2", "/abs/../k4": "abs/k4"}
    cfgs = {
        name: replace(CFG, sae=replace(TOPK, k=k, hook_name="a"))
        for name, k in zip(names, (2, 4), strict=True)
    }
    lines: list[Line] = []
    log = [TensorBoardLog(tmp_path / "tb"), lines.append]
    train_saes(cfgs, [{"a": x} for x in sparse_batches(8)], progress=False, on_log=log)
    for name, run in names.items():
        own = [line for line in lines if line["sae"] == name]
        assert curves(tmp_path / "tb" / run) == expected_curves(own)
    assert [path.name for path in tmp_path.iterdir()] == ["tb"]


def test_tensorboard_shows_the_config(sparse_batches: Make, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    quick(CFG, sparse_batches(8), on_log=TensorBoardLog(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    (text,) = events.Tensors("config/text_summary")
    assert '"batch_size": 64' in text.tensor_proto.string_val[0].decode()


def test_killed_and_gone_on_with_every_step_is_there_once(
    sparse_batches: Make, tmp_path: Path, in_child: Callable[..., Child], without_shape_checks: None
) -> None:
    """kill -9 of a real process, 5 steps or more after a checkpoint, with half a row behind it."""
    cfg = replace(CFG, n_steps=40, log_every=1, checkpoint_every=10, folder=tmp_path / "sae")
    whole = replace(cfg, folder=tmp_path / "whole")
    lines: list[Line] = []
    quick(whole, sparse_batches(40), on_log=lines.append)

    step = shared_count()

    def train() -> None:
        def report(line: Line) -> None:
            step.value = line["step"]
            time.sleep(0.02)

        quick(cfg, sparse_batches(40), on_log=[TensorBoardLog(tmp_path / "tb"), report])

    child = in_child(train)
    child.wait_until(lambda: step.value >= 25)
    assert child.kill(signal.SIGKILL) == -signal.SIGKILL
    assert curves(tmp_path / "tb")["training/loss"][-1][0] >= 25
    time.sleep(1)  # TensorBoard reads its files in the order of the seconds in their names
    with (cfg.folder / "log.csv").open("a") as file:
        file.write("26,16")

    told: list[int] = []
    log = [TensorBoardLog(tmp_path / "tb"), lambda line: told.append(line["step"])]
    quick(cfg, sparse_batches(40), resume=True, on_log=log)
    assert told == list(range(21, 41))
    assert (cfg.folder / "log.csv").read_text() == (whole.folder / "log.csv").read_text()
    assert curves(tmp_path / "tb") == expected_curves(lines)


def test_a_line_is_told_before_the_checkpoint_that_has_it(
    sparse_batches: Make, tmp_path: Path
) -> None:
    """A kill in between then tells it again, rather than never."""
    kept: list[int] = []

    class Watching(TrainingLog):
        def __call__(self, line: Line) -> None:
            found = read_checkpoint(tmp_path)
            kept.append(0 if found is None else found[1]["step"])

    cfg = replace(CFG, folder=tmp_path, checkpoint_every=1)
    quick(cfg, sparse_batches(8), on_log=Watching())
    assert kept == [step - 1 for step in STEPS]


# Weights & Biases


class FakeRun:
    """What is used of a run; its step is the next one, as wandb's is."""

    def __init__(self, options: Line) -> None:
        self.options, self.id = options, options.get("id", f"id-{options.get('name')}")
        self.step, self.told = 0, []
        self.exit_code: int | None = None

    def log(self, numbers: Line, *, step: int, commit: bool) -> None:
        assert step >= self.step and commit
        self.told.append({"step": step, **numbers})
        self.step = step + 1

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs of a wandb that only writes down."""
    runs: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        before = [run for run in runs if run.id == options.get("id")]
        runs.append(FakeRun(options))
        runs[-1].step = before[-1].step if before else 0
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return runs


def known(line: Line) -> Line:
    """Without what has no value yet, such as the share of the dead, which no column gets."""
    return {name: value for name, value in line.items() if value is not None}


def test_wandb_gets_the_config_and_every_number(
    sparse_batches: Make, wandb_runs: list[FakeRun]
) -> None:
    lines: list[Line] = []
    log = [WandbLog("speech", tags=["topk"]), lines.append]
    quick(CFG, sparse_batches(8), on_log=log)
    (run,) = wandb_runs
    assert run.told == [known(line) for line in lines]
    assert {"fvu", "never_active"} <= run.told[0].keys()
    assert run.exit_code == 0
    assert run.options["project"] == "speech" and run.options["tags"] == ["topk"]
    assert run.options["config"]["sae"]["k"] == 2 and run.options["config"]["lr"] == 2e-3


def test_each_autoencoder_has_a_run_of_wandb(
    sparse_batches: Make, wandb_runs: list[FakeRun]
) -> None:
    cfgs = {
        "k2": replace(CFG, sae=replace(TOPK, hook_name="a")),
        "k4": replace(CFG, sae=replace(TOPK, k=4, hook_name="a"), batch_size=32),
    }
    data = [{"a": x} for x in sparse_batches(8)]
    train_saes(cfgs, data, progress=False, on_log=WandbLog("speech", name="today", group="g"))
    assert [run.options["name"] for run in wandb_runs] == ["today/k2", "today/k4"]
    assert [run.options["config"]["sae"]["k"] for run in wandb_runs] == [2, 4]
    assert [run.options["reinit"] for run in wandb_runs] == ["create_new"] * 2
    for run in wandb_runs:
        assert [line["step"] for line in run.told] == STEPS
        assert "sae" not in run.told[0]


def test_a_run_of_wandb_goes_on_where_training_does(
    sparse_batches: Make, wandb_runs: list[FakeRun], tmp_path: Path
) -> None:
    cfg = replace(CFG, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        quick(cfg, stopping(sparse_batches(8), 5), on_log=WandbLog("speech"))
    first = wandb_runs[0]
    assert first.exit_code == 1 and [line["step"] for line in first.told] == [1, 3, 5]
    first.log({"loss": 1.0}, step=7, commit=True)  # came after the checkpoint, before a kill
    quick(cfg, sparse_batches(8), resume=True, on_log=WandbLog("speech"))
    second = wandb_runs[1]
    assert second.options["id"] == first.id and second.options["resume"] == "allow"
    assert [line["step"] for line in second.told] == [8]


def test_another_project_or_a_training_from_the_start_is_another_run(
    sparse_batches: Make, wandb_runs: list[FakeRun], tmp_path: Path
) -> None:
    cfg = replace(CFG, folder=tmp_path)
    for at in (0, 5):  # the first one comes to no checkpoint
        with pytest.raises(KeyboardInterrupt):
            quick(cfg, stopping(sparse_batches(8), at), on_log=WandbLog("speech"))
    quick(cfg, sparse_batches(8), resume=True, on_log=WandbLog("other"))
    assert [run.options.get("id") for run in wandb_runs] == [None] * 3


@pytest.mark.slow
def test_wandb_itself_offline(
    sparse_batches: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs at once, stopped and gone on with; read from the files that `wandb sync` takes."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    cfgs = {
        name: replace(CFG, sae=replace(TOPK, k=k, hook_name="a"), folder=tmp_path / name)
        for name, k in (("k2", 2), ("k4", 4))
    }
    data = [{"a": x} for x in sparse_batches(8)]
    lines: list[Line] = []
    log = [WandbLog("speech", dir=tmp_path), lines.append]
    with pytest.raises(KeyboardInterrupt):
        train_saes(cfgs, stopping(iter(data), 5), progress=False, on_log=log)
    time.sleep(1)  # wandb's folders have the second in their names
    log = [WandbLog("speech", dir=tmp_path), lines.append]
    train_saes(cfgs, data, progress=False, resume=True, on_log=log)
    wandb.teardown()  # a run that is finished may still be written
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    found = [list(wandb_records(path)) for path in files]
    begun = [next(each.run for each in records if each.HasField("run")) for records in found]
    assert [run.project for run in begun] == ["speech"] * 4
    assert len({run.run_id for run in begun}) == 2
    for name in cfgs:
        told = []
        for run, records in zip(begun, found, strict=True):
            if run.display_name == name:
                told += [each.history for each in records if each.HasField("history")]
        wanted = [line for line in lines if line["sae"] == name]
        assert [history.step.num for history in told] == STEPS
        for history, line in zip(told, wanted, strict=True):
            items = {item.key or item.nested_key[0]: item.value_json for item in history.item}
            numbers = {key: float(value) for key, value in items.items() if key in line}
            assert numbers == {
                key: known(line)[key] for key in known(line).keys() - {"sae", "step"}
            }


def wandb_records(path: Path) -> Iterator[Any]:
    """What is in a run's file: wandb's messages, in the format of LevelDB's logs.

    Blocks of 32 KiB hold pieces: 4 bytes of checksum, 2 of length, 1 of kind (1 is whole,
    2 to 4 the first, a middle and the last piece), then the bytes.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, message = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        end = at + 7 + int.from_bytes(data[at + 4 : at + 6], "little")
        kind = data[at + 6]
        message = data[at + 7 : end] if kind in (1, 2) else message + data[at + 7 : end]
        at = end
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            yield record


# Logs that fail


class Failing(TrainingLog):
    """Breaks at some of its calls, and counts what it is told."""

    def __init__(self, *at: str) -> None:
        self.at, self.n_told, self.ended = at, 0, False

    def begin(self, trainings: Any) -> None:
        self._maybe_fail("begin")

    def __call__(self, line: Line) -> None:
        self.n_told += 1
        self._maybe_fail(line["step"])

    def end(self, error: BaseException | None) -> None:
        self.ended = True
        self._maybe_fail("end")

    def _maybe_fail(self, now: Any) -> None:
        if str(now) in self.at:
            raise OSError("no space left")


@pytest.mark.parametrize(
    ("at", "message", "n_told"),
    [
        (["3", "end"], "Failing failed at step 3.* goes on. OSError: no space", 2),
        (["end"], "Failing could not finish.* OSError: no space", 5),
    ],
    ids=["at a line and at the end", "at the end"],
)
def test_a_log_that_fails_is_lost_and_not_the_training(
    at: list[str], message: str, n_told: int, sparse_batches: Make
) -> None:
    failing = Failing(*at)
    lines: list[Line] = []
    with pytest.warns(UserWarning, match=message) as warned:
        found = quick(CFG, sparse_batches(8), on_log=[failing, lines.append])
    assert len(warned) == 1
    assert failing.n_told == n_told and failing.ended and len(lines) == 5
    assert torch.equal(found.W_enc, quick(CFG, sparse_batches(8)).W_enc)


def test_a_log_that_cannot_begin_is_an_error_before_the_first_step(sparse_batches: Make) -> None:
    batches = sparse_batches(8)
    with pytest.raises(TrainingError, match="Failing cannot begin: no space left"):
        quick(CFG, batches, on_log=Failing("begin"))
    assert len(list(batches)) == 8


def test_the_csv_is_whole_again_when_there_is_room(
    sparse_batches: Make, tmp_path: Path, without_shape_checks: None
) -> None:
    """A folder takes its place for a while: neither appending nor replacing is possible."""
    file = tmp_path / "log.csv"
    lines: list[Line] = []

    def be_in_the_way(line: Line) -> None:
        lines.append(line)
        if line["step"] == 3:
            file.unlink()
            file.mkdir()
        if line["step"] == 7:
            file.rmdir()

    with pytest.warns(UserWarning, match="CSVLog failed at step 5"):
        quick(replace(CFG, folder=tmp_path), sparse_batches(8), on_log=be_in_the_way)
    check_csv(tmp_path, lines)


def test_what_a_function_raises_ends_the_training_with_a_checkpoint(
    sparse_batches: Make, tmp_path: Path
) -> None:
    def stop(line: Line) -> None:
        if line["step"] == 5:
            raise StopAsIteration("good enough")

    class StopAsIteration(Exception):
        pass

    cfg = replace(CFG, folder=tmp_path)
    with pytest.raises(StopAsIteration, match="good enough"):
        quick(cfg, sparse_batches(8), on_log=stop)
    assert pd.read_csv(tmp_path / "log.csv")["step"].tolist() == [1, 3, 5]
    resumed = quick(cfg, sparse_batches(8), resume=True)
    assert torch.equal(resumed.W_enc, quick(CFG, sparse_batches(8)).W_enc)


# What is refused


@pytest.mark.parametrize("on_log", ["runs", TensorBoardLog, [print, None]], ids=repr)
def test_what_cannot_be_told_is_refused(
    on_log: Any, sparse_batches: Make, without_shape_checks: None
) -> None:
    with pytest.raises(TrainingError, match=r"on_log is .*; pass a function that takes a dict"):
        quick(CFG, sparse_batches(8), on_log=on_log)


@pytest.mark.parametrize(
    ("module", "there", "make", "extra"),
    [
        ("tensorboard", None, lambda: TensorBoardLog("runs"), "tensorboard"),
        ("wandb", None, lambda: WandbLog("speech"), "wandb"),
        ("wandb", types.ModuleType("wandb"), lambda: WandbLog("speech"), "wandb"),
    ],
    ids=["tensorboard", "wandb", "a folder called wandb"],
)
def test_what_is_not_installed_says_how_to_install_it(
    module: str, there: Any, make: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, there)
    with pytest.raises(TrainingError, match=rf"pip install 'hooked-whisper\[{extra}\]'"):
        make()


def test_wandb_is_not_told_what_is_chosen_here(wandb_runs: list[FakeRun]) -> None:
    with pytest.raises(TrainingError, match="takes no config or id"):
        WandbLog("speech", id="x", config={})
