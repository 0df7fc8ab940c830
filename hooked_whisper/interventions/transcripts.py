"""What edits do to transcripts: before, after, and the word error rate between."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from hooked_whisper.config import SAMPLE_RATE_HZ
from hooked_whisper.display import box, count, progress_bar, table
from hooked_whisper.errors import AudioError, InterventionError
from hooked_whisper.interventions.edits import Edit, Interventions
from hooked_whisper.metrics.transcripts import Repetition
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.audio import load_audio
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.wer import Normalize, normalizer, word_error_rate

if TYPE_CHECKING:
    import pandas

NO_EDITS = "none"
"""What tables call the run without edits."""

_MOST_ROWS = 100
"""Rows that a notebook shows."""
_SILENCE = 1e-3
"""Recordings whose loudest sample is under this, -60 dB of full scale, hold no speech."""


@dataclass(frozen=True)
class TranscriptComparison:
    """Transcripts without and with edits; `print` shows them as a table, a notebook marks words.

    Args:
        recordings: Names of the recordings.
        before: Their transcripts without edits.
        after: Their transcripts with each set of edits, by its name.
        references: What is said in each; "" for nothing, None where unknown.
        is_silent: Which recordings hold no speech: the reference is "", or the
            loudest sample is under -60 dB of full scale.
        normalize: What is done to texts before words are compared.
        languages: What is spoken in each, for that; None is English.
    """

    recordings: tuple[str, ...]
    before: tuple[str, ...]
    after: Mapping[str, tuple[str, ...]]
    references: tuple[str | None, ...]
    is_silent: tuple[bool, ...]
    normalize: Normalize = field(repr=False, default="auto")
    languages: tuple[str | None, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One row for each recording and set of edits, that of no edits first.

        Each has the keys

            recording        its name
            edits            the name of the edits; "none" without
            text             the transcript
            reference        what is said, or None
            word_error_rate  of the text, against the reference
            change           the word error rate of the text against that without edits
            invented_words   words written where there is silence
            repetition       share of three-word runs that came before in the text

        An error rate is NaN without a reference; with an empty one it is 0 for
        an empty text and NaN for another, whose words `invented_words` counts.
        """
        rows = []
        for i, recording in enumerate(self.recordings):
            for edits, texts in {NO_EDITS: self.before, **self.after}.items():
                text, reference = texts[i], self.references[i]
                rows.append(
                    {
                        "recording": recording,
                        "edits": edits,
                        "text": text,
                        "reference": reference,
                        "word_error_rate": self._error_rate(i, reference, text),
                        "change": self._error_rate(i, self.before[i], text),
                        "invented_words": len(self._words(text)) if self.is_silent[i] else 0,
                        "repetition": Repetition()(text),
                    }
                )
        return rows

    def to_dataframe(self) -> "pandas.DataFrame":
        """`rows()` as a table of pandas."""
        import pandas

        return pandas.DataFrame(self.rows())

    def _columns(self) -> dict[str, str]:
        """What is shown of each row, and what it is called."""
        columns = {"recording": "recording", "edits": "edits", "text": "text"}
        if any(reference is not None for reference in self.references):
            columns["word_error_rate"] = "WER"
        columns["change"] = "change"
        if any(self.is_silent):
            columns["invented_words"] = "invented"
        return columns

    def __repr__(self) -> str:
        n = count(len(self.recordings), "recording")
        return f"TranscriptComparison({n}, edits: {', '.join(map(repr, self.after))})"

    def __str__(self) -> str:
        shown = self._columns()
        titles = list(shown.values())
        lines = [titles, *([_cell(row[name]) for name in shown] for row in self.rows())]
        widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        """Transcripts, one below the other: words lost to edits struck out, new ones underlined."""
        columns = self._columns()
        rows: list[list[Any]] = []
        before = ""
        for row in self.rows():
            if row["edits"] != NO_EDITS:
                row["text"] = mark_words(before, row["text"], normalizer(self.normalize))
            else:
                before = row["text"]
                if row["reference"] is not None:
                    rows.append([row["recording"], "(what is said)", row["reference"]])
            rows.append([row[name] for name in columns])
        n = count(len(self.recordings), "recording")
        about = f"{n}; words are marked where they differ from those without edits"
        return box(type(self).__name__, about, table(list(columns.values()), rows, most=_MOST_ROWS))

    def _words(self, text: str) -> list[str]:
        return normalizer(self.normalize)(text).split()

    def _error_rate(self, row: int, reference: str | None, text: str) -> float:
        if reference is None:
            return math.nan
        language = self.languages[row] if self.languages else None
        return word_error_rate(reference, text, self.normalize, language)


