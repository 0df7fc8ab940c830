"""A greedy search keeps on the disk what it has found, and goes on from there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper.errors import InterventionError, StoreBusyError, StoreWriteError
from hooked_whisper.io import checksum_of_json, lock_file
from hooked_whisper.metrics import LogProb
from hooked_whisper.patching import GreedyAblation, greedy_ablation, head_ablations

from ..kills import SOME_KILLS, check_kills
from .shared import Stop

INFINITY = float("inf")
FILE = "search.json"


@pytest.fixture
def search(tiny_model: Any, pair: Any, without_shape_checks: None) -> Callable[..., GreedyAblation]:
    """`search(**options)`: which of the decoder's 9 heads can go, four of them at most."""
    heads = head_ablations(tiny_model, "decoder.*.attn.hook_z")

    def run(metric: Any = None, candidates: Any = heads, **options: Any) -> GreedyAblation:
        options = {"tolerance": INFINITY, "max_removals": 4, "max_bytes": 1} | options
        return greedy_ablation(
            tiny_model, pair[0], metric or LogProb(5), candidates, progress=False, **options
        )

    return run


@SOME_KILLS
def test_kills(search: Callable[..., GreedyAblation], n_kills: int, tmp_path: Path) -> None:
    expected = search()

    def look(folder: Path) -> None:
        if (folder / FILE).exists():
            json.loads((folder / FILE).read_text())

    def found(folder: Path) -> Any:
        result = search(save_to=folder / FILE)
        assert result == expected
        return json.loads((folder / FILE).read_text())

    check_kills(lambda folder: search(save_to=folder / FILE), look, found, tmp_path, n_kills)


def test_it_goes_on_from_the_last_removal(
    search: Callable[..., GreedyAblation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / FILE
    # A clean run, rounds of 9 and of 8 heads, and some of the third.
    part = search(Stop(1 + 9 + 8 + 3), save_to=path)
    assert part.n_done == 2 and not part.complete
    assert "stopped after 2 removals; the same call goes on." in capsys.readouterr().err
    rest = Stop(1 + 7 + 6)
    whole = search(rest, save_to=path)
    assert rest.left == 0 and whole.complete
    assert whole.removals[:2] == part.removals
    assert whole == search(Stop(1000))
    # What is done is done; more is asked for, and only that is computed.
    assert search(Stop(0), save_to=path) == whole
    more = Stop(1 + 5)
    assert search(more, save_to=path, max_removals=5).n_done == 5 and more.left == 0


def test_what_cannot_go_on_is_refused(
    search: Callable[..., GreedyAblation], tiny_model: Any, tmp_path: Path
) -> None:
    path = tmp_path / FILE
    done = search(save_to=path, max_removals=1)
    with pytest.raises(InterventionError, match="resume is given too"):
        search(save_to=path, resume=done)
    with pytest.raises(InterventionError, match="other candidates"):
        search(save_to=path, candidates="layers")
    with pytest.raises(InterventionError, match="other metric's settings"):
        search(LogProb(6), save_to=path)
    with (
        lock_file(path, "greedy ablation"),
        pytest.raises(StoreBusyError, match=r"another greedy ablation writes .*search\.json"),
    ):
        search(save_to=path)
    with pytest.raises(StoreWriteError, match=r"no folder.*Name another place"):
        search(save_to=tmp_path / "no folder" / FILE)


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no JSON": (lambda found: "{", "does not hold what it should"),
    "a list": (lambda found: [found], "does not hold what it should"),
    "nothing known": (lambda found: found.pop("removals"), "does not hold what it should"),
    "a number that is text": (lambda found: found.update(baseline="0"), "does not hold what"),
    "other numbers": (lambda found: found.update(baseline=0.0), "its checksum is of other"),
    "a candidate that is not there": (
        lambda found: found["removals"][0].update(candidate=99),
        r"is damaged: its removals are \[99\]",
    ),
    "one that is gone twice": (
        lambda found: found["removals"].append(found["removals"][0]),
        "is damaged: its removals are",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_damaged_file_is_refused(
    change: Callable[[Any], Any],
    message: str,
    search: Callable[..., GreedyAblation],
    tmp_path: Path,
) -> None:
    path = tmp_path / FILE
    search(save_to=path, max_removals=1)
    found = json.loads(path.read_text())
    changed = change(found)
    if "removals" in message:  # the checksum is that of the change
        found["xxh3_128"] = checksum_of_json({k: v for k, v in found.items() if k != "xxh3_128"})
    text = changed if isinstance(changed, str) else json.dumps(changed or found)
    path.write_text(text)
    with pytest.raises(InterventionError, match=message):
        search(save_to=path, max_removals=1)
