"""`hooked-whisper patch`."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from hooked_whisper.digits import recordings
from hooked_whisper.patching import SweepResult, sweep

Run = Callable[..., Result]
HOOK = "encoder.blocks.2.hook_resid_post"
ENCODED = "encoder.blocks.3.hook_resid_post"
SPEC = ["--hook", HOOK, "--quiet"]
CHEAP = [
    *("--hook", "decoder.blocks.1.hook_resid_post", "--per", "pos", "--quiet"),
    *("--text", "three one four"),
]
CLEAN, CORRUPTED = (each.path for each in recordings()[:2])


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plots but in the first test: drawing takes longer than all the rest."""
    if "first_digit" not in request.node.name:
        blank = SimpleNamespace(savefig=lambda path, **options: None)
        monkeypatch.setattr(SweepResult, "plot", lambda *args, **options: blank)


def test_the_first_digit_is_where_it_is_spoken(run: Run, folder: Path) -> None:
    done = run("patch", "--hook", HOOK)
    assert done.exit_code == 0, done.output
    head, names, best = done.stdout.splitlines()[:3]
    assert head.startswith("LogitDifference: ") and "in the corrupted one" in head
    assert names.split() == ["name", "start_s", "end_s", "effect"]
    name, start_s, _, effect = best.split()
    word = recordings()[0].words[0]
    assert name == HOOK and word.start_s - 0.5 <= float(start_s) <= word.end_s
    assert float(effect) > 0.3
    assert "measured is ' three' as token 0 of the text against ' eight'" in done.stderr
    assert {path.name for path in (folder / "digits-patch").glob("[!.]*")} == {
        "sweep.csv",
        "sweep.png",
        "sweep.safetensors",
    }


