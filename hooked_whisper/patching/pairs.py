"""Runs and metrics as a user gives them, sorted out: one row and one metric at a time."""

from collections.abc import Sequence
from typing import Any, Literal

from hooked_whisper.errors import AlignmentError, InterventionError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.interventions.examples import Example, check_pair
from hooked_whisper.metrics.base import as_metric
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.tokens import check_tokens

Direction = Literal["denoising", "noising"]
Corrupted = Example | Sequence[Example] | WhisperCache | Literal["zero"]


def pair_up(
    model: HookedWhisper, clean: Any, corrupted: Any, direction: str
) -> list[tuple[Example, Example | WhisperCache | None]]:
    """The run to patch and what to put into it, for each pair."""
    check_direction(direction)
    rights = one_by_one(model, clean)
    if isinstance(corrupted, WhisperCache) or corrupted == "zero":
        if direction == "denoising":
            raise InterventionError(
                "activations of no run can only be put into the clean run; pass direction="
                '"noising".'
            )
        source = corrupted if isinstance(corrupted, WhisperCache) else None
        return [(right, source) for right in rights]
    wrongs = one_by_one(model, corrupted)
    if len(rights) != len(wrongs):
        raise AlignmentError(
            f"{len(rights)} clean runs and {len(wrongs)} corrupted ones cannot be paired."
        )
    for right, wrong in zip(rights, wrongs, strict=True):
        check_pair(model, right, wrong)
    if direction == "denoising":
        return list(zip(wrongs, rights, strict=True))
    return list(zip(rights, wrongs, strict=True))


def check_direction(direction: Any) -> None:
    """Refuse what is neither denoising nor noising.

    Raises:
        InterventionError: It, and what it can be.
    """
    if direction not in ("denoising", "noising"):
        raise InterventionError(
            f'direction is {direction!r}; it can be "denoising", the clean run into the corrupted '
            'one, or "noising", the other way round.'
        )


def one_by_one(model: HookedWhisper, examples: Any) -> list[Example]:
    """Each row as an example of its own."""
    found = [examples] if isinstance(examples, Example) else examples
    if not isinstance(found, Sequence) or not all(isinstance(each, Example) for each in found):
        raise InterventionError(
            f"{type(examples).__name__} given; pass an Example or a list of them: "
            "Example.from_audio(model, path)."
        )
    rows = [
        Example(example.mel[i], example.tokens[i : i + 1])
        for example in found
        for i in range(len(example))
    ]
    if not rows:
        raise InterventionError("no examples were given; pass at least one.")
    for row in rows:
        check_tokens(row.tokens, model.cfg.d_vocab, model.cfg.n_text_ctx)
    return rows


def metric_for_each(metric: Any, n_rows: int) -> list[Any]:
    """One metric for each row or pair: the one that is given, or as many.

    Raises:
        InterventionError: Another number of metrics.
        MetricError: Something that is no metric.
    """
    many = list(metric) if isinstance(metric, (list, tuple)) else [metric] * n_rows
    if len(many) != n_rows:
        raise InterventionError(f"{len(many)} metrics for {n_rows} rows; give one, or as many.")
    return [each if getattr(each, "reads_transcript", False) else as_metric(each) for each in many]
