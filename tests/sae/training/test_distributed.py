"""Several ranks under gloo train what one process trains."""

import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.architectures.batch_topk import BatchTopKConfig, MatryoshkaConfig
from hooked_whisper.sae.architectures.gated import GatedConfig
from hooked_whisper.sae.architectures.jumprelu import JumpReLUConfig
from hooked_whisper.sae.architectures.relu import ReLUConfig
from hooked_whisper.sae.architectures.topk import TopKConfig
from hooked_whisper.sae.architectures.transcoder import SkipTranscoderConfig
from hooked_whisper.sae.base import SAEConfig
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.logs import TensorBoardLog
from hooked_whisper.sae.training.sources import MemoryActivations
from hooked_whisper.sae.training.train import train_sae, train_saes

from ...processes import Child

Make = Callable[..., Iterator[Tensor]]
InRanks = Callable[[Callable[[int], object], int], list[Any]]

SIZE: dict[str, Any] = {"d_in": 16, "d_sae": 32, "hook_name": "a"}
ARCHITECTURES: dict[str, SAEConfig] = {
    "topk": TopKConfig(**SIZE, k=2),
    "batchtopk": BatchTopKConfig(**SIZE, k=2),
    "scaled batchtopk": BatchTopKConfig(**SIZE, k=2, rescale_acts_by_decoder_norm=True),
    "matryoshka": MatryoshkaConfig(**SIZE, k=2),
    "relu": ReLUConfig(**SIZE),
    "jumprelu": JumpReLUConfig(**SIZE, jumprelu_init_threshold=1.0, pre_act_loss_coefficient=0.1),
    "gated": GatedConfig(**SIZE),
    "transcoder": SkipTranscoderConfig(**SIZE, d_out=8, hook_name_out="b", k=2),
}
CFG = TrainingConfig(
    ARCHITECTURES["topk"],
    n_vectors=402,
    batch_size=80,
    lr=4e-3,
    clip_grad_norm=0.5,
    dead_after_vectors=100,
    log_every=1,
)
"""Six steps, the last one of 2 vectors; from the third one on there are dead latents."""


@pytest.fixture(scope="module")
def in_ranks(tmp_path_factory: pytest.TempPathFactory) -> InRanks:
    """`in_ranks(function, n)`: what `function(rank)` gives in each of n processes under gloo.

    Of one that was killed or failed, its exit code.
    """

    def run(function: Callable[[int], object], n: int) -> list[Any]:
        place = tmp_path_factory.mktemp("ranks")
        children = [start(function, rank, n, place) for rank in range(n)]
        try:
            exits = [child.wait() for child in children]
        finally:
            for child in children:
                child.end()
        return [
            code or torch.load(place / str(rank), weights_only=False)
            for rank, code in enumerate(exits)
        ]

    return run


def start(function: Callable[[int], object], rank: int, n: int, place: Path) -> Child:
    """A fork of this process that joins the others, and writes what the function gives."""

    def join() -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", f"file://{place}/meeting", rank=rank, world_size=n)
        torch.save(function(rank), place / str(rank))

    return Child(join)


class Source:
    """Batches of some size from memory, like a store's: ranks take turns.

    Args:
        tensors: Vectors by hook.
        size: Of a batch.
        killed: Where to note that the process that reads batch 9 was killed; that happens once.
    """

    def __init__(self, tensors: dict[str, Tensor], size: int, killed: Path | None = None) -> None:
        self.tensors, self.size, self.killed = tensors, size, killed
        self.n_read = 0

    def stream(
        self,
        hook_names: Sequence[str],
        batch_size: int,
        *,
        seed: int = 0,
        skip: int = 0,
        turn: tuple[int, int] = (0, 1),
    ) -> Iterator[dict[str, Tensor]]:
        n = len(next(iter(self.tensors.values())))
        for number, begin in enumerate(range(0, n, self.size)):
            if number >= skip and number % turn[1] == turn[0]:
                if number == 9 and self.killed is not None and not self.killed.exists():
                    self.killed.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                self.n_read += 1
                rows = slice(begin, begin + self.size)
                yield {name: self.tensors[name][rows].clone() for name in hook_names}


@pytest.fixture(scope="module")
def data(sparse_batches: Make) -> dict[str, Tensor]:
    """500 vectors of two hooks."""
    x = torch.cat(list(sparse_batches(5, 100)))
    return {"a": x, "b": x[:, :8] * 2 - 1}


def trained(cfg: TrainingConfig, activations: Any, **options: Any) -> dict[str, Any]:
    """What a training comes to: weights as they come out, and the log."""
    log: list[dict[str, Any]] = []
    sae = train_sae(cfg, activations, progress=False, on_log=log.append, **options)
    return {"weights": dict(sae.state_dict()), "log": log}


