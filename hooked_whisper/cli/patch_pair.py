"""The two runs of `hooked-whisper patch`, and what is measured on them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hooked_whisper.cli.options import spaced
from hooked_whisper.errors import InputError

METRICS = {
    "logit-difference": "logit of the clean run's token over the corrupted run's",
    "log-prob": "log-probability of the clean run's token, in nats",
    "probability": "probability of the clean run's token",
    "text-log-prob": "log-probability of the whole text, in nats",
    "transcript": "1 where the transcript is the clean one",
    "word-error-rate": "word error rate of the transcript, to the clean one",
}


@dataclass(frozen=True)
class Pair:
    """Two runs on the same tokens.

    Args:
        clean: The run that is right.
        corrupted: The run that is not.
        clean_name: What the first is called.
        corrupted_name: What the second is called.
        metric: What is measured.
        measures: The same in words.
    """

    clean: Any
    corrupted: Any
    clean_name: str
    corrupted_name: str
    metric: Any
    measures: str

    def to_dict(self) -> dict[str, str]:
        """What the pair is, for JSON."""
        names = ("clean_name", "corrupted_name", "measures")
        return {name.removesuffix("_name"): getattr(self, name) for name in names}


def make_pair(
    model: Any,
    clean: Path | None,
    corrupted: Path | None,
    corrupt: str | None,
    corrupt_window: tuple[float, float] | None,
    text: str | None,
    language: str,
    metric: str,
    token: int | None,
) -> Pair:
    """The two runs and the metric; of the shipped recordings where none is named.

    Raises:
        InputError: Both runs predict the same tokens, or there is no such token.
    """
    from hooked_whisper import digits
    from hooked_whisper.interventions import Example

    if clean is None:
        first, second = digits.recordings()[:2]
        clean, text = first.path, text or first.text
        corrupted = None if corrupt else second.path
    spoken = None if text is None else spaced(text)
    right = Example.from_audio(model, clean, spoken, language=language)
    if corrupted is not None:
        wrong = Example(model.to_mel(corrupted), right.tokens)
        name = corrupted.name
    elif corrupt == "silence":
        wrong, name = right.with_silence(corrupt_window), "silence"
    else:
        wrong, name = right.with_white_noise(model, corrupt_window), "noise"
    if corrupted is None and corrupt_window:
        name += " from {:g} to {:g} s".format(*corrupt_window)
    found, measures = _metric(model, right, wrong, metric, token, language)
    return Pair(right, wrong, clean.name, name, found, measures)


def _metric(
    model: Any, right: Any, wrong: Any, metric: str, token: int | None, language: str
) -> tuple[Any, str]:
    """The metric, and what it measures in words."""
    from hooked_whisper import metrics

    n_prompt = model.to_tokens("", language=language).shape[1]
    text = model.to_string(right.tokens)[0].strip()
    if metric == "transcript":
        return metrics.ExactTranscript(text), f"measured is whether the transcript is {text!r}"
    if metric == "word-error-rate":
        wer = metrics.WordErrorRate(text)
        return wer, f"measured is the word error rate to {text!r}"
    if metric == "text-log-prob":
        return (
            metrics.SequenceLogProb(right.tokens, start=n_prompt),
            f"measured is the log-probability of {text!r}",
        )
    place, good, bad = _contrast(model, right, wrong, n_prompt, token, metric)
    names = [repr(model.to_string([[each]])[0]) for each in (good, bad)]
    said = f"measured is {names[0]} as token {place} of the text"
    pos = n_prompt + place - 1
    if metric == "log-prob":
        return metrics.LogProb(good, pos=pos), said
    if metric == "probability":
        return metrics.Probability(good, pos=pos), said
    return metrics.LogitDifference(good, bad, pos=pos), f"{said} against {names[1]}"


def _contrast(
    model: Any, right: Any, wrong: Any, n_prompt: int, token: int | None, metric: str
) -> tuple[int, int, int]:
    """Which token of the text is measured, its id, and what the corrupted run has there."""
    import torch

    with torch.no_grad():
        predicted = model(wrong.mel, right.tokens)[0, n_prompt - 1 : -1].argmax(dim=-1).tolist()
    wanted = right.tokens[0, n_prompt:].tolist()
    if not wanted:
        raise InputError("the clean text is empty; give --text, or another recording.")
    if token is not None and token >= len(wanted):
        raise InputError(f"--token is {token}; the text has tokens 0 to {len(wanted) - 1}.")
    differ = [i for i, pair in enumerate(zip(wanted, predicted, strict=True)) if pair[0] != pair[1]]
    places = differ if token is None else [i for i in differ if i == token]
    if not places and token is not None and metric != "logit-difference":
        places = [token]
    if not places:
        which = "every token" if token is None else f"token {token}"
        raise InputError(
            f"the corrupted run predicts {which} of the clean text too, so that there is nothing "
            "to tell apart. Choose another pair, or --metric log-prob with --token."
        )
    return places[0], wanted[places[0]], predicted[places[0]]
