"""Reading a store: any rows, in order, shuffled, over workers and ranks, with labels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from hooked_whisper.data import Recording
from hooked_whisper.errors import HookNameError, StoreDamagedError, StoreError
from hooked_whisper.store import ActivationDataset, ActivationStore
from hooked_whisper.store.shuffle import BLOCK_ROWS, shuffled_groups

NAMES = ["encoder.blocks.0.hook_resid_post", "encoder.blocks.1.hook_resid_post"]
TOKENS = "decoder.blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def store(
    clips: Path, tmp_path_factory: pytest.TempPathFactory, make_model: Any, tiny_cfg: Any
) -> ActivationStore:
    """Two encoder hooks and one of the decoder, in 5 shards."""
    from hooked_whisper.store import harvest

    recordings = [
        Recording(
            path.name,
            str(path),
            {"parity": number % 2, "half": [[0.0, 0.045, "first"], [0.045, 0.1, "second"]]},
            tokens=(1, 2, number),
        )
        for number, path in enumerate(sorted(clips.iterdir()))
    ]
    folder = tmp_path_factory.mktemp("stores") / "store"
    options: Any = {"dtype": "fp32", "batch_size": 4, "recordings_per_shard": 5, "n_workers": 0}
    return harvest(make_model(tiny_cfg), recordings, [*NAMES, TOKENS], folder, **options)


@pytest.fixture
def everything(store: ActivationStore) -> dict[str, torch.Tensor]:
    """All rows, recording by recording."""
    parts = [store.of_recording(number, NAMES) for number in range(24)]
    return {name: torch.cat([part[name] for part in parts]) for name in NAMES}


def test_any_rows_in_any_order(store: ActivationStore, everything: dict[str, torch.Tensor]) -> None:
    n_rows = store.n_rows(NAMES)
    assert n_rows == len(everything[NAMES[0]]) > 300
    wanted = torch.randint(0, n_rows, (500,))
    found = store.rows(NAMES, wanted)
    for name in NAMES:
        assert torch.equal(found[name], everything[name][wanted])
    assert store.rows(NAMES[0], [])[NAMES[0]].shape == (0, 24)


def test_what_is_read_can_be_changed_without_changing_the_store(store: ActivationStore) -> None:
    before = store.rows(NAMES[0], [3])[NAMES[0]].clone()
    store.rows(NAMES[0], slice(3, 4))[NAMES[0]].zero_()
    assert torch.equal(store.rows(NAMES[0], [3])[NAMES[0]], before)


def test_batches_are_all_rows_in_order(
    store: ActivationStore, everything: dict[str, torch.Tensor]
) -> None:
    batches = list(store.batches(NAMES, 70, dtype=torch.float64))
    assert {len(batch[NAMES[0]]) for batch in batches[:-1]} == {70}
    joined = torch.cat([batch[NAMES[1]] for batch in batches])
    assert torch.equal(joined, everything[NAMES[1]].double())


def test_the_stream_gives_every_row_once_and_hooks_aligned(
    store: ActivationStore, everything: dict[str, torch.Tensor]
) -> None:
    batches = list(store.stream(NAMES, 50, seed=1, with_rows=True, buffer_bytes=50_000))
    rows = torch.cat([batch["rows"] for batch in batches])
    assert sorted(rows.tolist()) == list(range(store.n_rows(NAMES)))
    assert rows.tolist() != sorted(rows.tolist())
    for name in NAMES:
        joined = torch.cat([batch[name] for batch in batches])
        assert torch.equal(joined, everything[name][rows])


def test_the_same_seed_is_the_same_order(store: ActivationStore) -> None:
    def first(seed: int) -> torch.Tensor:
        return next(store.stream(NAMES[0], 64, seed=seed))[NAMES[0]]

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_epochs_differ_and_skipping_is_going_on(store: ActivationStore) -> None:
    options: dict[str, Any] = {"with_rows": True, "buffer_bytes": 50_000, "n_epochs": 2}
    batches = [each["rows"] for each in store.stream(NAMES, 100, **options)]
    n = len(batches) // 2
    assert not torch.equal(batches[0], batches[n])
    rest = [each["rows"] for each in store.stream(NAMES, 100, skip=n - 1, **options)]
    assert len(rest) == n + 1
    assert all(map(torch.equal, rest, batches[n - 1 :]))


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_ranks_share_each_batch(store: ActivationStore, n_ranks: int) -> None:
    options: dict[str, Any] = {"seed": 2, "with_rows": True, "buffer_bytes": 50_000}
    alone = [each["rows"] for each in store.stream(NAMES, 64, **options)]
    parts = [
        [each["rows"] for each in store.stream(NAMES, 64, rank=rank, n_ranks=n_ranks, **options)]
        for rank in range(n_ranks)
    ]
    assert len({len(part) for part in parts}) == 1
    for whole, *own in zip(alone, *parts, strict=True):
        assert len({len(each) for each in own}) == 1
        assert torch.equal(torch.cat(own), whole[: len(whole) // n_ranks * n_ranks])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_share_the_batches(store: ActivationStore) -> None:
    dataset = ActivationDataset(store, NAMES, 64, seed=5, with_rows=True)
    alone = [each["rows"] for each in dataset]
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    shared = [each["rows"] for each in loader]
    assert len(shared) == len(alone)
    assert all(map(torch.equal, shared, alone))
    dataset.set_epoch(1)
    assert not torch.equal(next(iter(dataset))["rows"], alone[0])


@pytest.mark.parametrize("group", ["first", "last"])
def test_the_shuffle_draws_from_everywhere(group: str) -> None:
    """A buffer of a hundredth of the store holds about as much of each tenth of it."""
    n_rows = 2_000_000
    groups = list(shuffled_groups(n_rows, n_rows // 100, torch.Generator().manual_seed(0)))
    rows = groups[0 if group == "first" else -2]
    share = torch.bincount(rows * 10 // n_rows, minlength=10) / len(rows)
    assert float((share - 0.1).abs().max()) < 0.06  # 310 blocks: a deviation of 0.017
    batch = rows[:4096]
    neighbours = torch.bincount(batch // BLOCK_ROWS).max()
    assert int(neighbours) < BLOCK_ROWS / 2


def test_memory_of_the_stream_is_bounded(store: ActivationStore) -> None:
    reader = store.stream(NAMES, 32, buffer_bytes=20_000)
    held: list[int] = []
    real = store._shards.read_sorted

    def watched(*args: Any) -> Any:
        found = real(*args)
        held.append(sum(value.nbytes for value in found.values()))
        return found

    store._shards.read_sorted = watched  # type: ignore[method-assign]
    try:
        n_batches = sum(1 for _ in reader)
    finally:
        del store._shards.read_sorted
    assert n_batches > 10
    assert max(held) <= 20_000


def test_labels_and_places(store: ActivationStore) -> None:
    rows = [0, 1, 2, 3, 4, 5]  # the first clip: 0.1 s, 5 positions
    assert store.labels("parity", NAMES, rows) == [0, 0, 0, 0, 0, 1]
    assert store.labels("half", NAMES, rows[:5]) == ["first"] * 2 + ["second"] * 3
    assert store.labels("colour", NAMES, rows) == [None] * 6
    where = store.where(NAMES, rows)
    assert where.recording.tolist() == [0, 0, 0, 0, 0, 1]
    torch.testing.assert_close(where.start_s[4:], torch.tensor([0.08, 0.0], dtype=torch.float64))
    assert where.token is None
    tokens = store.where(TOKENS, slice(-3, None)).token
    assert tokens is not None
    assert tokens.tolist() == [1, 2, 23]


def test_what_is_known_of_recordings(store: ActivationStore) -> None:
    entries = list(store.recordings())
    assert [entry.index for entry in entries] == list(range(24))
    entry = store.recording("clip03.wav")
    assert (entry.index, entry.labels["parity"], entry.seconds) == (3, 1, 0.16)
    assert store.rows_of("clip03.wav", NAMES) == range(5 + 6 + 7, 5 + 6 + 7 + 8)


WRONG: dict[str, tuple[Callable[[ActivationStore], Any], type[Exception], str]] = {
    "hook": (
        lambda store: store.rows("encoder.blocks.0.hook_resid_pre", [0]),
        HookNameError,
        "Nearest: encoder.blocks.0.hook_resid_post",
    ),
    "kinds": (lambda store: store.rows([*NAMES, TOKENS], [0]), StoreError, "different kinds"),
    "row": (lambda store: store.rows(NAMES, [0, 10**6]), StoreError, "row 1000000 is not there"),
    "recording": (lambda store: store.of_recording(99, NAMES), StoreError, "99 is not in"),
    "id": (lambda store: store.of_recording("x", NAMES), StoreError, "no recording in .* 'x'"),
    "ranks": (
        lambda store: store.stream(NAMES, 10, n_ranks=4),
        StoreError,
        "a positive multiple of the 4 ranks",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_questions_that_have_no_answer(store: ActivationStore, what: str) -> None:
    call, error, match = WRONG[what]
    with pytest.raises(error, match=match):
        call(store)


def test_a_folder_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no activation store. Make one with harvest"):
        ActivationStore(tmp_path)


def test_a_missing_shard_is_told(store: ActivationStore, tmp_path: Path) -> None:
    for path in store.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "shard-000002.safetensors").unlink()
    with pytest.raises(StoreDamagedError, match=r"shard-000002.*verify=True"):
        ActivationStore(tmp_path).rows(NAMES, slice(None))


def test_a_number_that_no_tensor_holds_is_damage(store: ActivationStore, tmp_path: Path) -> None:
    for path in store.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "shard-000000.json"
    record = json.loads(path.read_text())
    record["recordings"][0]["index"] = 10**30
    path.write_text(json.dumps(record))
    with pytest.raises(StoreDamagedError, match=r"shard-000000\.json"):
        ActivationStore(tmp_path).recording(0)


def test_other_programs_can_read_the_shards(
    store: ActivationStore, everything: dict[str, torch.Tensor]
) -> None:
    from safetensors.torch import load_file

    paths = sorted(store.folder.glob("*.safetensors"))
    joined = torch.cat([load_file(path)[NAMES[0]] for path in paths])
    assert torch.equal(joined, everything[NAMES[0]])


def test_the_manifest_says_what_made_the_store(store: ActivationStore) -> None:
    manifest = json.loads((store.folder / "manifest.json").read_text())
    identity = manifest["identity"]
    assert identity["hooks"] == [*NAMES, TOKENS]
    assert identity["model"]["config"]["d_model"] == 24
    assert identity["frames"] == "speech"
    assert "160" in identity["frame_rule"]
    assert identity["recordings"]["n"] == 24
    assert manifest["rows"] == {"encoder": store.n_rows(NAMES), "decoder": 72}
    assert len(manifest["shards"]) == 5


def test_it_shows_hooks_recordings_and_what_it_was_made_with(
    store: ActivationStore, shown: Callable[[Any], Any]
) -> None:
    found = shown(store)
    n_encoder, n_tokens = store.n_rows(NAMES), store.n_rows(TOKENS)
    assert found.rows[1:4] == [
        *(
            [name, "encoder", str(n_encoder), "[24]", f"{96 * n_encoder / 1024:.1f} KiB"]
            for name in NAMES
        ),
        [TOKENS, "decoder", str(n_tokens), "[24]", f"{96 * n_tokens / 1024:.1f} KiB"],
    ]
    on_disk = sum(each.stat().st_size for each in store.folder.glob("*.safetensors"))
    assert f"3 hooks, {on_disk / 1024:.1f} KiB of float32 on disk" in found.text
    heard = list(store.recordings())
    assert [row[0] for row in found.rows[5:25]] == [each.id for each in heard[:20]]
    assert found.rows[25] == ["… and 4 more"]
    assert f"24 recordings, {sum(each.seconds for each in heard):,.1f} s" in found.text
    assert ["folder", str(store.folder)] in found.rows
    assert ["model.name", "tiny-random"] in found.rows and ["recordings.n", "24"] in found.rows
    assert "skipped" not in found.text


def test_it_shows_what_was_skipped_and_hostile_names(
    tiny_model: Any, clips: Path, tmp_path: Path, shown: Callable[[Any], Any]
) -> None:
    from hooked_whisper.store import harvest

    good = Recording("<i>&", str(clips / "clip00.wav"), {"<b>": "</td>"})
    bad = Recording("<script>", str(tmp_path / "none.wav"))
    found = shown(harvest(tiny_model, [good, bad], NAMES, tmp_path / "store", n_workers=0))
    assert "1 recording skipped" in found.text
    assert next(row for row in found.rows if row[0] == "<i>&")[3] == '{"<b>": "</td>"}'
    assert "none.wav" in next(row for row in found.rows if row[0] == "<script>")[1]