def known(numbers: dict[str, float | None]) -> dict[str, float]:
    """Those that have a value: `dead` has none until a latent could be counted as dead."""
    return {name: value for name, value in numbers.items() if value is not None}


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(found["log"]) == len(expected["log"])
    for line, wanted in zip(found["log"], expected["log"], strict=True):
        numbers = {name: value for name, value in wanted.items() if name != "sae"}
        told = {name: line[name] for name in numbers}
        assert known(told) == pytest.approx(known(numbers), rel=1e-5, abs=1e-6)
    check_weights(found, expected)


def check_weights(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-5, atol=1e-5, msg=name)


# The same


def all_of_them() -> dict[str, TrainingConfig]:
    """Each architecture, half of them with batches of another size."""
    sizes = itertools.cycle([80, 60])
    return {
        kind: replace(CFG, sae=sae, batch_size=size)
        for (kind, sae), size in zip(ARCHITECTURES.items(), sizes, strict=False)
    }


def trained_together(data: dict[str, Tensor]) -> dict[str, Any]:
    source = Source(data, 67)
    log: list[dict[str, Any]] = []
    saes = train_saes(all_of_them(), source, progress=False, on_log=log.append)
    return {"n_read": source.n_read} | {
        kind: {
            "weights": dict(sae.state_dict()),
            "log": [line for line in log if line["sae"] == kind],
        }
        for kind, sae in saes.items()
    }


@pytest.fixture(scope="module")
def by_one(data: dict[str, Tensor]) -> dict[str, Any]:
    """All architectures, trained in one process."""
    return trained_together(data)


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def by_ranks(
    request: Any, by_one: dict[str, Any], data: dict[str, Tensor], in_ranks: InRanks
) -> list[dict[str, Any]]:
    """The same, trained by ranks, which are forks of this process and have what it loaded."""
    return in_ranks(lambda rank: trained_together(data), request.param)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_several_ranks_train_what_one_process_trains(
    kind: str, by_one: dict[str, Any], by_ranks: list[dict[str, Any]]
) -> None:
    """With batches of the data that fit neither those of the training nor the ranks."""
    check_same(by_ranks[0][kind], by_one[kind])
    weights = by_ranks[0][kind]["weights"]
    for other in by_ranks[1:]:
        assert all(torch.equal(weights[name], w) for name, w in other[kind]["weights"].items())
        assert other[kind]["log"] == []  # the first rank speaks for all


def test_what_was_trained_has_everything_in_it(by_one: dict[str, Any]) -> None:
    """Dead latents with their losses, gradients that are cut, and a scale."""
    for kind, part in {"topk": "aux", "batchtopk": "aux", "jumprelu": "pre_act"}.items():
        assert any(line.get(f"loss_{part}", 0) > 0 for line in by_one[kind]["log"]), kind
        assert any(0 < (line["dead"] or 0) < 1 for line in by_one[kind]["log"]), kind
    assert [len(by_one[kind]["log"]) for kind in ("topk", "batchtopk")] == [6, 7]


def test_each_rank_reads_its_share(by_ranks: list[dict[str, Any]]) -> None:
    assert max(each["n_read"] for each in by_ranks) <= 7 / len(by_ranks) + 1


@pytest.mark.parametrize("kind", ["batchtopk", "relu"])
def test_iterables_give_each_rank_its_part(
    kind: str, data: dict[str, Tensor], in_ranks: InRanks
) -> None:
    """Also parts of different sizes; a source that knows nothing of ranks is cut by itself."""
    cfg = replace(CFG, sae=ARCHITECTURES[kind])
    whole = list(data["a"].split(50))

    def run(rank: int) -> list[dict[str, Any]]:
        parts = [batch[:20] if rank == 0 else batch[20:] for batch in whole]
        pairs = MemoryActivations({"a": data["a"]})
        return [trained(cfg, parts), trained(cfg, pairs)]

    parts, cut = in_ranks(run, 2)[0]
    check_same(parts, trained(cfg, whole))
    check_same(cut, trained(cfg, MemoryActivations({"a": data["a"]})))


# Ends


def test_it_ends_for_all_when_one_rank_runs_dry(data: dict[str, Tensor], in_ranks: InRanks) -> None:
    """After as many steps on each."""
    batches = list(data["a"].split(40))

    def run(rank: int) -> dict[str, Any]:
        own = batches[rank::2][: 4 if rank else 6]
        if rank == 0:
            with pytest.warns(UserWarning, match="ran dry: training ended after 320 of 402"):
                return trained(CFG, own)
        return trained(CFG, own)

    first, other = in_ranks(run, 2)
    assert all(torch.equal(first["weights"][name], w) for name, w in other["weights"].items())
    with pytest.warns(UserWarning, match="320 of 402"):
        check_same(first, trained(CFG, batches[:8]))


