"""Attention rollout: how much of each position's sound and text reaches another one.

Patterns of all layers are multiplied, as if attention only mixed positions.
`attention_rollout` does so with the patterns as they are; `gradient_rollout`
weighs them by what they do for one logit. Both say where a prediction looked,
not what would happen without it: patching says that.

Symbols: i are encoder positions, q decoder positions, `R_qi` how much of
encoder position i is in decoder position q; A is a pattern.

Source: Abnar and Zuidema 2020 "Quantifying Attention Flow in Transformers";
Chefer et al. 2021 "Generic Attention-model Explainability for Interpreting
Bi-Modal and Encoder-Decoder Transformers", section 3.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.errors import InterventionError, SiteError
from hooked_whisper.hooks.attached import frozen
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.metrics.tokens import LogProb, TokenIds
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel

Maps = dict[str, Tensor]
"""A matrix `[batch query key]` for each layer's pattern, by hook name."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """How much of each position is in each other one, after the last layer.

    Args:
        encoder: Of encoder positions in encoder positions.
        decoder: Of tokens in decoder positions; None without tokens.
        cross: Of encoder positions in decoder positions; None without tokens.
        pos: The decoder position of the logit whose gradients weigh; None
            for attention rollout, which has no target.
        n_positions: Encoder positions of each recording that hold sound, where known.
    """

    encoder: Float[Tensor, "batch query key"]
    decoder: Float[Tensor, "batch pos pos"] | None = None
    cross: Float[Tensor, "batch pos key"] | None = None
    pos: int | None = None
    n_positions: Int[Tensor, " batch"] | None = None

    def audio(
        self, pos: int | None = None, *, all_frames: bool = False
    ) -> Float[Tensor, "batch key"]:
        """Relevance of each encoder position, of 20 ms, for one decoder position.

        Args:
            pos: The decoder position; None is the target's, or the last.
            all_frames: Keep the padding. Otherwise the longest recording's
                end is the last position, and shorter ones have 0 past theirs.

        Raises:
            InterventionError: There is no such position, or it is not the target's.
        """
        relevance = self._row(self.cross, pos)
        if all_frames or self.n_positions is None:
            return relevance
        here = torch.arange(int(self.n_positions.max()), device=relevance.device)
        return relevance[:, : len(here)] * (here < self.n_positions[:, None])

    def tokens(self, pos: int | None = None) -> Float[Tensor, "batch pos"]:
        """Relevance of each token for one decoder position; see `audio`."""
        return self._row(self.decoder, pos)

    def _row(self, matrix: Tensor | None, pos: int | None) -> Tensor:
        if matrix is None:
            raise InterventionError("this rollout was made without tokens; pass them.")
        n_pos = matrix.shape[1]
        target = self.pos
        pos = pos if pos is not None else -1 if target is None else target
        if not -n_pos <= pos < n_pos:
            raise SiteError(f"no position {pos}: there are {n_pos} tokens, 0 to {n_pos - 1}.")
        if target is not None and pos % n_pos != target:
            raise InterventionError(
                f"the gradients are those of a logit at position {target}; position {pos} needs "
                f"gradient_rollout(..., pos={pos})."
            )
        return matrix[:, pos]


def attention_rollout(
    model: HookedWhisper,
    mel: Mel | Float[Tensor, "batch mel frame"],
    tokens: Int[Tensor, "batch pos"] | None = None,
) -> Rollout:
    """Rollout of the mean patterns, half of each layer being what passes it by.

    Encoder: `R_ii <- (A + I) / 2 · R_ii` from layer to layer. Decoder:
    self-attention does the same to `R_qq` and `R_qi`; then cross-attention
    halves both and adds `A / 2 · R_ii` to `R_qi`. So every row of `encoder`
    adds up to 1, and every row of `decoder` with that of `cross`.

    Args:
        model: The model.
        mel: Recordings.
        tokens: Their tokens; None rolls out the encoder alone.

    Source: Abnar and Zuidema 2020, section 3; cross-attention, which they
    have not, follows the same rule here: half stays, half is read.
    """
    maps: Maps = {}

    def keep(pattern: Tensor, hook: HookPoint) -> None:
        maps[hook.name or ""] = pattern.detach().float().mean(dim=1)

    with torch.no_grad(), model.hooks(fwd_hooks=[("*.hook_pattern", keep)]):
        model(mel, tokens)
        audio = _identity(maps["encoder.blocks.0.attn.hook_pattern"])
        for layer in range(model.cfg.n_audio_layers):
            audio = (audio + maps[f"encoder.blocks.{layer}.attn.hook_pattern"] @ audio) / 2
        if tokens is None:
            return Rollout(audio, n_positions=_n_positions(mel))
        text = _identity(maps["decoder.blocks.0.attn.hook_pattern"])
        cross = audio.new_zeros(len(text), text.shape[1], audio.shape[1])
        for layer in range(model.cfg.n_text_layers):
            pattern = maps[f"decoder.blocks.{layer}.attn.hook_pattern"]
            text, cross = (text + pattern @ text) / 2, (cross + pattern @ cross) / 2
            pattern = maps[f"decoder.blocks.{layer}.cross_attn.hook_pattern"]
            text, cross = text / 2, (cross + pattern @ audio) / 2
    return Rollout(audio, text, cross, n_positions=_n_positions(mel))


def gradient_rollout(
    model: HookedWhisper,
    mel: Mel | Float[Tensor, "batch mel frame"],
    tokens: Int[Tensor, "batch pos"],
    pos: int = -1,
    token: TokenIds | None = None,
) -> Rollout:
    """Relevance of sound and tokens for one logit, by patterns that raise it.

    Each layer's map is the mean over heads of `relu(∂logit/∂A * A)`. Encoder:
    `R_ii <- R_ii + A R_ii`. Decoder: self-attention does the same to `R_qq`
    and `R_qi`; then cross-attention adds `norm(R_qq)ᵀ A norm(R_ii)` to
    `R_qi`, where `norm` makes each row, less the identity, add up to 1.

    Args:
        model: The model.
        mel: Recordings.
        tokens: Their tokens.
        pos: The decoder position whose logit is explained, one before the
            token that it predicts.
        token: The logit's token, or one for each row; None is the most
            probable one.

    Returns:
        The relevances; those of `pos` are the ones that mean something:
        `rollout.audio()` and `rollout.tokens()`.

    Raises:
        MetricError: No such position or token.
        InterventionError: In `torch.inference_mode()`, which has no gradients.

    Source: Chefer et al. 2021, equations 5 to 10.
    """
    n_pos = tokens.shape[1]
    LogProb(0 if token is None else token, pos).check(len(tokens), n_pos, model.cfg.d_vocab)
    if torch.is_inference_mode_enabled():
        raise InterventionError("gradients are needed; leave torch.inference_mode() for it.")
    maps: Maps = {}

    def watch(pattern: Tensor, hook: HookPoint) -> Tensor:
        is_first = not pattern.requires_grad
        watched = pattern.detach().requires_grad_() if is_first else pattern.view_as(pattern)
        plain, name = pattern.detach(), hook.name or ""

        def weigh(gradient: Tensor) -> None:
            maps[name] = (gradient * plain).clamp(min=0).float().mean(dim=1)

        watched.register_hook(weigh)
        return watched

    needed = [each for each in model.parameters() if each.requires_grad]
    with torch.enable_grad(), frozen(needed), model.hooks(fwd_hooks=[("*.hook_pattern", watch)]):
        logits = model(mel, tokens)[:, pos]
        logits.gather(1, _ids(token, logits)).sum().backward()
    return _roll_out(model, maps, pos % n_pos, _n_positions(mel))


def _roll_out(model: HookedWhisper, maps: Maps, pos: int, n_positions: Tensor | None) -> Rollout:
    """The rules of Chefer et al. 2021, from each layer's weighted map."""
    audio = _identity(maps["encoder.blocks.0.attn.hook_pattern"])
    for layer in range(model.cfg.n_audio_layers):
        audio = audio + maps[f"encoder.blocks.{layer}.attn.hook_pattern"] @ audio  # equation 6
    read = _normalized(audio)
    text = _identity(maps["decoder.blocks.0.attn.hook_pattern"])
    cross = audio.new_zeros(len(text), text.shape[1], audio.shape[1])
    for layer in range(model.cfg.n_text_layers):
        weights = maps[f"decoder.blocks.{layer}.attn.hook_pattern"]
        text, cross = text + weights @ text, cross + weights @ cross  # equations 6 and 7
        weights = maps[f"decoder.blocks.{layer}.cross_attn.hook_pattern"]
        cross = cross + _normalized(text).mT @ weights @ read  # equation 10
    return Rollout(audio, text, cross, pos, n_positions)


def _normalized(
    relevance: Float[Tensor, "batch query query"],
) -> Float[Tensor, "batch query query"]:
    """The matrix with every row, less the identity, scaled to add up to 1: equations 8 and 9."""
    identity = _identity(relevance)
    others = relevance - identity
    total = others.sum(dim=-1, keepdim=True)
    # A row that nothing was added to stays the identity's.
    return others / torch.where(total > 0, total, 1.0) + identity


def _identity(like: Float[Tensor, "batch query query"]) -> Float[Tensor, "batch query query"]:
    return torch.eye(like.shape[-1], device=like.device).expand_as(like)


def _ids(token: Any, logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch 1"]:
    """Each row's token."""
    if token is None:
        return logits.argmax(dim=-1, keepdim=True)
    return torch.as_tensor(token, device=logits.device).expand(len(logits))[:, None]


def _n_positions(mel: Mel | Tensor) -> Tensor | None:
    return mel.n_positions if isinstance(mel, Mel) else None
