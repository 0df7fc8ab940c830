"""Texts that are decoded side by side are those of each window alone."""

from typing import Any

import pytest
import torch

from hooked_whisper.data import as_recordings
from hooked_whisper.digits import recordings
from hooked_whisper.study import windows
from hooked_whisper.study.windows import WindowRun, run_windows


class Seen:
    """Keeps the runs that it is shown, and what the decoder reads in each."""

    def __init__(self) -> None:
        self.runs: list[WindowRun] = []
        self.shapes: list[tuple[int, ...]] = []

    def hooks(self, run: WindowRun) -> Any:
        self.runs.append(run)
        return [("decoder.blocks.0.attn.hook_pattern", lambda value, hook: self._see(value))]

    def _see(self, value: torch.Tensor) -> None:
        self.shapes.append(tuple(value.shape))


def test_what_is_written_side_by_side_is_what_is_written_alone(
    digits_model: Any, monkeypatch: pytest.MonkeyPatch, without_shape_checks: None
) -> None:
    monkeypatch.setattr(windows, "WRITTEN_TOGETHER", 2)
    heard, seen = recordings()[:3], Seen()
    found = run_windows(digits_model, as_recordings(heard), [], [seen], progress=False)
    for recording, row, run, shape in zip(heard, found.rows, seen.runs, seen.shapes, strict=True):
        alone = digits_model.generate(digits_model.to_mel(recording.path))
        assert run.window.name == recording.path.name
        assert row["transcript"] == run.text == alone.texts[0]
        assert row["language"] == alone.languages[0] and row["n_windows"] == 1
        assert run.tokens is not None and torch.equal(run.tokens, alone.tokens[:, :-1])
        assert run.text_queries == slice(alone.n_prompt - 1, alone.tokens.shape[1] - 2)
        assert shape[2:] == (run.tokens.shape[1],) * 2, "it is read alone, without padding"
        assert run.encoder_output is None, "and nothing of it is kept"


def test_texts_of_one_recording_are_joined_and_its_first_window_tells_the_language(
    digits_model: Any, monkeypatch: pytest.MonkeyPatch, without_shape_checks: None
) -> None:
    told: list[list[str | None]] = []

    class Written:
        n_prompt = 1

        def __init__(self, n: int) -> None:
            self.tokens = torch.full((n, 3), 5)
            self.texts, self.languages = ["one"] * n, ["de"] * n

    def generate(encoder_output: Any, language: list[str | None], **_: Any) -> Written:
        told.append(language)
        return Written(len(encoder_output))

    monkeypatch.setattr(digits_model, "generate", generate)
    noise = torch.randn(70 * 16_000, generator=torch.Generator().manual_seed(0)) / 10
    long = as_recordings([(noise, 16_000), (noise[:16_000], 16_000)])
    found = run_windows(digits_model, long, [], [], progress=False)
    assert [row["transcript"] for row in found.rows] == ["one one one", "one"]
    assert told == [[None], ["de", "de", None]]
