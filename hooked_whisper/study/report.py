"""The report: one HTML file with its pictures, tables and findings."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hooked_whisper.io import write_whole
from hooked_whisper.reports.html import STATIC
from hooked_whisper.study.exhibits import Exhibit, Section, number

TEMPLATES = Path(__file__).parent / "templates"
PICTURES = "pictures"
"""Where the pictures are beside the report, each a file of its own too."""
POST = "https://www.lesswrong.com/posts/aXSuc6pdCy6SkeKZk"


def write_report(
    path: Path,
    about: Mapping[str, Any],
    sections: Sequence[Section],
    skipped: Sequence[Mapping[str, str]],
) -> None:
    """Write the report, and its pictures beside it.

    Args:
        path: The file.
        about: What was studied and with what, as report.json has it.
        sections: What was found.
        skipped: Recordings that could not be used, with `id` and `reason`.

    Raises:
        StoreWriteError: The disk is full, or forbids it.
    """
    shown = {
        each.name: _picture(each, path.parent)
        for section in sections
        for each in section.exhibits
        if each.figure is not None
    }
    text = render_report(about, sections, skipped, shown)
    write_whole(path, lambda file: file.write(text.encode()))


def render_report(
    about: Mapping[str, Any],
    sections: Sequence[Section],
    skipped: Sequence[Mapping[str, str]],
    pictures: Mapping[str, str],
) -> str:
    """The report as text.

    Args:
        about, sections, skipped: As in `write_report`.
        pictures: Data URIs by the exhibits' names.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    styles = [STATIC / "page.css", TEMPLATES / "report.css"]
    claims = [
        (section, each)
        for section in sections
        for each in section.exhibits
        if each.claim is not None
    ]
    return environment.get_template("report.html").render(
        title=f"A study of the model “{about['model']['name']}”",
        about=about,
        sections=sections,
        skipped=skipped,
        pictures=pictures,
        folder=PICTURES,
        claims=claims,
        number=number,
        post=POST,
        css=Markup("\n".join(file.read_text(encoding="utf-8") for file in styles)),
    )


def _picture(exhibit: Exhibit, folder: Path) -> str:
    """Write an exhibit's picture as a file, and give it as a data URI."""
    assert exhibit.figure is not None
    buffer = io.BytesIO()
    exhibit.figure.savefig(buffer, format="png")
    raw = smaller(buffer.getvalue())
    (folder / PICTURES).mkdir(exist_ok=True)
    write_whole(folder / PICTURES / f"{exhibit.name}.png", lambda file: file.write(raw))
    return f"data:image/png;base64,{base64.b64encode(raw).decode()}"


def smaller(png: bytes) -> bytes:
    """The same picture in 256 colours, which is a third of the size and looks the same."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(buffer, "PNG", optimize=True)
    return min(png, buffer.getvalue(), key=len)
