import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hooked_whisper.errors import SAEFileError, StoreBusyError, TrainingError
from hooked_whisper.sae.architectures.batch_topk import BatchTopKConfig
from hooked_whisper.sae.architectures.relu import ReLUConfig, ReLUSAE
from hooked_whisper.sae.architectures.topk import TopKConfig
from hooked_whisper.sae.base import SAE
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.logs import TrainingLog
from hooked_whisper.sae.training.sources import MemoryActivations
from hooked_whisper.sae.training.train import train_sae, train_saes

from ...processes import Child, shared_count

Make = Callable[..., Iterator[Tensor]]

RELU = ReLUConfig(d_in=16, d_sae=32, l1_coefficient=1.0)
BATCH_TOPK = BatchTopKConfig(d_in=16, d_sae=32, k=2)
CFG = TrainingConfig(RELU, n_vectors=400, batch_size=64, lr=2e-3, log_every=2)
"""Seven steps, the last one of 16 vectors; the data come in batches of 50."""


def quick(cfg: TrainingConfig, activations: Any, **options: Any) -> SAE:
    return train_sae(cfg, activations, progress=False, **options)


def same(one: SAE, other: SAE) -> bool:
    weights = other.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())


def stopping(batches: Iterator[Tensor], at: int, error: type[BaseException]) -> Iterator[Tensor]:
    """The batches, until one that raises something instead."""
    for number, batch in enumerate(batches):
        if number == at:
            raise error
        yield batch


def log(folder: Path) -> str:
    return (folder / "log.csv").read_text()


@pytest.mark.parametrize(
    ("sae", "error", "stops"),
    [
        (RELU, KeyboardInterrupt, range(8)),
        (RELU, OSError, (4,)),
        (BATCH_TOPK, KeyboardInterrupt, (1, 4, 7)),
    ],
    ids=["Ctrl-C", "a broken source", "with a running threshold"],
)
def test_stopped_at_any_batch_it_goes_on_bit_for_bit(
    sae: Any,
    error: type[BaseException],
    stops: Sequence[int],
    sparse_batches: Make,
    tmp_path: Path,
    without_shape_checks: None,
) -> None:
    cfg = replace(CFG, sae=sae)
    whole = quick(replace(cfg, folder=tmp_path / "whole"), sparse_batches(8, 50))
    for at in stops:
        folder = tmp_path / str(at)
        with pytest.raises(error):
            quick(replace(cfg, folder=folder), stopping(sparse_batches(8, 50), at, error))
        resumed = quick(replace(cfg, folder=folder), sparse_batches(8, 50), resume=True)
        assert same(resumed, whole)
        assert log(folder) == log(tmp_path / "whole")
        assert resumed.cfg == whole.cfg


def test_the_dead_are_remembered(sparse_batches: Make, tmp_path: Path) -> None:
    sae = TopKConfig(d_in=16, d_sae=64, k=1)
    cfg = replace(CFG, sae=sae, dead_after_vectors=150, log_every=1)
    whole = quick(replace(cfg, folder=tmp_path / "whole"), sparse_batches(8, 50))
    stopped = stopping(sparse_batches(8, 50), 5, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        quick(replace(cfg, folder=tmp_path / "stopped"), stopped)
    again = quick(replace(cfg, folder=tmp_path / "stopped"), sparse_batches(8, 50), resume=True)
    assert whole.cfg.metadata["training"]["dead"] > 0
    assert same(again, whole)
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")


# Pressed while a generator is taken down, Python can only say that it ignored it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_call_waits_for_the_step_and_nothing_is_lost(
    sparse_batches: Make, tmp_path: Path, without_shape_checks: None
) -> None:
    """A real signal at many points of the loop, in the middle of steps and of saving too."""
    cfg = replace(CFG, n_vectors=130, checkpoint_every=2, log_every=1)
    whole = quick(replace(cfg, folder=tmp_path / "whole"), sparse_batches(8, 50))
    n_calls = run_until_call(
        None, lambda: quick(replace(cfg, folder=tmp_path), sparse_batches(8, 50))
    )
    assert n_calls > 60
    n_stopped = 0
    for at in range(10, n_calls, 3):
        folder = tmp_path / str(at)
        folder.mkdir()
        now = replace(cfg, folder=folder)
        told = Steps()
        try:
            run_until_call(at, lambda now=now, t=told: quick(now, sparse_batches(8, 50), on_log=t))
        except KeyboardInterrupt:
            n_stopped += 1
        assert not list(folder.rglob("*.part"))
        assert same(quick(now, sparse_batches(8, 50), resume=True, on_log=told), whole)
        assert told.steps == [1, 2, 3]
        assert log(folder) == log(tmp_path / "whole")
    assert n_stopped >= 20


