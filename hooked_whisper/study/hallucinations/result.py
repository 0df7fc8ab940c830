"""What a study of hallucinations found: its tables, how they show themselves, and the file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict

from hooked_whisper.display import box, fold, json_value, note, percent, table
from hooked_whisper.errors import ReportError
from hooked_whisper.io import as_path, read_json
from hooked_whisper.study.folder import NUMBERS, REPORT

if TYPE_CHECKING:
    import pandas

FORMAT = "hooked_whisper.hallucinations/1"
Rows = Sequence[Mapping[str, Any]]
TABLES = ("rates", "edits", "heads", "layers", "latents", "tried", "sounds")


@dataclass(frozen=True, eq=False)
class HallucinationStudy:
    """What a model writes where nobody speaks, what carries it, and which edits stop it.

    Shares are of 1, margins in logits: how far the end of the text lies above every other token
    behind the prompt (`EndMargin`); above 0 nothing is written. Each table is a list of rows:

        rates    by kind of sound: `n`, `raw` (any text), `words` (a text with a word), `gated`
                 (left by this package's gate), `openai` (left by openai-whisper's), `loops`
        edits    the edit that each family chose, judged on the other half: rate before and
                 after, its interval, word error rate before and after, its rise and interval,
                 whether it `passes` (on both halves), and the rates of its controls at random
        heads    change of the margin with each head zeroed, on sounds and on speech
        layers   for each site how well a direction tells sounds from speech on the judging half
                 (AUROC); and of each layer's parts, zeroed, the change of the margin
        latents  those with the greatest effect on the margin
        tried    every edit that was tried on the choosing half
        sounds   every clip without speech: text, gates, probabilities

    Args:
        folder: Where the page and the numbers are.
        about: Model, settings, numbers of clips, versions.
        rates: See above.
        edits: See above.
        heads: See above.
        layers: See above.
        latents: See above.
        tried: See above.
        sounds: See above.
    """

    folder: Path
    about: Mapping[str, Any]
    rates: Rows
    edits: Rows
    heads: Rows
    layers: Rows
    latents: Rows
    tried: Rows
    sounds: Rows

    @property
    def report(self) -> Path:
        """The page to look at and listen to."""
        return self.folder / REPORT

    @property
    def numbers(self) -> Path:
        """Every number, as JSON."""
        return self.folder / NUMBERS

    @property
    def findings(self) -> list[str]:
        """What was found, a sentence each."""
        every = next(row for row in self.rates if row["kind"] == "all sounds")
        found = [
            f"Of {every['n']} sounds without speech {percent(every['raw'])} get a text, "
            f"{percent(every['gated'])} behind this package's gate and {percent(every['openai'])} "
            f"behind openai-whisper's; {percent(every['loops'])} of the texts loop."
        ]
        if self.heads:
            head = max(self.heads, key=lambda row: row["sounds"])
            found.append(
                f"Of all heads {head['head']} holds the text up most: without it the end of the "
                f"text rises by {head['sounds']:.2f} logits on sounds, and by "
                f"{head['speech']:.2f} on speech."
            )
        for row in self.edits:
            judged = "passes" if row["passes"] else "fails"
            found.append(
                f"{row['family']}: {row['edit']}: {percent(row['rate_before'])} -> "
                f"{percent(row['rate'])} of {row['n']} sounds, word error rate "
                f"{percent(row['wer_before'])} -> {percent(row['wer'])}: {judged}; at random "
                f"{', '.join(percent(rate) for rate in row['random_rates'])}."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """What is in report.json."""
        found = {name: [dict(row) for row in getattr(self, name)] for name in TABLES}
        plain: dict[str, Any] = json_value({"format": FORMAT, "about": self.about, **found})
        return plain

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "HallucinationStudy":
        """What a study left in a folder.

        Raises:
            ReportError: There is none, or it is damaged.
        """
        path = as_path(folder, ReportError)
        remedy = "Make the study again, with overwrite=True."
        found = read_json(path / NUMBERS, _Numbers, ReportError, remedy)
        return cls(path, found["about"], **{name: found[name] for name in TABLES})

    def to_dataframe(self, name: str = "edits") -> "pandas.DataFrame":
        """One of the tables.

        Raises:
            ReportError: There is no such table.
        """
        import pandas

        if name not in TABLES:
            raise ReportError(f"there is no table {name!r}; there are {', '.join(TABLES)}.")
        return pandas.DataFrame([dict(row) for row in getattr(self, name)])

    def __repr__(self) -> str:
        passed = sum(bool(row["passes"]) for row in self.edits)
        return (
            f"HallucinationStudy({str(self.report)!r}, {len(self.sounds)} sounds, {passed} of "
            f"{len(self.edits)} edits pass)"
        )

    def _repr_html_(self) -> str:
        parts = [note(finding) for finding in self.findings]
        for name in TABLES:
            if rows := getattr(self, name):
                shown = shown_table(rows, 100)
                parts.append(fold(name, shown, is_open=name in ("rates", "edits")))
        return box(type(self).__name__, str(self.report), *parts)


class _Numbers(TypedDict):
    format: Literal["hooked_whisper.hallucinations/1"]
    about: dict[str, Any]
    rates: list[dict[str, Any]]
    edits: list[dict[str, Any]]
    heads: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    latents: list[dict[str, Any]]
    tried: list[dict[str, Any]]
    sounds: list[dict[str, Any]]


def shown_table(rows: Rows, most: int | None = None) -> Any:
    """Rows as a table of HTML."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return table(
        [name.replace("_", " ") for name in names],
        [[_shown(row.get(name)) for name in names] for row in rows],
        most,
    )


def _shown(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ", ".join(f"{each:.3g}" if isinstance(each, float) else str(each) for each in value)
    return value
