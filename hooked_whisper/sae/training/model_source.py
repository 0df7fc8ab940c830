"""Activations of a model that runs over recordings, shuffled in a buffer of bounded size."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from hooked_whisper.config import Stack
from hooked_whisper.errors import HookedWhisperError, TrainingError
from hooked_whisper.hooks.names import NamesFilter, stack_of
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.sae.training.sources import permutation
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import check_tokens

AUDIO, TEXT = "audio", "text"
"""The two kinds of positions that an activation has: 20 ms of the recording, or a token."""


class Loaded(NamedTuple):
    """A recording, ready to run."""

    mel: Mel
    tokens: Tensor | None

    def n_positions(self, kind: str, all_frames: bool) -> int:
        """How many vectors it gives at a hook."""
        if kind == TEXT:
            return 0 if self.tokens is None else self.tokens.shape[1]
        return self.mel.shape[-1] // 2 if all_frames else int(self.mel.n_positions[0])


class ModelActivations:
    """What a model computes on recordings, as an `ActivationSource`.

    Every epoch goes over the recordings in another order. Their vectors fill a buffer, and
    come out of it shuffled; then it is filled anew. All hooks are read in one pass, which
    stops behind the last layer that is asked for.

    Args:
        model: The model, with whatever hooks and splices it has.
        recordings: What `model.to_mel` takes: paths, pairs of samples and rate; or `Mel`s
            of one recording; or one `Mel` of many. Any sequence will do, also one that
            makes its items when they are asked for.
        texts: What is said, one for each recording, with the space before it; for hooks at
            tokens. None has the model write it down.
        tokens: Rows of token ids (each with its start sequence) in place of texts.
        all_frames: Read the padding of the window too.
        buffer_size: Vectors of one hook in the buffer; a batch of recordings may come on top.
        n_together: Recordings side by side in one pass.
        n_epochs: How often everything comes; None is without end.

    Raises:
        TrainingError: No recordings, or not as many texts or tokens as recordings.
    """

    def __init__(
        self,
        model: HookedWhisper,
        recordings: Sequence[Any] | Mel,
        *,
        texts: Sequence[str] | None = None,
        tokens: Sequence[Tensor] | Tensor | None = None,
        all_frames: bool = False,
        buffer_size: int = 65_536,
        n_together: int = 4,
        n_epochs: int | None = None,
    ) -> None:
        self.model, self.recordings = model, recordings
        self.texts, self.tokens = texts, tokens
        self.all_frames = all_frames
        self.buffer_size, self.n_together, self.n_epochs = buffer_size, n_together, n_epochs
        self._transcripts: dict[int, Tensor] = {}
        self._check()

    def _check(self) -> None:
        is_one = isinstance(self.recordings, str) or not hasattr(self.recordings, "__getitem__")
        if is_one or not len(self.recordings):
            raise TrainingError(
                f"recordings is {self.recordings!r}; it must be a sequence with at least one: "
                "paths, pairs of samples and rate, or a Mel."
            )
        if self.texts is not None and self.tokens is not None:
            raise TrainingError("both texts and tokens given; pass one of them.")
        for name in ("texts", "tokens"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.recordings):
                raise TrainingError(
                    f"{len(self.recordings)} recordings and {len(given)} {name} do not match. Pass "
                    "one for each recording."
                )
        for name in ("buffer_size", "n_together"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be 1 or more.")

    def __repr__(self) -> str:
        return f"ModelActivations({self.model.cfg.model_name}, {len(self.recordings)} recordings)"

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
        kinds = {name: self._kind(name) for name in names}
        return self._stream(kinds, batch_size, seed, skip)

    def _kind(self, name: str) -> str:
        """Which positions a hook's vectors are at."""
        axes = self.model.hook_dict[name].axes
        if axes[:2] == ("batch", "key") or (stack_of(name) == "encoder" and axes[1] == "pos"):
            return AUDIO
        if axes[:2] != ("batch", "pos"):
            raise TrainingError(
                f"{name!r} has the axes [{' '.join(axes)}]; an autoencoder needs one vector for "
                "each position, as at hook_resid_post, hook_mlp_out or hook_z."
            )
        return TEXT

    # Buffers

    def _stream(
        self, kinds: dict[str, str], batch_size: int, seed: int, skip: int
    ) -> Iterator[dict[str, Tensor]]:
        for epoch in count() if self.n_epochs is None else range(self.n_epochs):
            for number, buffer in enumerate(self._buffers(kinds, seed, epoch)):
                sizes = {
                    kind: sum(self._size(each, kind) for each in buffer) for kind in (AUDIO, TEXT)
                }
                starts = [
                    (kind, start) for kind in sizes for start in range(0, sizes[kind], batch_size)
                ]
                if skip >= len(starts):
                    skip -= len(starts)
                    continue
                vectors = self._read(buffer, kinds)
                orders = {
                    kind: permutation(sizes[kind], seed, epoch, number, int(kind == TEXT))
                    for kind in sizes
                }
                turns = permutation(len(starts), seed, epoch, number, 2)
                for turn in turns[skip:].tolist():
                    kind, start = starts[turn]
                    rows = orders[kind][start : start + batch_size]
                    yield {
                        name: vectors[name][rows.to(vectors[name].device)]
                        for name in kinds
                        if kinds[name] == kind
                    }
                skip = 0

    def _buffers(self, kinds: dict[str, str], seed: int, epoch: int) -> Iterator[list[Loaded]]:
        """The recordings of an epoch, as many at a time as the buffer takes."""
        buffer: list[Loaded] = []
        sizes = dict.fromkeys(kinds.values(), 0)
        needs_tokens = any(stack_of(name) == "decoder" for name in kinds)
        order = permutation(len(self.recordings), seed, epoch, 3).tolist()
        for place, index in enumerate(order, 1):
            loaded = self._load(index, needs_tokens=needs_tokens)
            buffer.append(loaded)
            for kind in sizes:
                sizes[kind] += self._size(loaded, kind)
            is_full = max(sizes.values()) >= self.buffer_size
            if place == len(order) or (is_full and len(buffer) % self.n_together == 0):
                yield buffer
                buffer, sizes = [], dict.fromkeys(sizes, 0)

    def _size(self, loaded: Loaded, kind: str) -> int:
        return loaded.n_positions(kind, self.all_frames)

    # Recordings

    def _load(self, index: int, *, needs_tokens: bool) -> Loaded:
        """A recording as the model takes it, and its tokens."""
        try:
            mel = self._mel(index)
            return Loaded(mel, self._tokens(index, mel) if needs_tokens else None)
        except HookedWhisperError as error:
            raise TrainingError(f"recording {index} cannot be used: {error}") from error

    def _mel(self, index: int) -> Mel:
        found = self.recordings[index]
        if isinstance(found, Mel):
            if len(found) != 1:
                raise TrainingError(f"it holds {len(found)} recordings: pass Mel.cat(mels).")
            return found.to(self.model.device, self.model.dtype)
        if isinstance(found, Tensor):
            raise TrainingError(
                "it is a tensor, which tells neither its rate nor how much of it is padding. Pass "
                "a pair of samples and rate, or a Mel."
            )
        # As a list of one, in which pairs of samples and rate are understood.
        return self.model.to_mel([found])

    def _tokens(self, index: int, mel: Mel) -> Tensor:
        """The tokens of a recording, start sequence first, without an end."""
        if self.tokens is not None:
            tokens = torch.as_tensor(self.tokens[index], device=self.model.device)
            tokens = tokens[None] if tokens.ndim == 1 else tokens
            check_tokens(tokens, self.model.cfg.d_vocab, self.model.cfg.n_text_ctx)
            return tokens
        if self.texts is not None:
            return self.model.to_tokens(self.texts[index])
        if index not in self._transcripts:
            generated = self.model.generate(mel)
            self._transcripts[index] = generated.tokens[:, :-1]
        return self._transcripts[index]

    # Running

    @torch.no_grad()
    def _read(self, buffer: list[Loaded], kinds: dict[str, str]) -> dict[str, Tensor]:
        """The vectors of all recordings of a buffer, in order, by hook."""
        found: dict[str, list[Tensor]] = {name: [] for name in kinds}
        stop = _stop_behind(list(kinds), self.model)
        for start in range(0, len(buffer), self.n_together):
            together = buffer[start : start + self.n_together]
            mel = Mel.cat([each.mel for each in together])
            tokens = None
            if any(stack_of(name) == "decoder" for name in kinds):
                tokens = _side_by_side(
                    [each.tokens for each in together if each.tokens is not None]
                )
            _, cache = self.model.run_with_cache(
                mel, tokens, names_filter=list(kinds), stop_at_layer=stop, return_type=None
            )
            for name, kind in kinds.items():
                value = cache[name].flatten(2)
                sizes = torch.tensor([self._size(each, kind) for each in together])
                found[name].append(value[first_positions(sizes, value.shape[1]).to(value.device)])
        return {name: torch.cat(parts) for name, parts in found.items()}


def first_positions(sizes: Tensor, n_pos: int) -> Bool[Tensor, "batch pos"]:
    """A mask of the first positions of each row, so many as its size."""
    return torch.arange(n_pos) < sizes[:, None]


def _side_by_side(rows: list[Tensor]) -> Tensor:
    """Tokens of several recordings, the shorter ones filled up on the right.

    What stands there changes nothing before it, and is not read.
    """
    width = max(row.shape[1] for row in rows)
    filled = [torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows]
    return torch.cat(filled)


def _stop_behind(names: list[str], model: HookedWhisper) -> tuple[Stack, int] | None:
    """The first block that none of the hooks needs; None where the last one is not the end."""
    in_decoder = [name for name in names if stack_of(name) == "decoder"]
    stack: Stack = "decoder" if in_decoder else "encoder"
    layers = []
    for name in in_decoder or names:
        parts = name.split(".")
        if parts[1] == "blocks":
            layers.append(int(parts[2]))
        elif parts[1] in ("hook_logits", "ln_final"):
            return None
    return stack, max(layers, default=-1) + 1
