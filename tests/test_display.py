"""The pieces of HTML that objects show in a notebook, and the one progress bar."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from hooked_whisper.display import (
    MOST_FRAME_MB,
    box,
    facts,
    fold,
    framed,
    note,
    picture,
    player,
    progress_bar,
    table,
)

HOSTILE = "</td></table><script>alert('a')</script>\"><img src=x onerror=alert(1)> & \ud800"
"""What a user may call a file, or a model may write."""


class Showing:
    """An object that shows some HTML."""

    def __init__(self, html: str) -> None:
        self.html = html

    def _repr_html_(self) -> str:
        return self.html


PIECES: dict[str, Callable[[str], Markup]] = {
    "table": lambda text: table([text, text], [[text, text], [text, 1]]),
    "facts": lambda text: facts({text: text}),
    "fold": lambda text: fold(text, note(text)),
    "picture": lambda text: picture(Figure(), text),
}
"""Pieces of HTML, each made of one text."""


@pytest.mark.parametrize("kind", PIECES)
def test_a_text_is_shown_as_it_is_and_never_read_as_html(
    kind: str, shown: Callable[[Any], Any]
) -> None:
    found = shown(Showing(box(HOSTILE, HOSTILE, PIECES[kind](HOSTILE))))
    readable = HOSTILE.replace("\ud800", "?")
    assert found.text.count(readable) >= 2
    assert [each["alt"] for each in found.all("img")] == [readable] * (kind == "picture")


def test_numbers_stand_at_the_right_under_their_names(shown: Callable[[Any], Any]) -> None:
    html = table(["name", "n", "share"], [["a", 51864, 0.123456], ["b", None, float("nan")]])
    found = shown(Showing(box("", "", html)))
    assert found.rows == [["name", "n", "share"], ["a", "51,864", "0.1235"], ["b", "–", "–"]]
    assert [each["style"] for each in found.all("th")[:3]] == [
        "text-align:left",
        "text-align:right",
        "text-align:right",
    ]
    assert {each["style"] for each in found.all("td")} == {"text-align:right"}


def test_a_long_table_says_what_is_left_out(shown: Callable[[Any], Any]) -> None:
    rows = [[str(i), i] for i in range(2000)]
    found = shown(Showing(box("", "", table(["", "i"], rows, most=2))))
    assert found.rows[1:] == [["0", "0"], ["1", "1"], ["… and 1,998 more"]]
    assert len(shown(Showing(box("", "", table([], rows, most=2000)))).rows) == 2000


def test_facts_leave_out_what_is_not_known(shown: Callable[[Any], Any]) -> None:
    known = {"text": "", "n": 0, "none": None, "yes": True, "list": [1, 2]}
    found = shown(Showing(box("", "", facts(known))))
    assert found.rows == [["n", "0"], ["yes", "yes"], ["list", "[1, 2]"]]


def test_a_sound_has_a_player(shown: Callable[[Any], Any]) -> None:
    (found,) = shown(Showing(box("", "", player("data:audio/flac;base64,AAAA")))).all("audio")
    assert found["src"] == "data:audio/flac;base64,AAAA" and "controls" in found


def test_a_page_stands_in_its_frame_as_it_was_written(
    tmp_path: Path, shown: Callable[[Any], Any]
) -> None:
    page = f'<p title="{HOSTILE[:-2]}">&amp;lt; &quot;</p><script>go("a")</script>'
    path = tmp_path / 'a "b" & <c>.html'
    path.write_text(page)
    (frame,) = shown(Showing(box("", "", framed(path)))).all("iframe")
    assert frame["srcdoc"] == page
    assert frame["sandbox"] == "allow-scripts", "not the notebook's own origin"
    assert frame["title"] == path.name


def test_a_page_that_is_too_large_or_gone_is_named_instead(
    tmp_path: Path, shown: Callable[[Any], Any]
) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(b" " * int(1e6 * MOST_FRAME_MB + 1))
    large = shown(Showing(box("", "", framed(path))))
    assert not large.all("iframe")
    assert f"With 16 MB the page is too large to stand in a notebook. Open {path}" in large.text
    assert "max_mb=14" in large.text
    path.unlink()
    assert f"not at {path} any more" in shown(Showing(box("", "", framed(path)))).text


def test_progress_is_a_bar_on_stderr_and_nothing_where_it_is_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(progress_bar(range(3), desc="hearing", unit="word", show=False)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    assert list(progress_bar(range(3), desc="hearing", unit="word")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == "" and "hearing: 100%" in err and "3/3" in err


def test_progress_is_of_the_kind_that_knows_notebooks() -> None:
    from tqdm.auto import tqdm

    assert isinstance(progress_bar(show=False), tqdm)
