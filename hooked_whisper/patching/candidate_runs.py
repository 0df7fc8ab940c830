"""Runs with many edits tried out, one at a time, on top of others that stay."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import InterventionError
from hooked_whisper.interventions.ablation import MeanAblation, SkipLayer, ZeroAblation
from hooked_whisper.interventions.edits import Edit, Interventions
from hooked_whisper.interventions.examples import Example
from hooked_whisper.metrics.base import check_values
from hooked_whisper.metrics.transcripts import check_value
from hooked_whisper.model.language import language_of_tokens
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.grid import metric_for_each, one_by_one
from hooked_whisper.patching.partial_forward import BaseRun
from hooked_whisper.patching.resume_point import find_resume_point

_ROW_BY_ROW = (ZeroAblation, MeanAblation, SkipLayer)
"""Edits that treat rows alike, however many there are side by side."""


class CandidateRuns:
    """Runs of some examples with edits that will be tried or will stay, measured by a metric."""

    def __init__(
        self,
        model: HookedWhisper,
        examples: Any,
        metric: Any,
        edits: Sequence[Edit],
        max_new_tokens: int | None,
        max_bytes: int,
    ) -> None:
        if max_bytes <= 0:
            raise InterventionError(f"max_bytes is {max_bytes}; give a number above 0.")
        self.model, self.max_new_tokens, self.max_bytes = model, max_new_tokens, max_bytes
        self.examples = one_by_one(model, examples)
        self.metrics = metric_for_each(metric, len(self.examples))
        for example, each in zip(self.examples, self.metrics, strict=True):
            if not each.reads_transcript:
                each.check(1, example.n_pos, model.cfg.d_vocab)
        self.names = {id(edit): [name for name, _ in edit.hooks(model)] for edit in edits}
        self._encoded: dict[int, tuple[list[int], Tensor]] = {}

    @torch.no_grad()
    def clean(self) -> Float[Tensor, "example"]:
        """The metric of each example without edits."""
        values = []
        for number, example in enumerate(self.examples):
            values.append(self._measure(number, example, self._encode(number, ())))
        return torch.tensor(values)

    @torch.no_grad()
    def values(
        self, kept: Sequence[Edit], tried: Sequence[Edit], update: Callable[[int], Any]
    ) -> Float[Tensor, "edit example"]:
        """The metric with all the edits that are kept and one that is tried."""
        values = torch.full((len(tried), len(self.examples)), torch.nan)
        for number, example in enumerate(self.examples):
            together, alone = self._sort(kept, tried, number)
            with Interventions(self.model, *kept):
                for stack, rows in together.items():
                    output = self._encode(number, kept) if stack == "decoder" else None
                    candidates = [tried[row] for row in rows]
                    for some, found in self._side_by_side(number, candidates, output):
                        values[[rows[i] for i in some], number] = found
                        update(len(some))
                for row in alone:
                    output = None if self._in_encoder(tried[row]) else self._encode(number, kept)
                    with Interventions(self.model, tried[row]):
                        values[row, number] = self._measure(number, example, output)
                    update(1)
        return values

    def _sort(
        self, kept: Sequence[Edit], tried: Sequence[Edit], number: int
    ) -> tuple[dict[str, list[int]], list[int]]:
        """Edits to try side by side, by the stack that they are in, and those to try alone."""
        needs_whole_run = self.metrics[number].reads_transcript or not all(
            isinstance(edit, _ROW_BY_ROW) for edit in kept
        )
        together: dict[str, list[int]] = {}
        alone: list[int] = []
        for row, edit in enumerate(tried):
            names = self.names[id(edit)]
            if (
                needs_whole_run
                or not isinstance(edit, ZeroAblation | MeanAblation)
                or len(names) > 1
                or find_resume_point(names[0], self.model.cfg).needs_hook
            ):
                alone.append(row)
            else:
                stack = "encoder" if self._in_encoder(edit) else "decoder"
                together.setdefault(stack, []).append(row)
        return together, alone

    def _encode(self, number: int, kept: Sequence[Edit]) -> Tensor:
        """The encoder's output with the edits that are in effect, run again if these differ."""
        acting = [id(edit) for edit in kept if self._in_encoder(edit)]
        if number not in self._encoded or self._encoded[number][0] != acting:
            self._encoded[number] = (acting, self.model(self.examples[number].mel))
        return self._encoded[number][1]

    def _in_encoder(self, edit: Edit) -> bool:
        return any(name.startswith("encoder") for name in self.names[id(edit)])

    def _side_by_side(
        self, number: int, tried: Sequence[Any], encoder_output: Tensor | None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Numbers of edits of one stack and the metric with each, as many as fit in the memory."""
        names = [self.names[id(edit)][0] for edit in tried]
        example, metric = self.examples[number], self.metrics[number]
        run = BaseRun(self.model, example, list(dict.fromkeys(names)), metric, encoder_output)
        rows = [run.row(name, edit) for name, edit in zip(names, tried, strict=True)]
        for some in run.groups(rows, self.max_bytes):
            yield some, run.measure([run.resume([rows[i] for i in some])])

    def _measure(self, number: int, example: Example, encoder_output: Tensor | None) -> float:
        """The metric of one run with the edits that are in effect."""
        metric = self.metrics[number]
        mel = None if encoder_output is not None else example.mel
        if metric.reads_transcript:
            written = self.model.generate(
                mel,
                self.max_new_tokens,
                encoder_output=encoder_output,
                language=language_of_tokens(self.model.cfg, example.tokens[0].tolist()),
            )
            return check_value(metric(written.texts[0]), metric)
        logits = self.model(mel, example.tokens, encoder_output=encoder_output)
        return float(check_values(metric(logits), 1, metric))