class Steps(TrainingLog):
    """Writes down of which steps it is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, line: dict[str, Any]) -> None:
        self.steps.append(line["step"])


def run_until_call(at: int | None, run: Callable[[], object]) -> int:
    """Run, and press Ctrl-C at the given call of a function of the training; how many there are."""
    n_calls = 0

    def count(frame: Any, event: str, argument: object) -> None:
        nonlocal n_calls
        if event == "call" and f"sae{os.sep}training{os.sep}" in frame.f_code.co_filename:
            if "hooked_whisper" in frame.f_code.co_filename:
                n_calls += 1
                if n_calls == at:
                    sys.setprofile(None)
                    signal.raise_signal(signal.SIGINT)

    # A shell starts what runs in the background with Ctrl-C switched off.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGINT, before)
    return n_calls


def test_a_real_ctrl_c_in_another_process(
    sparse_batches: Make, tmp_path: Path, in_child: Callable[..., Child], without_shape_checks: None
) -> None:
    cfg = replace(CFG, n_vectors=None, n_steps=60, folder=tmp_path, log_every=5)

    step = shared_count()

    def train() -> None:
        def report(line: dict[str, Any]) -> None:
            step.value = line["step"]
            time.sleep(0.1)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        quick(cfg, sparse_batches(60), on_log=report)

    child = in_child(train)
    child.wait_until(lambda: step.value >= 20)
    assert child.kill(signal.SIGINT) == 1
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        assert 20 <= json.loads(file.metadata()["training"])["step"] < 60
    resumed = quick(cfg, sparse_batches(60), resume=True)
    assert same(resumed, quick(replace(cfg, folder=None), sparse_batches(60)))


def test_an_error_inside_a_step_leaves_no_trace(
    sparse_batches: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not in what a loss changes: BatchTopK's running threshold."""
    cfg = replace(CFG, sae=BATCH_TOPK, folder=tmp_path)
    whole = quick(replace(cfg, folder=None), sparse_batches(8, 50))
    with monkeypatch.context() as patch:
        n_calls = 0

        def fail(self: SAE) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls == 4:
                raise MemoryError("no memory")

        patch.setattr(SAE, "project_gradients_", fail)
        with pytest.raises(MemoryError, match="no memory"):
            quick(cfg, sparse_batches(8, 50))
    # The first three steps were done with gradients left as they are.
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        assert json.loads(file.metadata()["training"])["step"] == 3
        kept = file.get_tensor("sae.topk_threshold")
    with monkeypatch.context() as patch:
        patch.setattr(SAE, "project_gradients_", lambda self: None)
        three = replace(cfg, folder=tmp_path / "three")
        with pytest.raises(OSError):
            quick(three, stopping(sparse_batches(8, 50), 4, OSError))
    expected = load_file(tmp_path / "three" / "checkpoint.safetensors")
    assert torch.equal(kept, expected["sae.topk_threshold"])
    assert not same(whole, quick(cfg, sparse_batches(8, 50), resume=True))


