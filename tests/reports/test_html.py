"""Pages stand in one file, and hold whatever users call their things."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper.display import json_value
from hooked_whisper.errors import InputError
from hooked_whisper.reports.html import render, safe_json

NASTY = "</script><script>alert(1)</script><!-- & \u2028 'x\" \ud800"


def page(**data: Any) -> str:
    """The shared page with nothing but data."""
    return render("page", data, title=NASTY)


def test_data_comes_back_whatever_it_holds(
    tmp_path: Path, read_data: Callable[[Path], Any]
) -> None:
    (tmp_path / "page.html").write_text(page(name=NASTY, n=[1, None, 2.5]), encoding="utf-8")
    data = read_data(tmp_path / "page.html")
    assert data["name"] == NASTY.replace("\ud800", "?")
    assert data["n"] == [1, None, 2.5]


def test_nothing_of_the_data_or_the_title_is_markup() -> None:
    tags, texts = [], []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.handle_data = texts.append  # type: ignore[method-assign]
    parser.feed(page(name=NASTY))
    assert tags.count("script") == 2, "the page's own: its data and its code"
    assert "alert(1)" not in texts, "no script of its own"
    assert texts.count(NASTY.replace("\ud800", "?")) == 2, "the title, whole, and the heading"


def test_numbers_that_json_lacks_are_null() -> None:
    found = json_value({1: float("inf"), "x": (float("nan"), 1.0)})
    assert found == {"1": None, "x": [None, 1.0]}
    assert safe_json(float("-inf")) == "null"


def test_data_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be written as JSON: Object of type set"):
        page(name={1, 2})


def test_only_data_uris_stand_beside_the_data() -> None:
    text = render("page", {}, "x", media=["data:audio/mpeg;base64,AAA=", "data:image/webp;base64,"])
    assert '<script type="text/plain" id="media-0">data:audio/mpeg;base64,AAA=</script>' in text
    with pytest.raises(InputError, match="is no data URI in base64"):
        render("page", {}, "x", media=["data:text/plain;base64,</script>"])


def test_a_page_fetches_nothing_and_says_what_it_is() -> None:
    text = page()
    assert '<html lang="en">' in text and "<title>" in text
    assert "default-src 'none'" in text
    outside = re.findall(r"(?:src|href)=[\"'](?!data:|#)[^\"']*", text)
    assert outside == []
    assert re.findall(r"https?://|@import|url\(", text) == []