def compare_transcripts(
    model: HookedWhisper,
    audio: Any,
    edits: Edit | Sequence[Edit] | Mapping[str, Edit | Sequence[Edit]],
    references: str | Sequence[str | None] | None = None,
    *,
    rate_hz: float | int | None = None,
    normalize: Normalize = "auto",
    progress: bool = True,
    **decode_options: Any,
) -> TranscriptComparison:
    """Transcribe recordings without edits and with them.

    Args:
        model: The model.
        audio: A recording of any length for `model.transcribe`: a path, or an
            array; or a list of these. A `Mel` of windows goes to
            `model.generate`, all at once.
        edits: One edit or several that act together; or several such sets,
            each with its name.
        references: What is said in each recording; "" where nothing is.
        rate_hz: Sampling rate of arrays, 16 kHz by default.
        normalize: What is done to texts before their words are compared; see
            `speech.wer.Normalize`.
        progress: Show a progress bar.
        decode_options: For `transcribe` or `generate`. The temperature is 0,
            without openai-whisper's random retries, unless given.

    Raises:
        InterventionError: No edits, or as many references as there are no recordings.
        AudioError: No recordings, or unusable ones.
    """
    sets = _named(model, edits)
    names, inputs, is_silent = _prepare(audio, rate_hz)
    references = _references(references, len(names))
    options = {"temperature": 0.0, **decode_options}
    n_runs = len(inputs) * (1 + len(sets))
    languages: list[str | None] = []
    with progress_bar(total=n_runs, desc="transcripts", unit="run", show=progress) as bar:

        def run(chosen: Interventions) -> tuple[str, ...]:
            texts: list[str] = []
            for each in inputs:
                with chosen:
                    found = _transcribe(model, each, options)
                texts += [text for text, _ in found]
                languages.extend(language for _, language in found)
                bar.update()
            return tuple(texts)

        before = run(Interventions(model))
        after = {name: run(chosen) for name, chosen in sets.items()}
    silent = tuple(
        quiet or (reference is not None and not reference.strip())
        for quiet, reference in zip(is_silent, references, strict=True)
    )
    normalizer(normalize)  # refuses one that there is not
    spoken = tuple(languages[: len(before)])
    return TranscriptComparison(names, before, after, references, silent, normalize, spoken)


def mark_words(before: str, after: str, normalize: Callable[[str], str] = str) -> Markup:
    """A text in which words that an earlier one had are struck out, and new ones underlined.

    Args:
        before: The earlier text.
        after: The text.
        normalize: What is done to each word before it is compared.

    Source: The alignment of `jiwer.process_words`, with the fewest changes of words.

    >>> print(mark_words("three one four", "three nine four"))
    three <del>one</del> <ins>nine</ins> four
    """
    import jiwer

    old, new = before.split(), after.split()

    def keys(words: list[str]) -> str:
        return " ".join("".join(normalize(word).split()) or word for word in words)

    pieces: list[Markup] = []
    for chunk in jiwer.process_words(keys(old), keys(new)).alignments[0]:
        lost = " ".join(old[chunk.ref_start_idx : chunk.ref_end_idx])
        found = " ".join(new[chunk.hyp_start_idx : chunk.hyp_end_idx])
        if chunk.type == "equal":
            pieces.append(escape(found))
            continue
        pieces += [Markup("<del>{}</del>").format(lost)] if lost else []
        pieces += [Markup("<ins>{}</ins>").format(found)] if found else []
    return Markup(" ").join(pieces)


def _named(model: HookedWhisper, edits: Any) -> dict[str, Interventions]:
    """The sets of edits by name, all checked."""
    named = edits if isinstance(edits, Mapping) else {"edited": edits}
    if not named:
        raise InterventionError("there are no edits to compare. Pass at least one.")
    sets = {}
    for name, each in named.items():
        if name == NO_EDITS:
            raise InterventionError(
                f"a set of edits is called {NO_EDITS!r}, which is the run without edits. "
                "Give it another name."
            )
        each = [each] if isinstance(each, Edit) else each
        if not isinstance(each, Sequence) or not each:
            raise InterventionError(f"{name!r} is {each!r}; it must be an edit, or a list of them.")
        sets[name] = Interventions(model, *each)
        _ = sets[name].fwd_hooks  # refuses what cannot be done, before anything runs
    return sets


def _prepare(audio: Any, rate_hz: Any) -> tuple[tuple[str, ...], list[Any], list[bool]]:
    """The names of recordings, what to run on, and which of them are silent."""
    if isinstance(audio, Mel):
        flat = audio.values.flatten(1)
        silent = (flat.amax(dim=1) - flat.amin(dim=1) < 1e-6).tolist()
        return tuple(map(str, range(len(audio)))), [audio], silent
    several: list[Any] = audio if isinstance(audio, list) else [audio]
    if not several:
        raise AudioError("the list of audio is empty; pass at least one recording.")
    names, inputs = [], []
    for i, each in enumerate(several):
        is_file = isinstance(each, str | Path)
        names.append(Path(each).name if is_file else str(i))
        rate = None if is_file or isinstance(each, tuple) else rate_hz or SAMPLE_RATE_HZ
        inputs.append(load_audio(each, rate))
    return tuple(names), inputs, [bool(each.abs().max() < _SILENCE) for each in inputs]


def _references(references: Any, n: int) -> tuple[str | None, ...]:
    if references is None:
        return (None,) * n
    several = [references] if isinstance(references, str) else list(references)
    if len(several) != n:
        raise InterventionError(
            f"{len(several)} references and {n} recordings do not match. Pass one for each, None "
            'where it is unknown, "" where nothing is said.'
        )
    return tuple(several)


def _transcribe(
    model: HookedWhisper, recording: Any, options: dict[str, Any]
) -> list[tuple[str, str | None]]:
    """Texts with their languages."""
    if isinstance(recording, Mel):
        written = model.generate(recording, **options)
        return [*zip(written.texts, written.languages, strict=True)]
    found = model.transcribe(recording, **options)
    return [(str(found["text"]).strip(), found.get("language"))]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.2f}"
    return str(value)
