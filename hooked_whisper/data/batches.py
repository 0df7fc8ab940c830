"""Windows side by side, as a model takes them: mel, padded tokens, and which positions count."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig, Stack
from hooked_whisper.data.recordings import Recording
from hooked_whisper.data.windows import AudioWindow, mel_of
from hooked_whisper.errors import InputError
from hooked_whisper.hooks.passes import first_positions
from hooked_whisper.model.language import find_languages, put_languages
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import check_tokens, get_tokenizer, has_tokenizer, to_tokens


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Windows side by side.

    Args:
        first: The number of the first of them.
        windows: The windows.
        mel: Their log-mels.
        rows: Token ids of each, prompt first; empty where the decoder gets none.
    """

    first: int
    windows: Sequence[AudioWindow]
    mel: Mel
    rows: Sequence[Sequence[int]] = ()

    def __len__(self) -> int:
        """Windows."""
        return len(self.windows)

    @property
    def tokens(self) -> Int64[Tensor, "batch pos"]:
        """The rows, the shorter ones filled up."""
        return pad_tokens(self.rows, self.mel.device)

    @property
    def n_tokens(self) -> Int64[Tensor, " batch"]:
        """How many tokens of each row are its own."""
        return torch.tensor([len(row) for row in self.rows], device=self.mel.device)

    def counts(self, stack: Stack, n_pos: int) -> Bool[Tensor, "batch pos"]:
        """The positions of a stack that hold speech or text; the others are padding."""
        lengths = self.mel.n_positions if stack == "encoder" else self.n_tokens
        return first_positions(lengths, len(self), n_pos)


def window_batches(
    model: HookedWhisper, windows: Iterable[AudioWindow], size: int
) -> Iterator[WindowBatch]:
    """Some windows at a time, with their mels, and with their tokens where all have some."""
    check_batch_size(size)
    first, some = 0, []
    for window in windows:
        some.append(window)
        if len(some) == size:
            yield _batch(model, first, some)
            first, some = first + len(some), []
    if some:
        yield _batch(model, first, some)


def _batch(model: HookedWhisper, first: int, windows: Sequence[AudioWindow]) -> WindowBatch:
    rows = [window.tokens for window in windows if window.tokens is not None]
    return WindowBatch(
        first, windows, mel_of(model, windows), rows if len(rows) == len(windows) else ()
    )


def pad_tokens(
    rows: Sequence[Sequence[int]], device: torch.device | str | None = None
) -> Int64[Tensor, "batch pos"]:
    """Rows of tokens side by side, the shorter ones filled up on the right.

    They are filled with their own last token: a causal decoder does not see
    what follows, and it is a token of the model's.
    """
    width = max(map(len, rows))
    filled = [[*row, *[row[-1]] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.int64, device=device)


def text_row(
    text: str,
    cfg: HookedWhisperConfig,
    *,
    language: str | None = None,
    task: str = "transcribe",
    append_eot: bool = False,
) -> list[int]:
    """A text as the decoder reads it, the prompt first; Whisper writes its words after a space."""
    text = text.strip()
    spaced = f" {text}" if text else ""
    tokens = to_tokens(spaced, cfg, language=language, task=task, append_eot=append_eot)
    return [int(token) for token in tokens[0]]


def recording_row(
    recording: Recording,
    cfg: HookedWhisperConfig,
    *,
    language: str | None = None,
    task: str = "transcribe",
) -> list[int] | None:
    """The decoder's tokens for a recording: its own, or its text's; None where it has neither.

    Args:
        recording: A label `language` goes before the argument.
        cfg: Of the model.
        language: Of the text; None is English until `heard_rows` finds out.
        task: Of the prompt.

    Raises:
        TokenError: Tokens that the model does not have, or more than it takes.
    """
    if recording.tokens is not None:
        row = list(recording.tokens)
    elif recording.text is not None:
        row = text_row(recording.text, cfg, language=recording.language or language, task=task)
    else:
        return None
    check_tokens(torch.tensor([row], dtype=torch.int64), cfg.d_vocab, cfg.n_text_ctx)
    return row


def heard_rows(
    model: HookedWhisper,
    rows: Sequence[Sequence[int]],
    encoder_output: Float[Tensor, "batch pos d_model"],
    unknown: Sequence[bool],
) -> list[list[int]]:
    """Rows that begin with the language that the model hears, where nobody told it.

    Args:
        model: The model.
        rows: Tokens of texts, prompt first.
        encoder_output: Of their recordings.
        unknown: Of which of them nobody told the language.
    """
    found = [list(row) for row in rows]
    asked = [number for number, is_unknown in enumerate(unknown) if is_unknown]
    if not asked or not model.cfg.is_multilingual or not has_tokenizer(model.cfg):
        return found
    languages = find_languages(model, encoder_output[asked])
    changed = put_languages(model, [found[number] for number in asked], languages)
    for number, row in zip(asked, changed, strict=True):
        found[number] = row
    return found


def written_rows(generation: Any, cfg: HookedWhisperConfig) -> list[list[int]]:
    """What a model wrote in each row, the prompt first, without the end token and what follows."""
    eot, n_prompt = get_tokenizer(cfg).eot, generation.n_prompt
    rows = []
    for row in generation.tokens.tolist():
        end = row.index(eot, n_prompt) if eot in row[n_prompt:] else len(row)
        rows.append(row[:end])
    return rows


def check_batch_size(batch_size: int) -> None:
    """Raise InputError for what is no positive integer."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; it must be a positive integer.")