def test_checkpoints_come_as_often_as_asked_for(
    sparse_batches: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    losses = ReLUSAE.losses

    def watch(self: ReLUSAE, *args: Any, **options: Any) -> Any:
        file = tmp_path / "checkpoint.safetensors"
        if file.exists():
            with safe_open(file, "pt") as found:
                seen.append(json.loads(found.metadata()["training"])["step"])
        else:
            seen.append(0)
        return losses(self, *args, **options)

    monkeypatch.setattr(ReLUSAE, "losses", watch)
    quick(replace(CFG, folder=tmp_path, checkpoint_every=3), sparse_batches(8, 50))
    assert seen == [0, 0, 0, 3, 3, 3, 6]


def test_a_finished_training_is_given_again_without_data(
    sparse_batches: Make, tmp_path: Path
) -> None:
    cfg = replace(CFG, folder=tmp_path)
    done = quick(cfg, sparse_batches(8, 50))
    again = quick(cfg, iter([]), resume=True)
    assert same(again, done) and again.cfg == done.cfg


def test_several_go_on_each_from_its_own_place(
    sparse_batches: Make, tmp_path: Path, without_shape_checks: None
) -> None:
    data = MemoryActivations({name: torch.cat(list(sparse_batches(3, 50))) for name in "ab"})

    def cfgs(folder: Path) -> dict[str, TrainingConfig]:
        sizes = {"small": (32, "a"), "large": (64, "b"), "long": (48, "a")}
        return {
            name: TrainingConfig(
                replace(RELU, hook_name=hook),
                n_vectors=1000 if name == "long" else 500,
                batch_size=size,
                folder=folder / name,
            )
            for name, (size, hook) in sizes.items()
        }

    whole = train_saes(cfgs(tmp_path / "whole"), data, seed=3, progress=False)
    for at in (1, 9, 14):
        stopped = CutShort(data, at)
        with pytest.raises(KeyboardInterrupt):
            train_saes(cfgs(tmp_path / str(at)), stopped, seed=3, progress=False)
        source = CutShort(data, None)
        resumed = train_saes(cfgs(tmp_path / str(at)), source, seed=3, progress=False, resume=True)
        assert all(same(resumed[name], whole[name]) for name in whole)
        assert at - 3 <= source.skipped <= at


class CutShort:
    """A source that is interrupted after some batches, and says how many it left out."""

    def __init__(self, source: MemoryActivations, at: int | None) -> None:
        self.source, self.at = source, at
        self.skipped = 0

    def stream(
        self, hook_names: Any, batch_size: int, *, seed: int = 0, skip: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        self.skipped = skip
        found = self.source.stream(hook_names, batch_size, seed=seed, skip=skip)
        for number, batch in enumerate(found):
            if number == self.at:
                raise KeyboardInterrupt
            yield batch


def test_a_source_that_cannot_skip_is_gone_through_again(
    sparse_batches: Make, tmp_path: Path
) -> None:
    class Plain:
        def __init__(self, at: int | None) -> None:
            self.at = at

        def stream(self, hook_names: Any, batch_size: int, *, seed: int = 0) -> Any:
            for number, x in enumerate(sparse_batches(8, 50, seed=seed)):
                if number == self.at:
                    raise KeyboardInterrupt
                yield {"a": x}

    cfg = replace(CFG, sae=replace(RELU, hook_name="a"), folder=tmp_path)
    whole = quick(replace(cfg, folder=None), Plain(None))
    with pytest.raises(KeyboardInterrupt):
        quick(cfg, Plain(5))
    assert same(quick(cfg, Plain(None), resume=True), whole)


# What is refused


@pytest.fixture
def stopped(sparse_batches: Make, tmp_path: Path) -> Path:
    """The folder of a training that was stopped at step 3."""
    with pytest.raises(KeyboardInterrupt):
        quick(
            replace(CFG, folder=tmp_path),
            stopping(sparse_batches(8, 50), 4, KeyboardInterrupt),
        )
    return tmp_path


def test_a_training_is_not_overwritten(stopped: Path, sparse_batches: Make) -> None:
    before = (stopped / "checkpoint.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=r"came to step 3. Go on with resume=True"):
        quick(replace(CFG, folder=stopped), sparse_batches(8, 50))
    assert (stopped / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1.0}, "lr was 0.002 and is now 1.0"),
        ({"n_vectors": 401}, "n_vectors was 400 and is now 401"),
        ({"sae": replace(RELU, d_sae=33)}, "sae.d_sae was 32 and is now 33"),
        ({"sae": BATCH_TOPK}, "sae.architecture was 'standard' and is now 'batchtopk'"),
    ],
    ids=["rate", "length", "width", "architecture"],
)
def test_another_training_is_not_gone_on_with(
    changes: dict[str, Any], message: str, stopped: Path, sparse_batches: Make
) -> None:
    with pytest.raises(TrainingError, match=message):
        quick(replace(CFG, folder=stopped, **changes), sparse_batches(8, 50), resume=True)


def test_what_the_result_does_not_depend_on_may_change(stopped: Path, sparse_batches: Make) -> None:
    cfg = replace(CFG, folder=stopped, checkpoint_every=1, log_every=1)
    assert same(quick(cfg, sparse_batches(8, 50), resume=True), quick(CFG, sparse_batches(8, 50)))