def refused(run: Callable[[], object], error: type[Exception] = TrainingError) -> str:
    with pytest.raises(error) as caught:
        run()
    return str(caught.value)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (lambda rank, x: [x], r"all 2 ranks give the same activations in batch 0"),
        (lambda rank, x: [x[rank:, rank:]], r"do not fit together: 0 \(80, 16\).*0 \(79, 15\)"),
        (lambda rank, x: broken(x, rank), r"rank 1 could not give its activations: OSError: gone"),
        (lambda rank, x: [x[rank:], "x"], r"it gave a str where a batch"),
    ],
    ids=["all the data on each", "other widths", "a broken source", "no tensors"],
)
def test_every_rank_hears_what_is_wrong(
    batches: Any, message: str, data: dict[str, Tensor], in_ranks: InRanks
) -> None:
    def run(rank: int) -> str:
        own = batches(rank, data["a"][:80])
        error = OSError if rank == 1 and "OSError" in message else TrainingError
        return refused(lambda: trained(CFG, own), error)

    texts = in_ranks(run, 2)
    assert re.search(message, texts[0])


def broken(x: Tensor, rank: int) -> Iterator[Tensor]:
    yield x[rank:]
    if rank == 1:
        raise OSError("gone")
    yield x


def test_the_first_rank_alone_logs_and_all_hear_that_it_cannot(
    data: dict[str, Tensor], in_ranks: InRanks, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    def run(rank: int) -> str:
        logs = [TensorBoardLog(tmp_path / str(rank))]
        quick = replace(CFG, n_vectors=160)
        trained_with(logs, replace(quick, folder=tmp_path / "sae" / str(rank)))
        return refused(lambda: trained_with([TensorBoardLog(tmp_path / "file" / "tb")], quick))

    def trained_with(logs: list[TensorBoardLog], cfg: TrainingConfig) -> None:
        train_sae(cfg, Source(data, 40), progress=False, on_log=logs)

    found = in_ranks(run, 2)
    assert all("TensorBoardLog cannot begin: " in text for text in found)
    assert len(list((tmp_path / "0").iterdir())) == 1 and not (tmp_path / "1").exists()
    assert [path.parent.name for path in (tmp_path / "sae").glob("*/log.csv")] == ["0"]


# Ranks that are lost


@pytest.mark.parametrize(("kind", "lost"), [("topk", 1), ("batchtopk", 0)])
def test_a_lost_rank_ends_all_and_other_numbers_of_ranks_go_on(
    kind: str, lost: int, data: dict[str, Tensor], in_ranks: InRanks, tmp_path: Path
) -> None:
    """With the first rank goes what came after the last checkpoint."""
    cfg = replace(CFG, sae=ARCHITECTURES[kind], checkpoint_every=3, log_every=2)
    whole = trained(cfg, Source(data, 40))
    n_ranks = 2 if lost else 3  # batch 9 is that of rank 1 of 2, and 0 of 3
    folder = tmp_path / "sae"

    def lose(rank: int) -> str:
        source = Source(data, 40, killed=tmp_path / "killed")
        return refused(lambda: trained(replace(cfg, folder=folder), source))

    found = in_ranks(lose, n_ranks)
    assert found.pop(lost) == -signal.SIGKILL
    assert all(re.search(r"rank \d of \d lost the others: .* all of them again", x) for x in found)
    with safe_open(folder / "checkpoint.safetensors", "pt") as file:
        assert json.loads(file.metadata()["training"])["step"] == (4 if lost else 3)

    for n_now in (1, 2, 4):
        now = tmp_path / str(n_now)
        shutil.copytree(folder, now)

        def go_on(rank: int, now: Path = now) -> dict[str, Any]:
            # What others have for a folder does not matter: the first rank reads and writes.
            own = now if rank == 0 else tmp_path / "nowhere" / str(rank)
            source = Source(data, 40)
            found = trained(replace(cfg, folder=own), source, resume=True)
            return found | {"n_read": source.n_read}

        first = in_ranks(go_on, n_now)[0] if n_now > 1 else go_on(0)
        check_weights(first, whole)
        assert first["n_read"] <= 5 / n_now + 1
        log = pd.read_csv(now / "log.csv").astype(object)
        log = log.where(log.notna(), None).to_dict("records")
        check_same({**first, "log": log}, whole)
    assert not (tmp_path / "nowhere").exists()


def test_torchrun_starts_it_again_and_it_goes_on(
    data: dict[str, Tensor], tmp_path: Path, in_child: Callable[..., Child]
) -> None:
    """By torchrun's own agent, in a fork of this process, whose workers are forks again."""
    cfg = replace(CFG, checkpoint_every=2)
    whole = trained(cfg, Source(data, 40))

    def work() -> None:
        jaxtyping.config.update("jaxtyping_disable", True)
        assert not dist.is_initialized()
        source = Source(data, 40, killed=tmp_path / "killed")
        found = trained(replace(cfg, folder=tmp_path / "sae"), source)
        assert dist.get_world_size() == 2  # torchrun's variables were enough
        torch.save(found, tmp_path / f"{os.environ['RANK']}.of.{source.n_read}")

    def agent() -> None:
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        elastic_launch(
            LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=2,
                max_restarts=1,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                monitor_interval=0.05,
                start_method="fork",
            ),
            work,
        )()

    assert in_child(agent).wait() == 0
    assert (tmp_path / "killed").exists()
    (first,) = tmp_path.glob("0.of.*")
    assert int(first.suffix[1:]) <= 4
    check_weights(torch.load(first), whole)
