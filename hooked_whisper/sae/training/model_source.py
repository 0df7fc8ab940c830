"""Activations of a model that runs over recordings, shuffled in a buffer of bounded size."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from hooked_whisper.data.batches import heard_rows, recording_row, text_row, written_rows
from hooked_whisper.data.forward import collect_rows, row_counts
from hooked_whisper.data.hook_rows import RowHooks, RowKind, choose_hooks
from hooked_whisper.data.recordings import Recording
from hooked_whisper.data.sources import as_recordings
from hooked_whisper.data.windows import mel_of, read_windows
from hooked_whisper.errors import HookedWhisperError, TrainingError
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.sae.training.sources import permutation
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import check_tokens


class _LoadedWindow(NamedTuple):
    """A window, ready to run; how many vectors it gives; whether the model hears its language."""

    mel: Mel
    tokens: list[int]
    n_rows: dict[RowKind, int]
    is_unknown: bool


class ModelActivations:
    """What a model computes on recordings, as an `ActivationSource`.

    Every epoch goes over the recordings in another order. Their vectors fill a buffer, and
    come out of it shuffled; then it is filled anew. All hooks are read in one pass, which
    stops behind the last layer that is asked for.

    Args:
        model: The model, with whatever hooks and splices it has.
        recordings: What `hooked_whisper.data.as_recordings` takes, but no stream. A sequence
            that is no list makes its items when they are asked for.
        texts: What is said, one for each recording, for hooks at tokens. None is what the
            recordings say themselves; where they do not, the model writes it down.
        tokens: Rows of token ids (each with its start sequence) in place of texts.
        all_frames: Read the padding of the window too.
        buffer_size: Vectors of one hook in the buffer; a batch of recordings may come on top.
        n_together: Windows side by side in one pass.
        n_epochs: How often everything comes; None is without end.

    Raises:
        TrainingError: No recordings, or not as many texts or tokens as recordings.
    """

    def __init__(
        self,
        model: HookedWhisper,
        recordings: Any,
        *,
        texts: Sequence[str] | None = None,
        tokens: Sequence[Tensor] | Int[Tensor, "recording pos"] | None = None,
        all_frames: bool = False,
        buffer_size: int = 65_536,
        n_together: int = 4,
        n_epochs: int | None = None,
    ) -> None:
        self.model, self.texts, self.tokens = model, texts, tokens
        self.all_frames = all_frames
        self.buffer_size, self.n_together, self.n_epochs = buffer_size, n_together, n_epochs
        self._transcripts: dict[tuple[int, int], list[int]] = {}
        for name in ("buffer_size", "n_together"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        try:
            self.recordings = as_recordings(recordings)
        except HookedWhisperError as error:
            raise TrainingError(str(error)) from error
        if self.recordings.get is None:
            raise TrainingError(
                "the recordings are a stream, which cannot be read in another order each epoch. "
                "Pass a list, or harvest them into a store and train from there."
            )
        if texts is not None and tokens is not None:
            raise TrainingError("both texts and tokens given; pass one of them.")
        for name, given in (("texts", texts), ("tokens", tokens)):
            if given is not None and len(given) != self.recordings.n:
                raise TrainingError(
                    f"{self.recordings.n} recordings and {len(given)} {name} do not match. Pass "
                    "one for each recording."
                )

    def __repr__(self) -> str:
        return f"ModelActivations({self.model.cfg.model_name}, {self.recordings.n} recordings)"

    def stream(
        self, hook_names: NamesFilter, batch_size: int, *, seed: int = 0, skip: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Shuffled batches of the hooks; see `ActivationSource`.

        Hooks with positions in the recording and those at tokens come in batches of their
        own, as a recording has far more of the former. Heads are laid side by side.

        Args:
            hook_names: Names, or what else `model.hook_names` takes.
            batch_size: Vectors in a batch; the last one of a buffer may be smaller.
            seed: Of the order.
            skip: Batches to leave out at the start; the model does not run for buffers that
                are left out as a whole.

        Raises:
            HookNameError: No such hook.
            TrainingError: A hook whose activation has no vectors by position; while
                running, a recording or text that cannot be used, with its number.
        """
        names = self.model.hook_names(hook_names)
        for name in names:
            axes = self.model.hook_dict[name].axes
            if axes[:2] not in (("batch", "pos"), ("batch", "key")):
                raise TrainingError(
                    f"{name!r} has the axes [{' '.join(axes)}]; an autoencoder needs one vector "
                    "for each position, as at hook_resid_post, hook_mlp_out or hook_z."
                )
        return self._stream(choose_hooks(self.model, names), batch_size, seed, skip)

    # Buffers

    def _stream(
        self, hooks: RowHooks, batch_size: int, seed: int, skip: int
    ) -> Iterator[dict[str, Tensor]]:
        by_kind: dict[RowKind, list[str]] = {
            kind: [hook.name for hook in hooks.each if hook.kind == kind]
            for kind in ("encoder", "decoder")
        }
        for epoch in count() if self.n_epochs is None else range(self.n_epochs):
            for number, buffer in enumerate(self._buffers(hooks, seed, epoch)):
                sizes = {kind: sum(window.n_rows[kind] for window in buffer) for kind in by_kind}
                starts = [
                    (kind, start)
                    for kind, names in by_kind.items()
                    if names
                    for start in range(0, sizes[kind], batch_size)
                ]
                if skip >= len(starts):
                    skip -= len(starts)
                    continue
                vectors = self._read(buffer, hooks)
                orders = {
                    kind: permutation(sizes[kind], seed, epoch, number, int(kind == "decoder"))
                    for kind in by_kind
                }
                turns = permutation(len(starts), seed, epoch, number, 2)
                for turn in turns[skip:].tolist():
                    kind, start = starts[turn]
                    rows = orders[kind][start : start + batch_size]
                    yield {
                        name: vectors[name][rows.to(vectors[name].device)] for name in by_kind[kind]
                    }
                skip = 0

    def _buffers(self, hooks: RowHooks, seed: int, epoch: int) -> Iterator[list[_LoadedWindow]]:
        """The windows of an epoch, as many at a time as the buffer takes."""
        buffer: list[_LoadedWindow] = []
        assert self.recordings.n is not None
        order = permutation(self.recordings.n, seed, epoch, 3).tolist()
        for place, index in enumerate(order, 1):
            buffer += self._load(index, needs_tokens=hooks.needs_tokens)
            most = max(sum(window.n_rows[kind] for window in buffer) for kind in hooks.kinds)
            is_full = most >= self.buffer_size and len(buffer) % self.n_together == 0
            if place == len(order) or is_full:
                yield buffer
                buffer = []

    # Recordings

    def _load(self, index: int, *, needs_tokens: bool) -> list[_LoadedWindow]:
        """A recording as the model takes it, and its tokens."""
        assert self.recordings.get is not None
        try:
            recording = self.recordings.get(index)
            mels = [
                mel_of(self.model, [window])
                for window in read_windows(recording, index, self.model.cfg)
            ]
            loaded = []
            for number, mel in enumerate(mels):
                tokens: list[int] = []
                if needs_tokens:
                    known = self._known_tokens(recording, index) if len(mels) == 1 else None
                    language = recording.language
                    tokens = known or self._written_tokens(index, number, mel, language)
                counts = row_counts(mel, [tokens], all_frames=self.all_frames)
                n_rows: dict[RowKind, int] = {kind: n for kind, [n] in counts.items()}
                is_text = self.tokens is None and recording.tokens is None
                unknown = is_text and recording.language is None
                loaded.append(_LoadedWindow(mel, tokens, n_rows, unknown))
        except HookedWhisperError as error:
            raise TrainingError(f"recording {index} cannot be used: {error}") from error
        return loaded

    def _known_tokens(self, recording: Recording, index: int) -> list[int] | None:
        """The tokens that were given or that the recording has, prompt first; None for neither."""
        cfg = self.model.cfg
        if self.tokens is not None:
            row = torch.as_tensor(self.tokens[index]).flatten().tolist()
        elif self.texts is not None:
            row = text_row(self.texts[index], cfg, language=recording.language)
        else:
            return recording_row(recording, cfg)
        check_tokens(torch.tensor([row]), cfg.d_vocab, cfg.n_text_ctx)
        return [int(token) for token in row]

    def _written_tokens(self, index: int, number: int, mel: Mel, language: str | None) -> list[int]:
        """What the model writes down of a window, the prompt first, without the end."""
        if (index, number) not in self._transcripts:
            written = self.model.generate(mel, language=language, skip_silence=True)
            [row] = written_rows(written, self.model.cfg)
            self._transcripts[index, number] = row
        return self._transcripts[index, number]

    def _read(self, buffer: list[_LoadedWindow], hooks: RowHooks) -> dict[str, Tensor]:
        """The vectors of all windows of a buffer, in order, by hook."""
        found: dict[str, list[Tensor]] = {name: [] for name in hooks.names}
        for start in range(0, len(buffer), self.n_together):
            together = buffer[start : start + self.n_together]
            rows = collect_rows(
                self.model,
                hooks,
                Mel.cat([window.mel for window in together]),
                partial(
                    heard_rows,
                    self.model,
                    [window.tokens for window in together],
                    unknown=[window.is_unknown for window in together],
                ),
                all_frames=self.all_frames,
            )
            for name, values in rows.items():
                found[name].append(values.flatten(1))
        return {name: torch.cat(parts) for name, parts in found.items()}
