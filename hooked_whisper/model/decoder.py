"""Whisper's decoder: causal, with cross-attention and a tied unembedding."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import InputError, NoDecoderError, TokenError
from hooked_whisper.hooks.passes import PassInfo, running
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.model.blocks import DecoderBlock, Residual, StackedWeight, TransformerStack
from hooked_whisper.model.kv_cache import KVCache
from hooked_whisper.model.layers import LayerNorm, Linear, unembed
from hooked_whisper.speech.tokens import check_tokens


class NoDecoder(nn.Module):
    """What stands where an encoder alone has no decoder: whatever is asked of it is an error."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # torch and copying look for what may not be there
            return super().__getattr__(name)
        raise NoDecoderError

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise NoDecoderError


EncoderOutput = Float[Tensor, "audio_batch key d_model"]


class Decoder(TransformerStack):
    """From tokens and the encoder's output to the logits of the next tokens."""

    cross_W_Q = StackedWeight("cross_attn.W_Q")
    cross_W_K = StackedWeight("cross_attn.W_K")
    cross_W_V = StackedWeight("cross_attn.W_V")
    cross_W_O = StackedWeight("cross_attn.W_O")
    cross_b_Q = StackedWeight("cross_attn.b_Q")
    cross_b_K = StackedWeight("cross_attn.b_K")
    cross_b_V = StackedWeight("cross_attn.b_V")
    cross_b_O = StackedWeight("cross_attn.b_O")

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__()
        self.cfg = cfg
        # nn.Embedding's own constructor would draw other random values.
        self.token_embedding = nn.Embedding.from_pretrained(
            torch.empty(cfg.d_vocab, cfg.d_model), freeze=False
        )
        self.positional_embedding = nn.Parameter(torch.empty(cfg.n_text_ctx, cfg.d_model))
        self.blocks = nn.ModuleList(DecoderBlock(cfg) for _ in range(cfg.n_text_layers))
        self.ln_final = LayerNorm(cfg)
        # Only processed weights have an unembedding of their own.
        self.unembedding = None if cfg.tie_unembedding else Linear(cfg.d_model, cfg.d_vocab)

        self.hook_embed = HookPoint("batch pos d_model")
        self.hook_pos_embed = HookPoint("batch pos d_model")
        self.hook_logits = HookPoint("batch pos vocab")
        if not self.W_E.is_meta:  # else weights are on their way
            nn.init.normal_(self.token_embedding.weight, std=0.02)  # as in GPT-2
            nn.init.normal_(self.positional_embedding, std=0.01)

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:
        """The token embedding."""
        return self.token_embedding.weight

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"]:
        """The learned token positions."""
        return self.positional_embedding

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """The unembedding: the token embedding's transpose, unless weights were processed."""
        weight = self.W_E if self.unembedding is None else self.unembedding.weight
        return weight.T

    @property
    def b_U(self) -> Float[Tensor, "vocab"]:
        """The unembedding's bias: zeros, unless weights were processed."""
        if self.unembedding is None:
            return torch.zeros_like(self.W_E[:, 0])
        return self.unembedding.bias

    def embed(
        self, tokens: Int[Tensor, "batch pos"], dtype: torch.dtype, start: int = 0
    ) -> Residual:
        """The residual stream before the first block.

        Args:
            tokens: Token ids.
            dtype: What the stream is to be in: the encoder output's.
            start: The position of the first token.
        """
        x = self.hook_embed(self.token_embedding(tokens))
        pos = self.positional_embedding[start : start + tokens.shape[1]]
        if self.hook_pos_embed.is_hooked:
            pos = self.hook_pos_embed(pos.expand(len(x), -1, -1).clone())
        return (x + pos).to(dtype)

    def finish(
        self, resid: Residual, tokens: list[int] | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """The logits in float32, from the residual stream after the last block.

        Args:
            resid: The stream.
            tokens: Only theirs, in this order, which `hook_logits` does not see.
        """
        resid = self.ln_final(resid)
        if tokens is not None:
            weight, bias = self.W_U.T[tokens].to(resid.dtype), None
            if self.unembedding is not None:
                bias = self.unembedding.bias[tokens].to(resid.dtype)
            return F.linear(resid, weight, bias).float()
        if self.unembedding is None:
            logits = unembed(resid, self.W_E.to(resid.dtype))
        else:
            logits = self.unembedding(resid)
        # Decoding writes over logits: what hooks saw must not change with them.
        return self.hook_logits.clone_if_hooked(self.hook_logits(logits.float()))

    def run_from(
        self,
        layer: int,
        resid: Residual,
        encoder_output: EncoderOutput,
        positions: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch some vocab"]:
        """The logits at some positions, None for all, from the stream before block `layer`."""
        with running(PassInfo(n_recordings=len(encoder_output))):
            resid = self.run_blocks(resid, encoder_output, None, start=layer)
            return self.finish(resid if positions is None else resid[:, list(positions)])

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        encoder_output: EncoderOutput,
        kv_cache: KVCache | None = None,
        stop_at_layer: int | None = None,
    ) -> Float[Tensor, "batch pos vocab_or_d_model"]:
        """The next-token logits, or the residual stream before block `stop_at_layer`.

        Args:
            tokens: Token ids; with a cache, only those that it does not hold.
            encoder_output: What the encoder returned; one row, or one for
                each row of tokens, or one for each group of hypotheses.
            kv_cache: Keys and values of earlier tokens, to be extended.
            stop_at_layer: The first block not to run.

        Raises:
            TokenError: Tokens out of the vocabulary, too many, not integers.
            InputError: An encoder output of another shape, device or batch.
        """
        start = 0 if kv_cache is None else kv_cache.n_pos
        if start == 0:
            check_tokens(tokens, self.cfg.d_vocab, self.cfg.n_text_ctx)
            self.check_encoder_output(encoder_output, tokens)
        elif start + tokens.shape[1] > self.cfg.n_text_ctx:
            n_pos = start + tokens.shape[1]
            raise TokenError(f"{n_pos} tokens; the decoder has {self.cfg.n_text_ctx} positions.")
        with running(PassInfo(first_pos=start, n_recordings=len(encoder_output))):
            resid = self.embed(tokens, encoder_output.dtype, start)
            resid = self.run_blocks(resid, encoder_output, kv_cache, stop=stop_at_layer)
            if kv_cache is not None:
                kv_cache.n_pos = start + tokens.shape[1]
            return resid if stop_at_layer is not None else self.finish(resid)

    def check_encoder_output(self, encoder_output: Tensor, tokens: Tensor) -> None:
        """Refuse an encoder output of another shape, device or batch than these tokens want."""
        shape, need = tuple(encoder_output.shape), (self.cfg.n_audio_ctx, self.cfg.d_model)
        if encoder_output.ndim != 3 or shape[1:] != need:
            raise InputError(
                f"the encoder output is {shape}; this model's is (batch, {need[0]}, {need[1]}). "
                "Make it with model(mel)."
            )
        if len(tokens) % len(encoder_output):
            raise InputError(
                f"{len(encoder_output)} recordings and {len(tokens)} rows of tokens do not match. "
                "Pass one row of tokens for each recording."
            )
        if encoder_output.device != tokens.device or tokens.device != self.W_E.device:
            raise InputError(
                f"tokens are on {tokens.device}, the encoder output on {encoder_output.device}, "
                f"the model on {self.W_E.device}. Move them with .to(model.device)."
            )
