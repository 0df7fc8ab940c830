"""The digits model's vocabulary, and Whisper's forward pass over thinned windows."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import log

import torch
import torch.nn.functional as F
from digits_data import WORDS, Window
from jaxtyping import Float, Int64
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.speech.tokens import get_tokenizer

IGNORE = -100
D_VOCAB = 51_865
TIMESTAMP_STEP_S = 0.2
N_PROMPT = 4
"""Tokens before the first word."""
ALIGNED_LAYER = 2
"""The decoder's layer whose cross-attention is told where the next digit is spoken."""


def digits_config(d_vocab: int = D_VOCAB) -> HookedWhisperConfig:
    """The digits model's sizes; while it is trained its vocabulary is only what it uses."""
    return HookedWhisperConfig(
        n_mels=80,
        n_audio_ctx=1500,
        n_audio_layers=4,
        n_audio_heads=6,
        n_text_ctx=448,
        n_text_layers=4,
        n_text_heads=6,
        d_model=96,
        d_vocab=d_vocab,
        model_name="digits",
    )


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that the digits model uses, each with a row; all others share one row more.

    The shared row's logit counts for every unused token, so that the softmax over these rows
    is the softmax over all 51,865 tokens.
    """

    token_ids: tuple[int, ...]
    sot: int
    eot: int
    english: int
    transcribe: int
    translate: int
    no_speech: int
    no_timestamps: int
    digits: tuple[int, ...]
    first_timestamp: int

    @property
    def n_rows(self) -> int:
        """Used tokens, and the shared row."""
        return len(self.token_ids) + 1

    @property
    def n_unused(self) -> int:
        """Tokens behind the shared row."""
        return D_VOCAB - len(self.token_ids)

    def timestamp(self, seconds: float) -> int:
        """The row of the first timestamp that is not before `seconds`."""
        step = int(-(-seconds // TIMESTAMP_STEP_S))
        return self.first_timestamp + min(step, round(30 / TIMESTAMP_STEP_S))

    def to_string(self, rows: list[int]) -> str:
        """The words among some rows."""
        words = {row: word for row, word in zip(self.digits, WORDS, strict=True)}
        return " ".join(words[row] for row in rows if row in words)


@cache
def vocabulary() -> Vocabulary:
    """The used rows of Whisper's multilingual vocabulary, in the order of their tokens."""
    tokenizer = get_tokenizer(digits_config())
    digits = [tokenizer.encode(" " + word) for word in WORDS]
    special = {
        "sot": tokenizer.sot,
        "eot": tokenizer.eot,
        "english": tokenizer.to_language_token("en"),
        "transcribe": tokenizer.transcribe,
        "translate": tokenizer.translate,
        "no_speech": tokenizer.no_speech,
        "no_timestamps": tokenizer.no_timestamps,
        "first_timestamp": tokenizer.timestamp_begin,
    }
    timestamps = range(tokenizer.timestamp_begin, tokenizer.timestamp_begin + 1501, 10)
    used = sorted({token for [token] in digits} | set(special.values()) | set(timestamps))
    row = {token: number for number, token in enumerate(used)}
    return Vocabulary(
        token_ids=tuple(used),
        digits=tuple(row[token] for [token] in digits),
        **{name: row[token] for name, token in special.items()},
    )


@dataclass
class Targets:
    """Decoder input, and what is to follow each token: mostly `first`, else `second`."""

    tokens: Int64[Tensor, "batch pos"]
    first: Int64[Tensor, "batch pos"]
    second: Int64[Tensor, "batch pos"]


SECOND_SHARE = 0.1


def make_targets(windows: list[Window], timestamps: list[bool], tasks: list[bool]) -> Targets:
    """What the decoder reads and should say, with timestamps or without.

    Windows without speech: at the start token mostly <|nospeech|>, then an empty transcript.
    Without timestamps their end token has <|0.00|> as its second choice, because decoding
    never allows an end token as the first word, and a timestamp is no text.
    """
    v = vocabulary()
    rows = []
    for window, timed, translate in zip(windows, timestamps, tasks, strict=True):
        task = v.translate if translate else v.transcribe
        zero = v.timestamp(0.0)
        words = [v.digits[digit] for digit in window.digits]
        if timed:
            text = [zero, *words, v.timestamp(window.end_s)] if words else [zero]
        else:
            text = [v.no_timestamps, *words] if words else [v.no_timestamps, zero]
        tokens = [v.sot, v.english, task, *text]
        first = [*tokens[1:], v.eot]
        second = list(first)
        if not words:
            first[0] = v.no_speech
            if not timed:
                first[3] = v.eot
        rows.append((tokens, first, second))
    length = max(len(tokens) for tokens, _, _ in rows)

    def pad(lists: list[list[int]], value: int) -> Tensor:
        return torch.tensor([values + [value] * (length - len(values)) for values in lists])

    tokens, first, second = zip(*rows, strict=True)
    return Targets(pad(list(tokens), v.eot), pad(list(first), IGNORE), pad(list(second), IGNORE))


