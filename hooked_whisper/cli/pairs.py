"""Clean and corrupted runs, and what is measured: of two recordings, or of a manifest of many."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt
from hooked_whisper.errors import InputError

METRICS = (
    "logit-difference",
    "log-prob",
    "probability",
    "text-log-prob",
    "transcript",
    "word-error-rate",
)

RUNS = (
    opt.file_argument("clean", required=False),
    opt.file_argument("corrupted", required=False),
    opt.option(
        "--corrupt",
        type=click.Choice(["silence", "noise", "swap"]),
        help="Instead of CORRUPTED. swap: two words in each other's place.",
    ),
    opt.option(
        "--corrupt-window",
        type=(float, float),
        metavar="START END",
        help="The seconds to corrupt.  [default: all]",
    ),
    opt.option("--corrupt-word", help="The word to corrupt, at its own time."),
    opt.option("--swap-with", help="The word that --corrupt swap puts there."),
    opt.option("--text", help="What is said in CLEAN; else the model writes it down."),
    opt.LANGUAGE,
)
"""The two runs."""

MEASURED = (
    opt.option("--metric", type=click.Choice(METRICS), default="logit-difference"),
    opt.option(
        "--token",
        type=opt.COUNT,
        help="Which token of the text is measured, from 0.  [default: the first that differs]",
    ),
    opt.option("--word", help="The word whose first token is measured, instead of --token."),
    opt.option(
        "--at",
        "at_s",
        type=opt.FROM_0,
        metavar="SECONDS",
        help="When it is said: instead of --word, or to tell words alike apart.",
    ),
    opt.HEADS,
)
"""What is measured of them, and how words are timed."""

DIRECTION = opt.option(
    "--direction",
    type=click.Choice(["denoising", "noising"]),
    default="denoising",
    help="Clean activations into the corrupted run, or the other way round.",
)
TOP = opt.option("--top", type=opt.COUNT_FROM_1, default=10, help="Places to print.")

COLUMNS = (
    "corrupted",
    "corrupt",
    "corrupt_word",
    "corrupt_start",
    "corrupt_end",
    "swap_with",
    "word",
    "at",
    "token",
    "metric",
)
"""Columns of a manifest that say for one row what the options say for all."""


def check_runs(args: opt.Options) -> None:
    """Refuse options that do not go together.

    Raises:
        click.UsageError: They do not.
    """
    is_one = args.clean is not None and not holds_pairs(args.clean)
    if holds_pairs(args.clean) and args.corrupted is not None:
        raise click.UsageError("a manifest names its CORRUPTED recordings in a column.")
    if is_one and (args.corrupted is None) == (args.corrupt is None):
        raise click.UsageError("name a CORRUPTED recording, or give --corrupt; one of them.")
    if (args.corrupt_window or args.corrupt_word) and not args.corrupt:
        raise click.UsageError("--corrupt-window and --corrupt-word need --corrupt.")
    if args.corrupt_window and args.corrupt_word:
        raise click.UsageError("give one of --corrupt-window and --corrupt-word.")
    if (args.corrupt == "swap") != (args.swap_with is not None) or (
        args.corrupt == "swap" and args.corrupt_word is None
    ):
        raise click.UsageError("--corrupt swap takes --corrupt-word and --swap-with, two words.")
    if args.token is not None and (args.word is not None or args.at_s is not None):
        raise click.UsageError("give --token, or --word and --at.")


@dataclass(frozen=True)
class PatchRuns:
    """Two runs on the same tokens.

    Args:
        clean: The run that is right.
        corrupted: The run that is not.
        clean_name: What the first is called.
        corrupted_name: What the second is called.
        metric: What is measured.
        measures: The same in words.
        audio: The clean recording.
    """

    clean: Any
    corrupted: Any
    clean_name: str
    corrupted_name: str
    metric: Any
    measures: str
    audio: Any = None


def make_pair(model: Any, args: opt.Options) -> PatchRuns:
    """The two runs and the metric; of the shipped recordings where none is named.

    Raises:
        InputError: Both runs predict the same tokens, or there is no such token.
    """
    from hooked_whisper import digits
    from hooked_whisper.interventions import Example
    from hooked_whisper.interventions.aligned_words import choose_word, spoken_words

    clean, corrupted, text = args.clean, args.corrupted, args.text
    if clean is None:
        first, second = digits.recordings()[:2]
        clean, text = first.path, text or first.text
        corrupted = None if args.corrupt else second.path
    spoken = None if text is None else opt.spaced(text)
    right = Example.from_audio(model, clean, spoken, language=args.language)
    window, words = args.corrupt_window, []
    named = (args.corrupt_word, args.word, args.at_s)
    if any(each is not None for each in named):
        words = spoken_words(model, right, model.to_tokens("").shape[1])
    if args.corrupt_word is not None:
        word = choose_word(words, args.corrupt_word, args.at_s)
        window = word.window_s
        if args.word is None:  # what is measured, unless told otherwise
            args.word, args.at_s = word.word, sum(window) / 2
    if corrupted is not None:
        wrong, name = Example(model.to_mel(corrupted), right.tokens), corrupted.name
    elif args.corrupt == "swap":
        other = choose_word(words, args.swap_with, None)
        wrong, name = right.swapped(window, other.window_s), f"{other.word!r} swapped in"
    elif args.corrupt == "silence":
        wrong, name = right.with_silence(window), "silence"
    else:
        wrong, name = right.with_white_noise(model, window), "noise"
    if corrupted is None and window:
        name += f" from {window[0]:.4g} to {window[1]:.4g} s"
    if args.word is not None or args.at_s is not None:
        args.token = choose_word(words, args.word, args.at_s).token
    metric, measures = _metric(model, right, wrong, args)
    return PatchRuns(right, wrong, clean.name, name, metric, measures, clean)


def _metric(model: Any, right: Any, wrong: Any, args: opt.Options) -> tuple[Any, str]:
    """The metric, and what it measures in words."""
    from hooked_whisper import metrics
    from hooked_whisper.model.language import language_of_tokens

    n_prompt = model.to_tokens("").shape[1]
    text = model.to_string(right.tokens)[0].strip()
    spoken = language_of_tokens(model.cfg, right.tokens[0].tolist())
    if args.metric == "transcript":
        exact = metrics.ExactTranscript(text, "auto", spoken)
        return exact, f"measured is whether the transcript is {text!r}"
    if args.metric == "word-error-rate":
        rate = metrics.WordErrorRate(text, language=spoken)
        return rate, f"measured is the word error rate to {text!r}"
    if args.metric == "text-log-prob":
        whole = metrics.SequenceLogProb(right.tokens, start=n_prompt)
        return whole, f"measured is the log-probability of {text!r}"
    place, good, bad = _contrast(model, right, wrong, n_prompt, args)
    names = [repr(model.to_string([[token]])[0]) for token in (good, bad)]
    measures = f"measured is {names[0]} as token {place} of the text"
    pos = n_prompt + place - 1
    if args.metric == "log-prob":
        return metrics.LogProb(good, pos=pos), measures
    if args.metric == "probability":
        return metrics.Probability(good, pos=pos), measures
    return metrics.LogitDifference(good, bad, pos=pos), f"{measures} against {names[1]}"


def _contrast(
    model: Any, right: Any, wrong: Any, n_prompt: int, args: opt.Options
) -> tuple[int, int, int]:
    """Which token of the text is measured, its id, and what the corrupted run has there."""
    import torch

    with torch.no_grad():
        predicted = model(wrong.mel, right.tokens)[0, n_prompt - 1 : -1].argmax(dim=-1).tolist()
    wanted = right.tokens[0, n_prompt:].tolist()
    token: int | None = args.token
    if not wanted:
        raise InputError("the clean text is empty; give --text, or another recording.")
    if token is not None and token >= len(wanted):
        raise InputError(f"--token is {token}; the text has tokens 0 to {len(wanted) - 1}.")
    differ = [i for i, pair in enumerate(zip(wanted, predicted, strict=True)) if pair[0] != pair[1]]
    places = differ if token is None else [i for i in differ if i == token]
    if not places and token is not None and args.metric != "logit-difference":
        places = [token]
    if not places:
        which = "every token" if token is None else f"token {token}"
        raise InputError(
            f"the corrupted run predicts {which} of the clean text too, so that there is nothing "
            "to tell apart. Choose another pair, or --metric log-prob with --token."
        )
    return places[0], wanted[places[0]], predicted[places[0]]


def holds_pairs(path: Path | None) -> bool:
    """Whether a path is a manifest or a folder, and not one recording."""
    from hooked_whisper.data.sources import MANIFESTS

    return path is not None and (path.is_dir() or path.suffix.lower() in MANIFESTS)


def make_pairs(model: Any, args: opt.Options) -> list[PatchRuns]:
    """The pair of CLEAN and CORRUPTED, or those of the manifest or folder that CLEAN is.

    What a row of a manifest says in `COLUMNS`, `text` and `language` goes before the options.
    A `corrupted` recording is relative to the manifest, as the clean one is.

    Raises:
        InputError: A pair that cannot be made; the error names its row.
    """
    if not holds_pairs(args.clean):
        return [make_pair(model, args)]
    from hooked_whisper.data.sources import as_recordings

    found = []
    for number, recording in enumerate(as_recordings(args.clean)):
        try:
            row = _options_of(args, recording)
            check_runs(row)
            found.append(make_pair(model, row))
        except (InputError, click.UsageError) as error:
            raise InputError(f"pair {number}, {recording.id}: {error}") from error
    return found


def _options_of(args: opt.Options, recording: Any) -> opt.Options:
    """The options as they are for one row of a manifest."""
    said = {name: recording.labels.get(name) for name in COLUMNS}
    said = {name: value for name, value in said.items() if value not in (None, "")}
    row: dict[str, Any] = dict(vars(args)) | {"clean": Path(recording.audio)}
    row["text"] = args.text if recording.text in (None, "") else recording.text
    row["language"] = recording.labels.get("language") or args.language
    if said.get("corrupt") not in (None, "silence", "noise", "swap"):
        raise InputError(f"corrupt is {said['corrupt']!r}; it can be silence, noise or swap.")
    start, end = said.pop("corrupt_start", None), said.pop("corrupt_end", None)
    if (start is None) != (end is None):
        raise InputError("give corrupt_start and corrupt_end together.")
    try:
        if start is not None and end is not None:
            row["corrupt_window"] = (float(start), float(end))
        if "at" in said:
            row["at_s"] = float(said.pop("at"))
        if "token" in said:
            row["token"] = int(said.pop("token"))
    except ValueError as error:
        raise InputError(f"a time or token is no number: {error}.") from error
    if "corrupted" in said:
        folder = args.clean if args.clean.is_dir() else args.clean.parent
        row["corrupted"], row["corrupt"] = folder / said.pop("corrupted"), None
    return opt.Options(**(row | said))


def say_pairs(pairs: Sequence[PatchRuns], args: opt.Options) -> None:
    """A remark on each pair."""
    for pair in pairs:
        args.note(f"clean: {pair.clean_name}; corrupted: {pair.corrupted_name}; {pair.measures}.")


def example_of(model: Any, recording: Any, language: str | None) -> Any:
    """The example of a recording and its text; where there is none, of what the model writes.

    Raises:
        InputError: It writes nothing.
    """
    from hooked_whisper.interventions import Example

    text = opt.spaced(recording.text or "") or None
    spoken = recording.labels.get("language") or language
    example = Example.from_audio(model, recording.audio, text, language=spoken)
    if example.n_pos == model.to_tokens("").shape[1]:
        raise InputError(f"{recording.id} has no text, and the model writes none; leave it out.")
    return example
