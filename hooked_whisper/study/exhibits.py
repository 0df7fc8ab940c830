"""What a study shows: pictures and tables, each with a sentence of what was found, and the claims.

A section's numbers are plain JSON. Sentences are made from these numbers, by
`number`, so that report.html and report.json say the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hooked_whisper.display import json_value

if TYPE_CHECKING:
    import matplotlib.figure


@dataclass(frozen=True)
class Claim:
    """Something that the post says, held against this run.

    Args:
        says: What the post says, in its words or close to them.
        agrees: Whether this run finds it too; None where it cannot tell.
        because: What decides, with the numbers.
    """

    says: str
    agrees: bool | None
    because: str

    @property
    def verdict(self) -> str:
        """One or two words."""
        return {True: "agrees", False: "disagrees", None: "cannot tell"}[self.agrees]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "post": self.says,
            "agrees": self.agrees,
            "verdict": self.verdict,
            "because": self.because,
        }


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers.

    Args:
        columns: Their names, with units.
        rows: As many cells as columns each.
        caption: What the table holds.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str

    @property
    def of_numbers(self) -> list[bool]:
        """Which columns hold numbers, as far as their cells hold anything."""
        return [all(_is_number(row[i]) for row in self.rows) for i in range(len(self.columns))]


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A picture or a table, and the sentence under it.

    Args:
        name: Of the picture's file, and of the exhibit in report.json.
        title: Above it.
        finding: One sentence, with numbers of this run.
        figure: The picture.
        alt: What the picture shows, for who cannot see it.
        table: The table.
        claim: What the post says about it.
        fold: Show the table only when it is asked for.
        wide: Give it the whole width.
    """

    name: str
    title: str
    finding: str
    figure: "matplotlib.figure.Figure | None" = None
    alt: str = ""
    table: Table | None = None
    claim: Claim | None = None
    fold: bool = False
    wide: bool = False

    @property
    def is_wide(self) -> bool:
        """Whether it needs the whole width of the report."""
        return self.wide or (self.table is not None and len(self.table.columns) > 4)


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
    exhibits: Sequence[Exhibit] = ()
    links: Sequence[tuple[str, str]] = field(default=())

    @property
    def findings(self) -> list[str]:
        """The sentences, in order."""
        return [each.finding for each in self.exhibits]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, findings and claims, as JSON has them."""
        return {
            "numbers": json_value(self.numbers),
            "findings": {each.name: each.finding for each in self.exhibits},
            "claims": {each.name: each.claim.to_dict() for each in self.exhibits if each.claim},
        }


def number(value: float | int | None, digits: int = 2) -> str:
    """A number as a reader wants it: so many digits after the point, "none" for what is none.

    >>> number(1234.5678), number(0.5, 3), number(-0.001), number(7), number(float("nan"))
    ('1,234.57', '0.500', '0.00', '7', 'none')
    """
    if value is None or not math.isfinite(value):
        return "none"
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:,.{digits}f}"
    return text.replace("-", "") if float(text.replace(",", "")) == 0 else text


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 in percent.

    >>> percent(0.1234)
    '12.3 %'
    """
    return "none" if share is None else f"{number(100.0 * share, digits)} %"


def _is_number(cell: Any) -> bool:
    text = str(cell).removesuffix(" %").replace(",", "").lstrip("-")
    return text in ("", "none", "not said") or text.replace(".", "", 1).isdigit()
