"""What a probe learns from: rows of a store, or means of them, with a label and a group each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hooked_whisper.data.hook_rows import SECONDS_PER_ROW
from hooked_whisper.errors import ProbeError
from hooked_whisper.speech.labels import timed_labels, values_of_steps
from hooked_whisper.store.provenance import RecordingEntry
from hooked_whisper.store.reader import ActivationStore

MEL_HOOK = "encoder.hook_mel"


@dataclass(frozen=True)
class Samples:
    """Where the samples of a probe are.

    Args:
        spans: Rows of each sample, first and last but one; features are their mean.
        mel_spans: Mel frames of each sample in the rows of `encoder.hook_mel`;
            empty where the store has none.
        values: The label of each.
        groups: What may not be on both sides of a split.
        recordings: The recording that each is of.
    """

    spans: list[tuple[int, int]]
    mel_spans: list[tuple[int, int]]
    values: list[Any]
    groups: np.ndarray
    recordings: np.ndarray

    def features(self, store: ActivationStore, hook: str) -> np.ndarray:
        """One vector for each sample."""
        return _means(store, hook, self.spans)


def gather_samples(
    store: ActivationStore,
    hooks: list[str],
    label: str,
    *,
    pooled: bool,
    split_by: str | None,
    most: int,
    seed: int,
) -> Samples:
    """The labelled samples of a store, in order.

    Args:
        store: Activations.
        hooks: Whose rows.
        label: What each sample is to have.
        pooled: Whether a sample is a recording, or an interval of a timed
            label, instead of a row.
        split_by: The label that groups are; None is the recording.
        most: A random choice of so many is taken where there are more.
        seed: Of the choice.

    Raises:
        ProbeError: No recording has the label, or the one to split by.
    """
    kind = store.kind(hooks)
    per_row = SECONDS_PER_ROW.get(kind, 0.0)
    has_mel = MEL_HOOK in store.hook_names and kind == "encoder"
    found: list[tuple[tuple[int, int], tuple[int, int], Any, str, int]] = []
    for entry in store.recordings():
        value = entry.labels.get(label)
        if value is None:
            continue
        rows = store.rows_of(entry.index, hooks)
        mel = store.rows_of(entry.index, MEL_HOOK) if has_mel else range(0)
        group = _group(entry, split_by)
        for start, stop, each in _pieces(value, len(rows), per_row, pooled):
            frames = (mel.start + 2 * start, min(mel.stop, mel.start + 2 * stop))
            found.append(
                ((rows.start + start, rows.start + stop), frames, each, group, entry.index)
            )
    if not found:
        names = sorted({name for entry in store.recordings() for name in entry.labels})
        raise ProbeError(
            f"no row of {store.folder} has the label {label!r}. Its recordings have "
            f"{', '.join(names) or 'none'}."
        )
    if len(found) > most:
        chosen = np.random.default_rng(seed).choice(len(found), most, replace=False)
        found = [found[number] for number in sorted(chosen)]
    return Samples(
        [each[0] for each in found],
        [each[1] for each in found] if has_mel else [],
        [each[2] for each in found],
        np.array([each[3] for each in found]),
        np.array([each[4] for each in found]),
    )


def mel_features(store: ActivationStore, samples: Samples) -> np.ndarray | None:
    """The mel of the same moments; None where the store has none."""
    if not samples.mel_spans:
        return None
    return _means(store, MEL_HOOK, samples.mel_spans)


def _pieces(value: Any, n_rows: int, per_row: float, pooled: bool) -> list[tuple[int, int, Any]]:
    """First row, last but one, and value of each sample of a recording."""
    if not pooled:
        values = values_of_steps(value, n_rows, per_row)
        return [(row, row + 1, each) for row, each in enumerate(values) if each is not None]
    pieces = timed_labels(value)
    if pieces is None:
        return [(0, n_rows, value)] if n_rows else []
    if not per_row:
        raise ProbeError("a label that changes in time says nothing of tokens.")
    bounds = [
        (round(start / per_row), min(n_rows, round(end / per_row)), each)
        for start, end, each in pieces
    ]
    return [(start, stop, each) for start, stop, each in bounds if start < stop]


def _group(entry: RecordingEntry, split_by: str | None) -> str:
    if split_by is None:
        return str(entry.index)
    if entry.labels.get(split_by) is None:
        raise ProbeError(
            f"{entry.id!r} has no label {split_by!r} to split by; it has "
            f"{', '.join(sorted(entry.labels)) or 'none'}."
        )
    return str(entry.labels[split_by])


_ROWS_AT_ONCE = 50_000


def _means(store: ActivationStore, hook: str, spans: list[tuple[int, int]]) -> np.ndarray:
    """The mean row of each span, flat, reading the store once in order."""
    means = []
    start = 0
    while start < len(spans):
        stop, n_rows = start, 0
        while stop < len(spans) and (n_rows < _ROWS_AT_ONCE or stop == start):
            n_rows += spans[stop][1] - spans[stop][0]
            stop += 1
        own = spans[start:stop]
        wanted = torch.cat([torch.arange(low, high) for low, high in own])
        rows = store.rows(hook, wanted, dtype=torch.float32)[hook].flatten(1)
        counts = torch.tensor([high - low for low, high in own])
        which = torch.repeat_interleave(torch.arange(len(own)), counts)
        sums = torch.zeros(len(own), rows.shape[1]).index_add_(0, which, rows)
        means.append(sums / counts[:, None])
        start = stop
    return torch.cat(means).numpy()
