"""How objects show themselves in a notebook, and long work how far it is.

Pieces of HTML that stand for themselves: nothing to fetch, no styles or scripts beside them, no
colours of their own on the notebook's ground, be it light or dark. Where a code host takes
styles and frames away, tables, lists and marked words are still there. Texts go in as texts:
`Markup` escapes whatever is put into it.
"""

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

MOST_FRAME_MB = 16.0
"""Pages above this are named instead of shown: a notebook holds each of its outputs twice."""


def progress_bar(items: Iterable[Any] | None = None, *, show: bool = True, **options: Any) -> Any:
    """tqdm's bar: a widget in notebooks that have ipywidgets, a line on stderr elsewhere.

    Args:
        items: What to go through; None leaves it to `update` to move the bar.
        show: Whether it is seen.
        options: tqdm's: `total`, `desc`, `unit`, ...
    """
    from tqdm.auto import tqdm

    return tqdm(items, disable=not show, **options)


# Words


def json_value(value: Any) -> Any:
    """A value of lists, dictionaries, strings and numbers, with None for what is not finite.

    >>> json_value({1: (float("nan"), 2.0)})
    {'1': [None, 2.0]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return value


def number(value: Any, digits: int | None = None) -> str:
    """A number as it is read, fractions with so many digits after the point; "–" for None and NaN.

    >>> number(51864), number(0.123456), number(float("nan")), number(True)
    ('51,864', '0.1235', '–', 'yes')
    >>> number(1234.5, 2), number(-0.001, 2)
    ('1,234.50', '0.00')
    """
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if digits is None:
        return f"{value:.4g}"
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 in percent.

    >>> percent(0.1234), percent(None)
    ('12.3 %', '–')
    """
    return number(share) if share is None else f"{number(100.0 * share, digits)} %"


def size(n_bytes: int) -> str:
    """Bytes in the unit that they are read in.

    >>> size(999), size(4096), size(3 * 2**29)
    ('999 B', '4.0 KiB', '1.5 GiB')
    """
    amount, units = float(n_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        del units[0]
    return f"{amount:.0f} B" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def count(n: int, what: str) -> str:
    """How many there are of what.

    >>> count(1, "hook"), count(1500, "row")
    ('1 hook', '1,500 rows')
    """
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


# Pieces of HTML


def box(title: str, about: str, *parts: Markup) -> str:
    """All of what an object shows: a line that says what it is, and the parts below it."""
    line = Markup("<p><b>{}</b> {}</p>").format(title, about)
    whole = Markup("<div>{}{}</div>").format(line, Markup("\n").join(parts))
    # Half of a surrogate pair, as in an undecodable file name, cannot be written as UTF-8.
    return str(whole).encode("utf-8", errors="replace").decode("utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], most: int | None = None) -> Markup:
    """A table: numbers stand at the right, and whatever names its row is a heading.

    Args:
        header: Names of the columns; none of them where they name themselves.
        rows: The first cell names the row. Numbers are written as `number` does.
        most: Rows to show at most; a last one says how many more there are.
    """
    sides = [_side(each) for each in max(rows, key=len, default=header)]
    if most is not None and len(rows) > most:
        rows = [*rows[:most], [f"… and {len(rows) - most:,} more"]]
    head = Markup("").join(
        Markup('<th style="text-align:{}">{}</th>').format(side, name)
        for side, name in zip(sides, header, strict=False)
    )
    head = Markup("<thead><tr>{}</tr></thead>").format(head) if header else head
    body = Markup("\n").join(map(_row, rows))
    return Markup("<table>{}<tbody>{}</tbody></table>").format(head, body)


def facts(values: Mapping[str, Any]) -> Markup:
    """What is known, by name, as a table of two columns; None and "" are left out.

    What a mapping holds has a row each, behind the mapping's name and a dot.
    """
    written = {
        name: number(value) if isinstance(value, int | float) else value
        for name, value in _flat(values)
        if not isinstance(value, str | None) or value
    }
    return table([], list(written.items()))


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in _flat(value))
        else:
            yield name, value


def _row(cells: Sequence[Any]) -> Markup:
    first, *others = cells
    head = Markup('<th scope="row" style="text-align:left;font-weight:normal">{}</th>')
    return Markup("<tr>{}{}</tr>").format(head.format(first), Markup("").join(map(_cell, others)))


def _cell(value: Any) -> Markup:
    shown = number(value) if value is None or isinstance(value, int | float) else value
    return Markup('<td style="text-align:{}">{}</td>').format(_side(value), shown)


def _side(value: Any) -> str:
    return "right" if value is None or isinstance(value, int | float) else "left"


def fold(summary: str, *parts: Markup, is_open: bool = False) -> Markup:
    """Parts that a click on the summary shows and hides."""
    return Markup('<details{} style="margin-left:1em"><summary>{}</summary>{}</details>').format(
        Markup(" open") if is_open else "", summary, Markup("\n").join(parts)
    )


def note(text: str) -> Markup:
    """A line of text."""
    return Markup("<p>{}</p>").format(text)


def picture(figure: Any, alt: str) -> Markup:
    """A matplotlib figure, on its own white ground.

    Args:
        figure: As the functions of `hooked_whisper.figures` draw it.
        alt: What is read where it cannot be seen.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png")
    width = round(96 * figure.get_figwidth())
    return Markup('<img src="{}" alt="{}" width="{}" style="max-width:100%;height:auto">').format(
        data_uri("image/png", file.getvalue()), alt, width
    )


def player(uri: str) -> Markup:
    """A player of the sound that a data URI holds."""
    return Markup('<audio controls preload="metadata" src="{}"></audio>').format(uri)


def framed(path: Path, height_px: int = 720) -> Markup:
    """A whole page inside of a notebook, whose scripts cannot reach out of its frame.

    Args:
        path: The page's file, which is put into the notebook; above `MOST_FRAME_MB` it is not.
        height_px: How high it stands.
    """
    if not path.exists():
        return note(f"The page is not at {path} any more.")
    megabytes = path.stat().st_size / 1e6
    if megabytes > MOST_FRAME_MB:
        return note(
            f"With {megabytes:.0f} MB the page is too large to stand in a notebook. Open {path} in "
            f"a browser, or make it with max_mb={MOST_FRAME_MB - 2:.0f}."
        )
    # Only what ends an attribute is escaped: a page is mostly sound, and large.
    page = path.read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    return Markup(
        '<iframe title="{}" sandbox="allow-scripts" width="100%" height="{}" '
        'style="border:1px solid #8888;background:white" srcdoc="{}">The page is in {}.</iframe>'
    ).format(path.name, height_px, Markup(page), path)


def data_uri(kind: str, raw: bytes) -> str:
    """Bytes as an address that holds them.

    >>> data_uri("text/plain", b"hello")
    'data:text/plain;base64,aGVsbG8='
    """
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"