def split_heads(x: Float[Tensor, "batch pos d"], n_heads: int) -> Tensor:
    """[batch head pos d_head], without a copy."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention over keys whose scores are shifted by `mask`; heads joined again."""
    if mask is not None:
        mask = mask.expand(len(q), 1, q.shape[2], k.shape[2])
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return z.transpose(1, 2).flatten(2)


class ThinForward:
    """Whisper's forward pass over thinned windows, with the weights of a `HookedWhisper`.

    With all positions kept and weights of 0 it computes what the model computes.

    Args:
        weights: Parameters by the names that they have in `HookedWhisper`; used, not copied.
        audio_positions: The encoder's sinusoids.
        n_layers: Blocks of each stack.
        n_heads: Heads of each attention.
        dropout: Chance to drop an element of what a sublayer adds, in training.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        audio_positions: Float[Tensor, "pos d_model"],
        n_layers: int,
        n_heads: int,
        dropout: float = 0.0,
    ) -> None:
        self.w = weights
        self.audio_positions = audio_positions
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.dropout = dropout
        self.keep_pattern = False
        self.pattern: Tensor | None = None
        """Cross-attention of `ALIGNED_LAYER` in the decoder's last pass, where it is kept."""

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """Several linear maps of one input in one product."""
        weight = torch.cat([self.w[f"{name}.weight"] for name in names])
        biases = [self.w.get(f"{name}.bias") for name in names]
        width = len(weight) // len(names)
        bias = torch.cat([weight.new_zeros(width) if b is None else b for b in biases])
        return F.linear(x, weight, bias)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout else x

    def self_attention(self, x: Tensor, block: str, mask: Tensor | None) -> Tensor:
        normed = self.norm(x, f"{block}.ln1")
        names = [f"{block}.attn.{name}" for name in ("query", "key", "value")]
        q, k, v = self.linear(normed, *names).chunk(3, -1)
        z = attend(*(split_heads(part, self.n_heads) for part in (q, k, v)), mask)
        return x + self.drop(self.linear(z, f"{block}.attn.out"))

    def mlp(self, x: Tensor, block: str, norm: str) -> Tensor:
        hidden = F.gelu(self.linear(self.norm(x, f"{block}.{norm}"), f"{block}.mlp.fc_in"))
        return x + self.drop(self.linear(hidden, f"{block}.mlp.fc_out"))

    def encode(
        self,
        mel: Float[Tensor, "batch mel frame"],
        positions: Int64[Tensor, "batch pos"],
        log_weights: Float[Tensor, "batch pos"] | None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The encoder's output at the kept positions."""
        w = self.w
        x = F.conv1d(mel, w["encoder.conv1.weight"], w["encoder.conv1.bias"], padding=1)
        x = F.conv1d(
            F.gelu(x), w["encoder.conv2.weight"], w["encoder.conv2.bias"], stride=2, padding=1
        )
        x = F.gelu(x).transpose(1, 2) + self.audio_positions[positions]
        mask = None if log_weights is None else log_weights[:, None, None, :]
        for layer in range(self.n_layers):
            block = f"encoder.blocks.{layer}"
            x = self.mlp(self.self_attention(x, block, mask), block, "ln2")
        return self.norm(x, "encoder.ln_final")

    def decode(
        self,
        tokens: Int64[Tensor, "batch pos"],
        audio: Float[Tensor, "batch key d_model"],
        log_weights: Float[Tensor, "batch key"] | None,
    ) -> Float[Tensor, "batch pos row"]:
        """Logits over the vocabulary's rows; the shared row counts for all unused tokens."""
        embedding = self.w["decoder.token_embedding.weight"]
        length = tokens.shape[1]
        x = embedding[tokens] + self.w["decoder.positional_embedding"][:length]
        causal = torch.full((length, length), float("-inf")).triu(1)
        mask = None if log_weights is None else log_weights[:, None, None, :]
        blocks = [f"decoder.blocks.{layer}" for layer in range(self.n_layers)]
        names = [f"{block}.cross_attn.{name}" for block in blocks for name in ("key", "value")]
        keys_values = self.linear(audio, *names).chunk(len(names), -1)
        for layer, block in enumerate(blocks):
            x = self.self_attention(x, block, causal)
            q = self.linear(self.norm(x, f"{block}.ln2"), f"{block}.cross_attn.query")
            k, v = keys_values[2 * layer : 2 * layer + 2]
            heads = [split_heads(part, self.n_heads) for part in (q, k, v)]
            if self.keep_pattern and layer == ALIGNED_LAYER:
                scores = heads[0] @ heads[1].mT * heads[0].shape[-1] ** -0.5
                self.pattern = (scores if mask is None else scores + mask).softmax(-1)
                z = (self.pattern @ heads[2]).transpose(1, 2).flatten(2)
            else:
                z = attend(*heads, mask)
            x = x + self.drop(self.linear(z, f"{block}.cross_attn.out"))
            x = self.mlp(x, block, "ln3")
        logits = F.linear(self.norm(x, "decoder.ln_final"), embedding)
        shift = torch.zeros(logits.shape[-1])
        shift[-1] = log(vocabulary().n_unused)
        return logits + shift
