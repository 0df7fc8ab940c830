"""What a study shows: sections of pictures and tables, each with a finding, in one HTML file.

The words are in templates/words.ini; what they say is filled in from the
numbers, so that report.html and report.json say the same.
"""

import configparser
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from markupsafe import Markup
from msgspec import Meta
from typing_extensions import TypedDict

from hooked_whisper.display import count, data_uri, number, percent
from hooked_whisper.errors import ReportError
from hooked_whisper.io import make_folder, read_json, write_whole
from hooked_whisper.reports import page_styles

if TYPE_CHECKING:
    import jinja2
    import matplotlib.figure

TEMPLATES = Path(__file__).parent / "templates"
FORMAT = "hooked_whisper.study/1"
PICTURES = "pictures"
"""Where the pictures are beside the report, each a file of its own too."""
POST = "https://www.lesswrong.com/posts/aXSuc6pdCy6SkeKZk"


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A picture or a table, and the sentence under it.

    Args:
        name: Of the picture's file, and of the exhibit in report.json.
        title: Above it.
        finding: One sentence, with numbers of this run.
        about: What the picture shows, for who cannot see it; or what the table holds.
        layout: `"wide"` for the whole width, `"fold"` for a table that is shown when asked for.
        figure: The picture.
        table: The table, as HTML.
        claim: What the post says about it, whether this run agrees (None: cannot tell), and why.
    """

    name: str
    title: str
    finding: str
    about: str
    layout: str = ""
    figure: "matplotlib.figure.Figure | None" = None
    table: Markup | None = None
    claim: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the study.

    Args:
        name: In report.json.
        title: In report.html.
        about: What was measured and how, in a few sentences.
        numbers: Everything that was found, as JSON has it.
        exhibits: What is shown.
        links: Other pages in the folder, by what they are called.
    """

    name: str
    title: str
    about: str
    numbers: dict[str, Any]
    exhibits: Sequence[Exhibit]
    links: Sequence[tuple[str, str]] = ()

    @property
    def findings(self) -> list[str]:
        """The sentences, in order."""
        return [exhibit.finding for exhibit in self.exhibits]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, findings and claims, as JSON has them."""
        return {
            "numbers": self.numbers,
            "findings": {exhibit.name: exhibit.finding for exhibit in self.exhibits},
            "claims": {each.name: dict(each.claim) for each in self.exhibits if each.claim},
        }


def words(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What words.ini has under a name, filled in with what was found."""
    texts = _words()[name].items()
    return {
        key: " ".join(_environment().from_string(text).render(found).split()) for key, text in texts
    }


def exhibit(
    name: str,
    /,
    *,
    figure: Any = None,
    table: Markup | None = None,
    claim: Mapping[str, Any] | None = None,
    called: str | None = None,
    **found: Any,
) -> Exhibit:
    """An exhibit with its words, filled in with what was found; called otherwise than these."""
    return Exhibit(called or name, **words(name, found), figure=figure, table=table, claim=claim)


def claim(name: str, parts: Mapping[str, bool] | None, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the post says, whether this run agrees, part by part, and why.

    Args:
        name: In words.ini.
        parts: Of each thing that the post says whether it is so here; None where nobody can tell.
        found: The numbers.

    Returns:
        `verdict`: agrees, partly, disagrees or cannot tell; `agrees`: True, None for partly and
        where nobody can tell, False; `parts`, `post` and `because`.
    """
    agree = None if parts is None else set(parts.values())
    verdict = "cannot tell" if agree is None else "partly"
    if agree in ({True}, {False}):
        verdict = "agrees" if agree == {True} else "disagrees"
    agrees = {"agrees": True, "disagrees": False}.get(verdict)
    return {"agrees": agrees, "verdict": verdict, "parts": parts, **words(name, found)}


def section(
    name: str, numbers: dict[str, Any], exhibits: Sequence[Exhibit], **more: Any
) -> Section:
    """A section with its words, filled in with its numbers."""
    return Section(name, **words(name, numbers), numbers=numbers, exhibits=exhibits, **more)


@functools.cache
def _words() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(
        delimiters=("=",), comment_prefixes=("##",), interpolation=None
    )
    parser.read_string((TEMPLATES / "words.ini").read_text(encoding="utf-8"))
    return parser


@functools.cache
def _environment() -> "jinja2.Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default_for_string=False),
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": number, "percent": percent, "count": count}
    return environment


def write_report(
    path: Path,
    about: Mapping[str, Any],
    sections: Sequence[Section],
    skipped: Sequence[Mapping[str, str]],
) -> None:
    """Write the report, and its pictures beside it; about is what report.json begins with."""
    exhibits = [(section, exhibit) for section in sections for exhibit in section.exhibits]
    pictures = {
        exhibit.name: _picture(exhibit, path.parent)
        for _, exhibit in exhibits
        if exhibit.figure is not None
    }
    text = (
        _environment()
        .get_template("report.html")
        .render(
            title=f"A study of the model “{about['model']['name']}”",
            about=about,
            sections=sections,
            skipped=skipped,
            pictures=pictures,
            folder=PICTURES,
            claims=[each for each in exhibits if each[1].claim is not None],
            post=POST,
            css=Markup(page_styles() + (TEMPLATES / "report.css").read_text(encoding="utf-8")),
        )
    )
    write_whole(path, lambda file: file.write(text.encode()))


def _picture(exhibit: Exhibit, folder: Path) -> str:
    """Write an exhibit's picture as a file, and give it as a data URI.

    In 256 colours, where that is smaller: a third of the size, and looks the same.
    """
    from PIL import Image

    assert exhibit.figure is not None
    drawn, smaller = io.BytesIO(), io.BytesIO()
    exhibit.figure.savefig(drawn, format="png")
    with Image.open(drawn) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(smaller, "PNG", optimize=True)
    raw = min(drawn.getvalue(), smaller.getvalue(), key=len)
    make_folder(folder / PICTURES)
    write_whole(folder / PICTURES / f"{exhibit.name}.png", lambda file: file.write(raw))
    return data_uri("image/png", raw)


class SectionNumbers(TypedDict):
    """What report.json has of a section."""

    numbers: dict[str, Any]
    findings: dict[str, str]
    claims: dict[str, dict[str, Any]]


class Numbers(TypedDict):
    """What report.json holds."""

    format: Literal["hooked_whisper.study/1"]
    made: str
    model: dict[str, Any]
    settings: dict[str, Any]
    recordings_digest: str | None
    n_recordings: Annotated[int, Meta(ge=1)]
    n_skipped: Annotated[int, Meta(ge=0)]
    seconds_of_sound: float
    versions: dict[str, str]
    seconds: dict[str, float]
    recordings: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    sections: dict[str, SectionNumbers]


def read_numbers(path: Path) -> dict[str, Any]:
    """What is in report.json.

    Raises:
        ReportError: It cannot be read, or is damaged.
    """
    remedy = "Make the study again, with overwrite=True."
    return dict(read_json(path, Numbers, ReportError, remedy))
