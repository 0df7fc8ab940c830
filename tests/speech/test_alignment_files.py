"""Files of words and phones, as Praat, the Montreal Forced Aligner, NIST and people write them."""

import sys
from pathlib import Path

import pytest

from hooked_whisper.errors import LabelError
from hooked_whisper.speech.alignment_files import read_alignment

WORDS = [[0.1, 0.4, "one"], [0.5, 0.9, "two"]]
PHONES = [[0.1, 0.2, "W"], [0.2, 0.3, "AH"], [0.3, 0.4, "N"]]


def write_grid(path: Path, *, names: tuple[str, str], short: bool, empty: str) -> None:
    """A TextGrid of praatio's, its pauses called `empty`."""
    textgrid = pytest.importorskip("praatio.textgrid", reason="needs the extra `labels`")
    grid = textgrid.Textgrid()
    stressed = [(start, end, "AH1" if phone == "AH" else phone) for start, end, phone in PHONES]
    pauses = [(0, 0.1, empty), (0.4, 0.5, empty)] if empty else []
    for name, rows in zip(names, (WORDS, stressed), strict=True):
        entries = sorted([*map(tuple, rows), *(p for p in pauses if p[1] < 0.5 or rows is WORDS)])
        grid.addTier(textgrid.IntervalTier(name, entries, 0, 1))
    grid.addTier(textgrid.PointTier("clicks", [(0.3, "click")], 0, 1))
    kind = "short_textgrid" if short else "long_textgrid"
    grid.save(str(path), format=kind, includeBlankSpaces=True)


@pytest.mark.parametrize("short", [False, True], ids=["long", "short"])
@pytest.mark.parametrize(
    "names", [("words", "phones"), ("jane - words", "jane - phones"), ("word", "Phone")], ids=str
)
@pytest.mark.parametrize("empty", ["", "<eps>", "sil"], ids=["blank", "<eps>", "sil"])
def test_textgrids(tmp_path: Path, names: tuple[str, str], short: bool, empty: str) -> None:
    write_grid(tmp_path / "clip.TextGrid", names=names, short=short, empty=empty)
    found = read_alignment(tmp_path / "clip.TextGrid")["clip"]
    assert {name.lower(): rows for name, rows in found.items()} == {"word": WORDS, "phone": PHONES}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "start,end,label,tier\n0.5,0.9,two,word\n0.1,0.4,one,word\n0,0.1,_,word\n"),
        ("a.tsv", "begin\tend\tword\n0.1\t0.4\tone\n0.4\t0.5\t<eps>\n0.5\t0.9\ttwo\n"),
        ("a.csv", "Begin,End,Label,Type,Speaker\n0.1,0.4,one,words,x\n0.5,0.9,two,words,x\n"),
        ("a.ctm", ";; by hand\na 1 0.1 0.3 one 0.99\na 1 0.5 0.4 two\n"),
    ],
    ids=["csv", "tsv", "csv of the Montreal Forced Aligner", "ctm"],
)
def test_tables(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_alignment(tmp_path / name)["a"]
    assert found.keys() == {"word"}
    assert [row[:2] for row in found["word"]] == [pytest.approx(row[:2]) for row in WORDS]
    assert [row[2] for row in found["word"]] == ["one", "two"]


def test_a_ctm_holds_several_recordings_and_phones_are_known_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "all.ctm"
    path.write_text("a 1 0.1 0.1 W\nb 1 0.0 0.5 two\na 1 0.2 0.1 AH1\n", encoding="utf-8")
    found = read_alignment(path)
    assert found["a"]["phone"] == [[0.1, 0.2, "W"], [0.2, pytest.approx(0.3), "AH"]]
    assert found["b"] == {"word": [[0.0, 0.5, "two"]]}


def test_what_reads_like_nothing_is_a_word_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("start,end,word\n0,1,nan\n1,2,null\n2,3,NA\n", encoding="utf-8")
    assert [row[2] for row in read_alignment(path)["a"]["word"]] == ["nan", "null", "NA"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "from,to,label\n0,1,x\n", "none of which is the start or the end"),
        ("a.csv", "start,end,label\n1,0.5,x\n", "from 1.0 to 0.5 s, which is no stretch"),
        ("a.csv", "start,end,label\n0,later,x\n", "'0' to 'later' are no times"),
        ("a.csv", "start,end,label\n0,inf,x\n", "no stretch of time"),
        ("a.csv", "", "cannot be read"),
        ("a.ctm", "a 1 0.1\n", "cannot be read"),
        ("a.ctm", "a 1 0.1 long one\n", "no CTM"),
        ("a.TextGrid", "hello", "cannot be read as a TextGrid"),
        ("a.lab", "0 1 x\n", "ends in none of .TextGrid"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(LabelError, match=told) as error:
        read_alignment(tmp_path / name)
    assert len(str(error.value)) < 600


def test_without_praatio_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "praatio", None)
    (tmp_path / "a.TextGrid").write_text("", encoding="utf-8")
    with pytest.raises(LabelError, match=r"pip install 'hooked-whisper\[labels\]'"):
        read_alignment(tmp_path / "a.TextGrid")
