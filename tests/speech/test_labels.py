"""Labels that change in time are read one way: in the middle of a step, the first of several."""

import pytest

from hooked_whisper.speech.labels import (
    TimedLabel,
    labels_within,
    steps_within,
    timed_labels,
    values_at,
    values_of_steps,
)

WORDS = [[0.005, 0.03, "a"], [0.05, 0.09, "b"]]


def test_a_step_has_the_label_of_its_middle() -> None:
    assert values_of_steps(WORDS, 5, 0.02) == ["a", None, "b", "b", None]


def test_an_end_is_out_and_of_several_the_first_counts() -> None:
    label = [[0.0, 0.02, "a"], [0.01, 0.04, "b"]]
    assert values_at(label, [0.0, 0.01, 0.02, 0.04]) == ["a", "a", "b", None]


def test_one_value_holds_everywhere() -> None:
    assert values_at("theo", [0.0, 9.0]) == ["theo", "theo"]
    assert values_of_steps(None, 2, 0.02) == [None, None]


@pytest.mark.parametrize(
    "label",
    ["word", 3, None, {"a": 1}, [1, 2], [[0.0, 0.1]], [["a", "b", "c"]], [[0.0, 0.1, "a"], 5]],
    ids=str,
)
def test_what_is_no_timed_label(label: object) -> None:
    assert timed_labels(label) is None


def test_pieces_are_read_from_lists_and_tuples() -> None:
    expected = (TimedLabel(0.0, 1.0, "a"),)
    assert timed_labels([[0, 1, "a"]]) == timed_labels(((0, 1, "a"),)) == expected
    assert timed_labels([]) == ()


@pytest.mark.parametrize(
    ("start", "end", "steps"),
    [
        (0.0, 0.02, range(0, 1)),
        (0.019, 0.021, range(0, 2)),
        (0.04, 0.08, range(2, 4)),
        (0.03, 0.03, range(1, 2)),
        (0.19, 5.0, range(9, 10)),
        (7.0, 8.0, range(9, 10)),
    ],
)
def test_steps_that_a_piece_touches(start: float, end: float, steps: range) -> None:
    assert steps_within(TimedLabel(start, end, "a"), 10, 0.02) == steps


def test_pieces_of_a_window_are_cut_and_in_its_own_time() -> None:
    pieces = timed_labels([[0.0, 0.5, "a"], [0.5, 1.5, "b"], [1.5, 2.0, "c"]])
    assert pieces is not None
    assert labels_within(pieces, 1.0, 1.75) == (
        TimedLabel(0.0, 0.5, "b"),
        TimedLabel(0.5, 0.75, "c"),
    )