def test_data_in_another_order_are_refused(tmp_path: Path, sparse_batches: Make) -> None:
    data = MemoryActivations({"a": torch.cat(list(sparse_batches(3, 50)))})
    cfgs = {"x": replace(CFG, sae=replace(RELU, hook_name="a"), folder=tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        train_saes(cfgs, CutShort(data, 2), seed=1, progress=False)
    with pytest.raises(TrainingError, match="the order of the data was"):
        train_saes(cfgs, data, seed=2, resume=True, progress=False)


def test_resuming_needs_a_folder_that_exists(tmp_path: Path, sparse_batches: Make) -> None:
    with pytest.raises(TrainingError, match="resume needs the folder"):
        quick(CFG, sparse_batches(8), resume=True)
    with pytest.raises(TrainingError, match=r"no folder .*typo to resume from"):
        quick(replace(CFG, folder=tmp_path / "typo"), sparse_batches(8), resume=True)
    fresh = quick(replace(CFG, folder=tmp_path), sparse_batches(8, 50), resume=True)
    assert same(fresh, quick(CFG, sparse_batches(8, 50)))


@pytest.mark.parametrize("kind", ["cut short", "of something else"])
def test_a_file_that_is_no_checkpoint_is_refused(
    kind: str, tmp_path: Path, sparse_batches: Make
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_file({"x": torch.ones(3)}, path)
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SAEFileError, match=r"cannot be read|holds no training"):
        quick(replace(CFG, folder=tmp_path), sparse_batches(8), resume=True)


def damaged(name: str, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Change what a checkpoint holds; where it is "old", without the checksum that would tell."""
    kind, _, old = name.partition(", ")
    if old:
        del header["xxh3_128"]
        header["training"] = header["training"].replace('"version": 2', '"version": 1')
    if kind == "no optimizer":
        for key in [key for key in tensors if key.startswith("adam")]:
            del tensors[key]
    elif kind == "moments of another shape":
        tensors["adam.W_dec.exp_avg"] = tensors["adam.W_dec.exp_avg"][:1]
    elif kind == "one bit":
        tensors["sae.W_enc"].view(torch.int32)[0, 0] ^= 1
    elif kind == "counters":
        header["training"] = header["training"].replace('"step": 3', '"step": 2', 1)
    elif kind == "deep JSON":
        header["training"] = "[" * 100_000
    elif kind == "no cfg":
        header["training"] = '{"version": 2}'


@pytest.mark.parametrize(
    "kind",
    [
        "no optimizer",
        "moments of another shape",
        "one bit",
        "counters",
        "deep JSON",
        "no cfg",
        "no optimizer, old",
        "moments of another shape, old",
    ],
)
def test_a_damaged_checkpoint_is_refused(kind: str, stopped: Path, sparse_batches: Make) -> None:
    path = stopped / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        tensors, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    damaged(kind, tensors, header)
    save_file(tensors, path, header)
    with pytest.raises(TrainingError, match="another folder") as caught:
        quick(replace(CFG, folder=stopped), sparse_batches(8, 50), resume=True)
    assert len(str(caught.value)) < 600


def test_a_checkpoint_of_before_is_gone_on_with(stopped: Path, sparse_batches: Make) -> None:
    path = stopped / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        tensors, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    damaged("nothing, old", tensors, header)
    save_file(tensors, path, header)
    again = quick(replace(CFG, folder=stopped), sparse_batches(8, 50), resume=True)
    assert same(again, quick(CFG, sparse_batches(8, 50)))


def test_a_folder_has_one_training_at_a_time(tmp_path: Path, sparse_batches: Make) -> None:
    cfg = replace(CFG, folder=tmp_path)

    def with_another() -> Iterator[Tensor]:
        for batch in sparse_batches(8, 50):
            with pytest.raises(StoreBusyError, match="another training writes into"):
                quick(replace(cfg, lr=1.0), sparse_batches(8, 50))
            yield batch

    assert same(quick(cfg, with_another()), quick(CFG, sparse_batches(8, 50)))
    quick(cfg, [], resume=True)  # free again


def test_a_suite_goes_on_where_not_every_folder_was_made(
    tmp_path: Path, sparse_batches: Make
) -> None:
    cfg = replace(CFG, sae=replace(RELU, hook_name="a"))
    cfgs = {name: replace(cfg, folder=tmp_path / name) for name in "xy"}
    (tmp_path / "x").mkdir()
    data = [{"a": x} for x in sparse_batches(8, 50)]
    trained = train_saes(cfgs, data, resume=True, progress=False)
    assert same(trained["y"], quick(CFG, sparse_batches(8, 50)))


def test_what_was_trained_is_written_where_it_is_missing(
    tmp_path: Path, sparse_batches: Make
) -> None:
    """As after a full disk at the very end."""
    cfg = replace(CFG, folder=tmp_path)
    quick(cfg, sparse_batches(8, 50))
    before = (tmp_path / "sae_weights.safetensors").read_bytes()
    (tmp_path / "sae_weights.safetensors").unlink()
    quick(cfg, [], resume=True)
    assert (tmp_path / "sae_weights.safetensors").read_bytes() == before


@pytest.mark.parametrize("folder", ["/proc/nowhere", "~nosuchuser/x", "a\0b", "x" * 300])
def test_a_folder_that_cannot_be_made(folder: str, sparse_batches: Make) -> None:
    with pytest.raises(TrainingError, match=r"is no path|cannot be written"):
        quick(replace(CFG, folder=folder), sparse_batches(8, 50))
