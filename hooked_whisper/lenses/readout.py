"""From the decoder's residual stream to tokens: last LayerNorm and unembedding, without hooks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.model.whisper import HookedWhisper

LOGIT_BYTES = 2**24
"""Logits in memory at once while statistics are taken: 80 positions of Whisper's vocabulary."""


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """What one residual stream says about the next token, at each position.

    Args:
        top_tokens: The likeliest tokens, the likeliest first.
        top_probs: Their probabilities.
        logprobs: Log-probabilities of the tokens that were asked about, in nats.
        ranks: How many tokens are likelier than each of these; 0 is the likeliest.
    """

    top_tokens: Int[Tensor, "*site batch pos top"]
    top_probs: Float[Tensor, "*site batch pos top"]
    logprobs: Float[Tensor, "*site batch pos token"]
    ranks: Int[Tensor, "*site batch pos token"]

    @classmethod
    def stack(cls, several: list["TokenStatistics"]) -> "TokenStatistics":
        """Those of several streams along a new first axis."""
        names = ("top_tokens", "top_probs", "logprobs", "ranks")
        return cls(*(torch.stack([getattr(one, name) for one in several]) for name in names))


@dataclass(frozen=True, eq=False)
class Readout:
    """The last LayerNorm and the unembedding of a decoder, as a function of a residual stream.

    Hooks on the model do not act here. The weights are the model's own, so
    that an edit of them is seen.

    Args:
        cfg: The model's configuration.
        weight: The LayerNorm's weight.
        bias: Its bias.
        unembed: The unembedding.
        unembed_bias: Its bias; None where Whisper has none.
    """

    cfg: HookedWhisperConfig
    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    unembed: Float[Tensor, "d_model vocab"]
    unembed_bias: Float[Tensor, " vocab"] | None

    @classmethod
    def of(cls, model: HookedWhisper) -> "Readout":
        """A model's readout."""
        decoder = model.decoder
        b_U = None if decoder.unembedding is None else decoder.b_U.detach()
        norm = decoder.ln_final
        return cls(model.cfg, norm.weight.detach(), norm.bias.detach(), decoder.W_U.detach(), b_U)

    def normalize(self, resid: Float[Tensor, "*batch_pos d_model"]) -> Tensor:
        """The stream after the last LayerNorm, in its own dtype."""
        weight, bias = self.weight.float(), self.bias.float()
        normalized = F.layer_norm(resid.float(), weight.shape, weight, bias, self.cfg.ln_eps)
        return normalized.to(resid.dtype)

    def logits(
        self, resid: Float[Tensor, "*batch_pos d_model"]
    ) -> Float[Tensor, "*batch_pos vocab"]:
        """The logits, bit for bit as the model computes them from a stream of this shape."""
        x = self.normalize(resid)
        if self.unembed_bias is None:
            return (x @ self.unembed.to(x.dtype)).float()
        return F.linear(x, self.unembed.T.to(x.dtype), self.unembed_bias.to(x.dtype)).float()

    def logit_of(
        self, resid: Float[Tensor, "*batch_pos d_model"], tokens: Int[Tensor, "*batch_pos"]
    ) -> Float[Tensor, "*batch_pos"]:
        """The logit of one token at each position, without computing the others."""
        x = self.normalize(resid.float())
        logit = (x * self.unembed.T[tokens].float()).sum(dim=-1)
        return logit if self.unembed_bias is None else logit + self.unembed_bias[tokens].float()

    @torch.no_grad()
    def statistics(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        tokens: Int[Tensor, "batch pos token"],
        top_k: int,
        max_bytes: int = LOGIT_BYTES,
    ) -> TokenStatistics:
        """The likeliest tokens, and where given ones stand, without all logits in memory at once.

        Args:
            resid: The stream.
            tokens: Tokens to ask about, at each position.
            top_k: How many of the likeliest to return.
            max_bytes: Memory for logits, and as much for their
                log-probabilities; one position's are always held.
        """
        n_rows, shape = self._rows_at_once(max_bytes), resid.shape[:2]
        parts = [
            self._statistics_of_rows(*chunk, top_k)
            for chunk in zip(
                resid.flatten(0, 1).split(n_rows), tokens.flatten(0, 1).split(n_rows), strict=True
            )
        ]
        joined = [torch.cat(chunks).unflatten(0, shape) for chunks in zip(*parts, strict=True)]
        return TokenStatistics(*joined)

    @torch.no_grad()
    def likeliest(
        self, resid: Float[Tensor, "batch pos d_model"], max_bytes: int = LOGIT_BYTES
    ) -> Int[Tensor, "batch pos"]:
        """The likeliest token at each position, likewise."""
        chunks = resid.flatten(0, 1).split(self._rows_at_once(max_bytes))
        best = [self.logits(chunk).argmax(dim=-1) for chunk in chunks]
        return torch.cat(best).unflatten(0, resid.shape[:2])

    def _rows_at_once(self, max_bytes: int) -> int:
        return max(1, max_bytes // (4 * self.cfg.d_vocab))

    def _statistics_of_rows(
        self, resid: Tensor, tokens: Tensor, top_k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = self.logits(resid)
        # On a CPU log_softmax is quicker than logsumexp, and a sum of int32 than one of int64.
        logprobs = logits.log_softmax(dim=-1)
        top_tokens = logits.topk(top_k, dim=-1).indices
        asked = logits.gather(-1, tokens)
        ranks = [(logits > one[:, None]).sum(dim=-1, dtype=torch.int32) for one in asked.unbind(-1)]
        return (
            top_tokens,
            logprobs.gather(-1, top_tokens).exp(),
            logprobs.gather(-1, tokens),
            torch.stack(ranks, dim=-1).long(),
        )
