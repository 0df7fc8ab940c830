"""One shard while it is made: its recordings go through the model batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.config import SAMPLE_RATE_HZ
from hooked_whisper.data.batches import heard_rows, written_rows
from hooked_whisper.data.forward import collect_rows, row_counts
from hooked_whisper.data.hook_rows import RowHooks, RowKind
from hooked_whisper.data.loading import Loaded, ReadingRules
from hooked_whisper.errors import RecordingsError
from hooked_whisper.speech.mel import Mel
from hooked_whisper.store.fingerprint import PADDING_SEEN, HarvestOptions
from hooked_whisper.store.shards import TOKENS, ShardRows, shard_name


@dataclass(frozen=True)
class WriterConfig:
    """What is the same for every shard."""

    model: Any
    hooks: RowHooks
    rules: ReadingRules
    options: HarvestOptions
    strict: bool


@dataclass
class ShardWindow:
    """A window of a recording on its way through the model.

    Args:
        mel: Its log-mel, until the model has run.
        n_frames: Mel frames that hold sound.
        start_s: Where it begins in its recording, in seconds.
        tokens: For the decoder; those that the model writes are put here.
        language: What is spoken, where somebody told.
        is_given: Whether the tokens came with the recording.
        n_rows: Rows that it has, by their kind, once the model has run.
        text: What the model wrote, where it was asked to.
    """

    mel: Mel | None
    n_frames: int
    start_s: float
    tokens: tuple[int, ...]
    language: str | None
    is_given: bool
    n_rows: dict[RowKind, int] = field(default_factory=dict)
    text: str | None = None


class ShardWriter:
    """A shard while its recordings come in, in their order.

    Args:
        number: The shard's.
        config: What is the same for every shard.
        folder: The store's.
    """

    def __init__(self, number: int, config: WriterConfig, folder: Path) -> None:
        self.number = number
        self.config = config
        self.rows = ShardRows(folder)
        self._used: list[tuple[Loaded, list[ShardWindow]]] = []
        self._skipped: list[dict[str, Any]] = []
        self._waiting: list[ShardWindow] = []
        self._on_the_way: Callable[[], dict[str, Tensor]] | None = None

    def add(self, loaded: Loaded) -> None:
        """Take a recording, and run the model when a batch is full.

        Raises:
            RecordingsError: It cannot be used, and the harvest is strict.
        """
        recording = loaded.job.recording
        if loaded.reason is not None:
            if self.config.strict:
                raise RecordingsError(
                    f"recording {loaded.job.index}, {recording.id!r}: {loaded.reason}"
                )
            self._skipped.append(
                {"index": loaded.job.index, "id": str(recording.id), "reason": loaded.reason}
            )
            return
        windows = self._windows(loaded)
        self._used.append((replace(loaded, mels=None), windows))
        self._waiting += windows
        size = self.config.options.batch_size
        while len(self._waiting) >= size:
            self._run(self._waiting[:size])
            del self._waiting[:size]

    def finish(self) -> None:
        """Run the model on what waits, and wait for its rows."""
        if self._waiting:
            self._run(self._waiting)
            self._waiting = []
        self._collect()

    def record(self, written: dict[str, Any]) -> dict[str, Any]:
        """What was done, ready for JSON.

        Args:
            written: Size and checksum of the rows.
        """
        kinds = self.config.hooks.kinds
        windows = [window for _, each in self._used for window in each]
        return {
            "shard": self.number,
            "file": shard_name(self.number),
            **written,
            "rows": {kind: sum(window.n_rows[kind] for window in windows) for kind in kinds},
            "recordings": [_recording_entry(*each, kinds) for each in self._used],
            "skipped": self._skipped,
        }

    def _windows(self, loaded: Loaded) -> list[ShardWindow]:
        cfg, recording = self.config.rules.cfg, loaded.job.recording
        language = recording.language or self.config.rules.language
        windows = []
        for number, n_frames in enumerate(loaded.n_frames):
            mel = Mel(torch.from_numpy(loaded.mels[number])[None], torch.tensor([n_frames]))
            start_s = number * cfg.n_samples / SAMPLE_RATE_HZ
            known = loaded.tokens or (), language, recording.tokens is not None
            windows.append(ShardWindow(mel, n_frames, start_s, *known))
        return windows

    def _run(self, windows: list[ShardWindow]) -> None:
        config, frames = self.config, self.config.options.frames
        all_frames = frames == "all"
        mel = Mel.cat([window.mel for window in windows if window.mel is not None])
        mel = mel.to(config.model.device, config.model.dtype)
        tokens_of = self._transcribe if config.rules.text == "transcript" else self._begin
        rows = collect_rows(
            config.model,
            config.hooks,
            mel,
            partial(tokens_of, windows),
            all_frames=all_frames,
            n_padding=PADDING_SEEN if frames == "approximate" else None,
            dtype=config.options.dtype,
        )
        if "decoder" in config.hooks.kinds:
            tokens = [token for window in windows for token in window.tokens]
            rows[TOKENS] = torch.tensor(tokens, dtype=torch.int32)
        counts = row_counts(mel, [window.tokens for window in windows], all_frames=all_frames)
        for number, window in enumerate(windows):
            window.n_rows = {kind: counts[kind][number] for kind in config.hooks.kinds}
            window.mel = None  # is not needed any more
        take = _bring_to_host(rows)
        self._collect()  # of the batch before: on a GPU it has arrived by now
        self._on_the_way = take

    def _begin(self, windows: list[ShardWindow], encoder_output: Tensor) -> list[tuple[int, ...]]:
        """The texts' tokens, with the language that the model hears where nobody told it."""
        unknown = [window.language is None and not window.is_given for window in windows]
        rows = [window.tokens for window in windows]
        for window, row in zip(
            windows, heard_rows(self.config.model, rows, encoder_output, unknown), strict=True
        ):
            window.tokens = tuple(row)
        return [window.tokens for window in windows]

    def _transcribe(
        self, windows: list[ShardWindow], encoder_output: Tensor
    ) -> list[tuple[int, ...]]:
        """Have the model write down the windows; its tokens, without the end, become theirs."""
        model, rules = self.config.model, self.config.rules
        generation = model.generate(
            encoder_output=encoder_output,
            language=[window.language for window in windows],
            task=rules.task,
            skip_silence=True,
        )
        rows = written_rows(generation, model.cfg)
        for window, row, text in zip(windows, rows, generation.texts, strict=True):
            window.tokens, window.text = tuple(row[: model.cfg.n_text_ctx]), text
        return [window.tokens for window in windows]

    def _collect(self) -> None:
        if self._on_the_way is None:
            return
        arrived, self._on_the_way = self._on_the_way(), None
        names = [*self.config.hooks.names, *([TOKENS] if TOKENS in arrived else [])]
        for name in names:
            self.rows.add(name, arrived[name])