def test_json_and_the_table_agree(run: Run) -> None:
    done = run("patch", CLEAN, CORRUPTED, *CHEAP, "--json", "--top", 2, "--out", "mine")
    told = json.loads(done.stdout)
    assert (told["clean"], told["corrupted"]) == (CLEAN.name, CORRUPTED.name)
    assert told["metric_clean"] > 0 > told["metric_corrupted"] and told["complete"]
    assert len(told["best"]) == 2
    with open("mine/sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(told["patches"])
    assert [float(row["value"]) for row in rows] == pytest.approx(
        [row["value"] for row in told["patches"]]
    )
    again = run("patch", CLEAN, CORRUPTED, *CHEAP, "--out", "mine")
    assert again.exit_code == 1 and "mine exists" in again.stderr
    assert run("patch", *CHEAP, "--out", "mine", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("options", "metric", "corrupted"),
    [
        (["--metric", "log-prob", "--token", "1", "--language", "de"], "LogProb", CORRUPTED.name),
        (["--metric", "text-log-prob", "--corrupt", "silence"], "SequenceLogProb", "silence"),
        (["--metric", "probability", "--corrupt", "noise"], "Probability", "noise"),
        (
            ["--corrupt", "silence", "--corrupt-window", "0.2", "1.2"],
            "LogitDifference",
            "silence from 0.2 to 1.2 s",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_metrics_and_corruptions(run: Run, options: list[str], metric: str, corrupted: str) -> None:
    done = run("patch", "--hook", ENCODED, "--per", "whole", "--json", *options)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["metric"], told["corrupted"]) == (metric, corrupted)
    # All that the encoder made: whatever was corrupted is right again.
    assert told["patches"][0]["value"] == pytest.approx(told["metric_clean"], abs=1e-3)
    assert told["metric_clean"] > told["metric_corrupted"]


def test_transcripts_can_be_measured(run: Run) -> None:
    short = ["--hook", ENCODED, "--per", "whole", "--corrupt", "silence", "--quiet"]
    short += ["--text", "Three, one: 4!"]  # words are compared, not how they are written
    for metric, wanted in (("transcript", 1.0), ("word-error-rate", 0.0)):
        done = run("patch", *short, "--metric", metric, "--json", "--out", metric)
        told = json.loads(done.stdout)
        assert told["patches"][0]["value"] == told["metric_clean"] == wanted
        assert told["metric_corrupted"] == 1 - wanted


@pytest.mark.parametrize(
    ("options", "token", "named"),
    [
        (["--word", "four"], 2, " four"),
        (["--word", "FOUR!"], 2, " four"),
        (["--at", 1.6], 1, " one"),
        (["--word", "three", "--at", 3.0], 2, " three"),
        (["--word", "three"], 0, " three"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_the_word_that_is_measured(run: Run, options: list[Any], token: int, named: str) -> None:
    text = "three one three" if "three" in options else "three one four"
    done = run(
        *("patch", CLEAN, CORRUPTED, "--text", text, *options, "--metric", "log-prob"),
        *("--hook", "decoder.blocks.1.hook_resid_post", "--per", "whole"),
    )
    assert done.exit_code == 0, done.output
    assert f"measured is {named!r} as token {token} of the text" in done.stderr


def test_one_word_is_corrupted_at_its_own_time(run: Run) -> None:
    word = recordings()[0].words[1]
    plain = ["patch", CLEAN, "--text", "three one four", "--hook", HOOK, "--json"]
    for number, more in enumerate((["silence"], ["noise"], ["swap", "--swap-with", "four"])):
        options = ["--corrupt", *more, "--corrupt-word", "one", "--window-s", 0.2]
        done = run(*plain, *options, "--out", str(number))
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert told["measures"].startswith("measured is ' one' as token 1 of the text")
        assert told["metric_clean"] > 0 > told["metric_corrupted"]
        best = told["best"][0]
        assert word.start_s - 0.3 < best["start_s"] < word.end_s and best["effect"] > 0.2
        start_s, end_s = map(
            float, told["corrupted"].split("from ")[1].split(" s")[0].split(" to ")
        )
        assert (start_s, end_s) == pytest.approx((word.start_s, word.end_s), abs=0.45)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--word", "nine"], "the clean text has no word 'nine'; it has three ("),
        (["--at", "29"], "nothing is said at 29 s"),
        (["--word", "one", "--token", "1"], "give --token, or --word and --at"),
        (["--corrupt-word", "one"], "--corrupt-window and --corrupt-word need --corrupt"),
        (["--corrupt", "swap", "--corrupt-word", "one"], "--corrupt swap takes --corrupt-word"),
    ],
    ids=["word", "time", "both", "corrupt", "swap"],
)
def test_words_that_cannot_be(run: Run, options: list[str], message: str) -> None:
    other = [] if "--corrupt" in options else [CORRUPTED]
    done = run("patch", CLEAN, *other, "--text", "three one four", *SPEC, *options)
    assert done.exit_code > 0 and message in done.stderr


def test_overwrite_begins_anew(run: Run) -> None:
    for metric in ("log-prob", "probability"):
        done = run("patch", *CHEAP, "--metric", metric, "--out", "mine", "--overwrite", "--json")
        assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metric"] == "Probability"


def test_the_text_and_the_token_are_as_told(run: Run) -> None:
    options = ["--text", "three one four", "--token", 2]
    done = run("patch", CLEAN, CORRUPTED, "--hook", HOOK, *options, "--per", "whole")
    assert "measured is ' four' as token 2 of the text against ' two'" in done.stderr
    other = run("patch", CLEAN, CORRUPTED, "--text", "one", "--token", 3, "--out", "other")
    assert other.exit_code == 1 and "--token is 3; the text has tokens 0 to 0" in other.stderr


def test_a_pair_that_cannot_be_told_apart(run: Run, folder: Path) -> None:
    done = run("patch", CLEAN, CLEAN, *SPEC)
    assert done.exit_code == 1
    assert "the corrupted run predicts every token of the clean text too" in done.stderr
    assert list(folder.iterdir()) == []
    done = run("patch", CLEAN, CLEAN, *SPEC, "--metric", "text-log-prob", "--per", "whole")
    assert done.exit_code == 1 and "in both runs, so that no patch can be told" in done.stderr


def test_ctrl_c_keeps_what_is_done_and_resume_does_the_rest(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [CLEAN, CORRUPTED, *CHEAP]
    whole = json.loads(run("patch", *options, "--json", "--out", "whole").stdout)
    values = sweep.PairSweep.values

    def stop_soon(self: Any) -> Iterator[Any]:
        for each in values(self):
            yield each
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sweep.PairSweep, "values", stop_soon)
        done = run("patch", *options)
    assert done.exit_code == 130
    assert "the same command with --resume does the rest" in done.stderr
    stopped = SweepResult.load("digits-patch/sweep.safetensors")
    assert 0 < stopped.n_done < stopped.n_cells
    refused = run("patch", *options)
    assert refused.exit_code == 1 and "digits-patch exists" in refused.stderr
    resumed = json.loads(run("patch", *options, "--resume", "--json").stdout)
    assert resumed["patches"] == whole["patches"] and resumed["complete"]
