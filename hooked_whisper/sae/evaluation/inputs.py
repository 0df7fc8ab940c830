"""What autoencoders are judged on: recordings, what is said in them, in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import D_VOCABS, check_tokens


@dataclass(frozen=True, eq=False)
class Batch:
    """Recordings side by side, and what the decoder is given with them.

    Args:
        first: The number of the first of them.
        mel: Their log-mels.
        rows: Token ids of each, prompt first and end-of-text last.
        start: The first token whose prediction counts.
    """

    first: int
    mel: Mel
    rows: list[list[int]]
    start: int

    def _padded(self) -> Int64[Tensor, "batch pos"]:
        width = max(map(len, self.rows))
        # What stands behind a row's end is never looked at.
        padded = [row + row[-1:] * (width - len(row)) for row in self.rows]
        return torch.tensor(padded, device=self.mel.device)

    @property
    def tokens(self) -> Int64[Tensor, "batch pos"]:
        """What the decoder reads: all tokens but the last."""
        return self._padded()[:, :-1]

    @property
    def targets(self) -> Int64[Tensor, "batch pos"]:
        """What it should write at each position."""
        return self._padded()[:, 1:]

    @property
    def n_tokens(self) -> Int64[Tensor, " batch"]:
        """How many tokens the decoder reads of each recording; the rest is padding."""
        return torch.tensor([len(row) - 1 for row in self.rows], device=self.mel.device)

    @property
    def counts(self) -> Bool[Tensor, "batch pos"]:
        """The positions whose predictions count."""
        places = torch.arange(max(map(len, self.rows)) - 1, device=self.mel.device)
        return (places >= self.start - 1) & (places < self.n_tokens[:, None])


@dataclass(frozen=True)
class Inputs:
    """Recordings to judge on, checked.

    Args:
        model: The model that hears them.
        audio: Paths, arrays with their rates, or a mel of all.
        texts: What is said in each; None is unknown.
        rows: The tokens of each, where they are known.
        start: The first token whose prediction counts.
        batch_size: Recordings side by side.
        language: Of the texts.
    """

    model: HookedWhisper
    audio: Any
    texts: tuple[str, ...] | None
    rows: tuple[list[int], ...] | None
    start: int
    batch_size: int
    language: str

    def __len__(self) -> int:
        """Recordings."""
        return len(self.audio)

    @property
    def n_batches(self) -> int:
        """Batches of one round through the recordings."""
        return -(-len(self) // self.batch_size)

    def mels(self) -> Iterator[tuple[int, Mel]]:
        """The number of each batch's first recording, and their mels, made when they are due."""
        for first in range(0, len(self), self.batch_size):
            part = self.audio[first : first + self.batch_size]
            yield first, part if isinstance(part, Mel) else self.model.to_mel(part)

    def batches(self) -> Iterator[Batch]:
        """The recordings with their tokens."""
        assert self.rows is not None
        for first, mel in self.mels():
            rows = list(self.rows[first : first + len(mel)])
            yield Batch(first, mel, rows, self.start)

    def with_rows(self, rows: Sequence[list[int]]) -> "Inputs":
        """The same with these tokens."""
        return replace(self, rows=tuple(rows))


def has_tokenizer(model: HookedWhisper) -> bool:
    """Whether the model's vocabulary is Whisper's, so that it reads and writes text."""
    return model.cfg.d_vocab in D_VOCABS


