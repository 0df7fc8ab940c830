"""Several processes under gloo make the store of one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from hooked_whisper.errors import StoreMismatchError
from hooked_whisper.store import ActivationStore

from ..processes import Child

Harvest = Callable[..., ActivationStore]
Fork = Callable[[Callable[[], object]], Child]


@pytest.fixture
def in_ranks(in_child: Fork, tmp_path: Path) -> Callable[[Callable[[int], object], int], list[int]]:
    """`in_ranks(function, n)`: run `function(rank)` in a process for each; their exit codes."""

    def run(function: Callable[[int], object], n: int) -> list[int]:
        meeting = tmp_path / f"meeting{n}"

        def joined(rank: int) -> None:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=n)
            function(rank)
            dist.destroy_process_group()

        children = [in_child(lambda rank=rank: joined(rank)) for rank in range(n)]
        return [child.wait() for child in children]

    return run


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_any_number_of_ranks_makes_the_same_store(
    small_harvest: Harvest,
    clips: Path,
    tmp_path: Path,
    in_ranks: Any,
    contents_of: Any,
    n_ranks: int,
) -> None:
    small_harvest(clips, tmp_path / "one")
    folder = tmp_path / "many"

    def run(rank: int) -> None:
        store = small_harvest(clips, folder)
        assert store.n_recordings == 24

    assert in_ranks(run, n_ranks) == [0] * n_ranks
    assert contents_of(folder) == contents_of(tmp_path / "one")


def test_every_rank_hears_of_a_mistake(
    small_harvest: Harvest, clips: Path, tmp_path: Path, in_ranks: Any
) -> None:
    small_harvest(clips / "clip00.wav", tmp_path / "store")

    def run(rank: int) -> None:
        with pytest.raises(StoreMismatchError, match="recordings is"):
            small_harvest(clips, tmp_path / "store")
        with pytest.raises(StoreMismatchError, match="note is '' there and 'x' here"):
            small_harvest(clips / "clip00.wav", tmp_path / "store", note="x" * rank)

    assert in_ranks(run, 2) == [0, 0]