def _bring_to_host(rows: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Begin to copy rows off a GPU; call what is returned to wait for them."""
    if all(each.device.type != "cuda" for each in rows.values()):
        return lambda: {name: each.cpu() for name, each in rows.items()}
    host = {
        name: torch.empty(each.shape, dtype=each.dtype, pin_memory=True).copy_(
            each, non_blocking=True
        )
        for name, each in rows.items()
    }
    arrived = torch.cuda.Event()
    arrived.record()

    def take() -> dict[str, Tensor]:
        arrived.synchronize()
        return host

    return take


def _recording_entry(
    loaded: Loaded, windows: list[ShardWindow], kinds: tuple[RowKind, ...]
) -> dict[str, Any]:
    recording = loaded.job.recording
    entry: dict[str, Any] = {
        "index": loaded.job.index,
        "id": str(recording.id),
        "xxh3_128": loaded.checksum,
        "seconds": loaded.n_samples / SAMPLE_RATE_HZ,
        "labels": dict(recording.labels),
        "windows": [],
    }
    for window in windows:
        own: dict[str, Any] = {"start_s": window.start_s, "n_frames": window.n_frames}
        own["rows"] = {kind: window.n_rows[kind] for kind in kinds}
        if window.text is not None:
            own["text"] = window.text
        entry["windows"].append(own)
    return entry