def prepare(
    model: HookedWhisper,
    recordings: Any,
    texts: Sequence[str] | None = None,
    tokens: Any = None,
    *,
    batch_size: int = 8,
    language: str = "en",
) -> Inputs:
    """Recordings to judge on, once it is sure that they fit together.

    Args:
        model: The model.
        recordings: A list of what `model.to_mel` takes, or of anything with such
            a `.path` or `.audio` (and a `.text`); or a `Mel` of them all.
        texts: What is said in each; "" where nothing is.
        tokens: Instead of texts, the rows of token ids that the decoder reads
            and writes.
        batch_size: Recordings side by side.
        language: Of the texts.

    Raises:
        InputError: No recordings, as many texts as there are no recordings, ...
        TokenError: Tokens that the model does not have.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; it must be a positive integer.")
    audio, said = _audio(recordings)
    if texts is not None and tokens is not None:
        raise InputError("both texts and tokens are given; pass one of them.")
    if tokens is not None:
        rows = _token_rows(model, tokens, len(audio))
        return Inputs(model, audio, None, rows, 1, batch_size, language)
    texts = said if texts is None else texts
    if texts is None:
        if not has_tokenizer(model):
            raise InputError(
                f"there are no texts, and this model's vocabulary of {model.cfg.d_vocab} is not "
                "Whisper's, so that it can write none. Pass tokens=."
            )
        return Inputs(model, audio, None, None, _n_prompt(model, language), batch_size, language)
    texts = [texts] if isinstance(texts, str) else list(texts)
    if len(texts) != len(audio) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{len(texts)} texts and {len(audio)} recordings do not match. Pass one string for "
            'each, "" where nothing is said.'
        )
    rows = tuple(_text_row(model, text, language) for text in texts)
    _check_rows(model, rows)
    start = _n_prompt(model, language)
    return Inputs(model, audio, tuple(texts), rows, start, batch_size, language)


@torch.no_grad()
def own_rows(
    inputs: Inputs, encoder_output: Float[Tensor, "batch pos d_model"], **options: Any
) -> tuple[list[list[int]], list[str]]:
    """What the model itself writes for recordings: rows of tokens, and their texts."""
    done = inputs.model.generate(
        None, encoder_output=encoder_output, language=inputs.language, **options
    )
    end = done.tokens[0, -1].item()  # end-of-text, or the last token of the longest row
    rows = []
    for row in done.tokens.tolist():
        length = row.index(end, done.n_prompt) + 1 if end in row[done.n_prompt :] else len(row)
        rows.append(row[: max(length, done.n_prompt + 1)])
    return rows, list(done.texts)


def _audio(recordings: Any) -> tuple[Any, list[str] | None]:
    """The recordings as `to_mel` takes them, and their texts where they have them."""
    if isinstance(recordings, Mel):
        return recordings, None
    if isinstance(recordings, Tensor):
        raise InputError(
            "recordings are a tensor, which does not say where speech ends. Pass the Mel that "
            "model.to_mel(audio) makes, or paths."
        )
    if isinstance(recordings, str | PathLike | tuple) or hasattr(recordings, "path"):
        recordings = [recordings]
    recordings = list(recordings)
    if not recordings:
        raise InputError("there are no recordings to judge on; pass at least one.")
    texts = [text for each in recordings if isinstance(text := getattr(each, "text", None), str)]
    audio = [getattr(each, "audio", getattr(each, "path", each)) for each in recordings]
    return audio, texts if len(texts) == len(audio) else None


def _n_prompt(model: HookedWhisper, language: str) -> int:
    return model.to_tokens("", language=language).shape[1]


def _text_row(model: HookedWhisper, text: str, language: str) -> list[int]:
    text = text.strip()
    spaced = " " + text if text else ""  # Whisper writes its words with a space before them
    return model.to_tokens(spaced, append_eot=True, language=language)[0].tolist()


def _token_rows(model: HookedWhisper, tokens: Any, n: int) -> tuple[list[int], ...]:
    rows = tuple(row.tolist() if isinstance(row, Tensor) else list(row) for row in tokens)
    if len(rows) != n:
        raise InputError(f"{len(rows)} rows of tokens and {n} recordings do not match.")
    if any(len(row) < 2 for row in rows):
        raise InputError("a row of tokens has fewer than two; nothing predicts the first.")
    _check_rows(model, rows)
    return rows


def _check_rows(model: HookedWhisper, rows: tuple[list[int], ...]) -> None:
    for row in rows:
        check_tokens(torch.tensor([row]), model.cfg.d_vocab, model.cfg.n_text_ctx + 1)
