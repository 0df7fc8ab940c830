"""A page as one file: a template, its data, styles and scripts, with nothing to fetch."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hooked_whisper.errors import InputError
from hooked_whisper.io import write_whole

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"

_DATA_URI = re.compile(r"data:[a-z]+/[a-z0-9.+-]+;base64,[A-Za-z0-9+/]*=*")


def render(
    template: str,
    data: Mapping[str, Any],
    title: str,
    media: Sequence[str] = (),
) -> str:
    """One self-contained HTML file, as text.

    `templates/{template}.html` extends `page.html`. Styles and scripts of
    `static/page.*`, and behind them those of `static/{template}*` by their
    names, stand in the file. The data is there as JSON, which `hw.data` of `page.js` reads; the
    template sees it as `data`. A content security policy forbids every
    connection.

    Args:
        template: Its name without the ending: `"features"`.
        data: What JSON can hold, and numbers that are not finite, which become null.
        title: Of the page; any text.
        media: Data URIs of what is large, which `hw.media(number)` reads when it is needed;
            the page opens without reading them.

    Raises:
        InputError: Data that JSON cannot hold, or media that are no data URIs.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    for uri in media:
        if not _DATA_URI.fullmatch(uri):
            raise InputError(f"{uri[:40]!r}... is no data URI in base64, as media.py makes them.")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        lstrip_blocks=True,
    )
    text: str = environment.get_template(f"{template}.html").render(
        title=title,
        data=data,
        media=[Markup(uri) for uri in media],
        json=Markup(safe_json(data)),
        css=Markup(_static(template, "css")),
        js=Markup(_static(template, "js")),
    )
    # Half of a surrogate pair, as in an undecodable file name, cannot be written as UTF-8.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def write_page(
    path: Path, template: str, data: Mapping[str, Any], title: str, media: Sequence[str] = ()
) -> int:
    """Write what `render` gives, whole or not at all, into a folder that is made; in bytes."""
    encoded = render(template, data, title, media).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(encoded))
    return len(encoded)


def safe_json(data: Any) -> str:
    r"""JSON that can stand in a `<script>` whatever it holds.

    >>> safe_json({"name": "</script>", "value": float("nan")})
    '{"name":"\\u003c/script\\u003e","value":null}'
    """
    try:
        text = json.dumps(plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(f"the page's data cannot be written as JSON: {error}.") from error
    # In JSON these stand inside of strings only; U+2028 and U+2029 end a line in old scripts.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page_styles() -> str:
    """The styles that all pages share, to be put into a page of one's own."""
    return (STATIC / "page.css").read_text(encoding="utf-8")


def plain(value: Any) -> Any:
    """A value of lists, dictionaries, strings and numbers, with None for what is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def _static(template: str, ending: str) -> str:
    """The shared styles or scripts, and the template's own behind them."""
    files = [STATIC / f"page.{ending}", *sorted(STATIC.glob(f"{template}*.{ending}"))]
    texts = [file.read_text(encoding="utf-8") for file in files]
    return "\n".join(texts)
