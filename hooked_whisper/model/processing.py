"""Weight processing with TransformerLens's meaning: the same function from other weights."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hooked_whisper.errors import ConfigError
from hooked_whisper.model.attention import Attention
from hooked_whisper.model.blocks import DecoderBlock, EncoderBlock
from hooked_whisper.model.calls import WhisperBase
from hooked_whisper.model.layers import LayerNorm, Linear


@torch.no_grad()
def process_weights_(
    model: WhisperBase,
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = False,
) -> None:
    """Rewrite the weights in place as TransformerLens does; the logits stay as they are.

    The unembedding and the keys' biases become parameters of their own.
    The encoder's last LayerNorm stays as it is, so that its output
    remains Whisper's.

    Args:
        fold_ln: Move each LayerNorm's weight and bias into what reads it.
        center_writing_weights: Take the mean over `d_model` out of
            everything that writes to the residual stream behind the
            embeddings of the convolutions; every LayerNorm removes it anyway.
        center_unembed: Take the mean over `vocab` out of the unembedding.
            This shifts all logits of a position alike: probabilities stay.

    Raises:
        ConfigError: Weights in less than float32, which would lose digits, or
            with an adapter that is not merged.

    Source: `ProcessWeights` of TransformerLens.
    """
    if model.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"the weights are {model.dtype}; processing them needs float32. Load with "
            "dtype=torch.float32, process, then call model.to(dtype)."
        )
    model.cfg.need_decoder()
    if model.adapter_weights is not None:
        raise ConfigError(
            "the weights of a model with an adapter that can be switched off are not processed. "
            "Call model.merge_adapter() first."
        )
    _untie(model)
    if fold_ln:
        _fold_layer_norms(model)
    if center_writing_weights:
        _center_writing_weights(model)
    if center_unembed:
        unembedding = model.decoder.unembedding
        assert unembedding is not None
        unembedding.weight.sub_(unembedding.weight.mean(dim=0, keepdim=True))
        unembedding.bias.sub_(unembedding.bias.mean())
    model.cfg = replace(model.cfg, tie_unembedding=False, key_bias=True)


def _untie(model: WhisperBase) -> None:
    """Give the unembedding and every key map parameters of their own."""
    weight = model.decoder.W_E
    if model.decoder.unembedding is None:
        with torch.device("meta"):
            unembedding = Linear(weight.shape[1], weight.shape[0])
        train = weight.requires_grad
        unembedding.weight = nn.Parameter(weight.detach().clone(), requires_grad=train)
        unembedding.bias = nn.Parameter(torch.zeros_like(weight[:, 0]), requires_grad=train)
        model.decoder.unembedding = unembedding
        model.mod_dict["decoder.unembedding"] = unembedding
    for block in _blocks(model):
        for attention in _attentions(block):
            if not attention.key.has_bias:
                like = attention.query.bias
                attention.key.bias = nn.Parameter(
                    torch.zeros_like(like), requires_grad=like.requires_grad
                )


def _blocks(model: WhisperBase) -> list[EncoderBlock | DecoderBlock]:
    blocks: list[Any] = [*model.encoder.blocks, *model.decoder.blocks]
    return blocks


def _attentions(block: EncoderBlock | DecoderBlock) -> list[Attention]:
    return [block.attn, block.cross_attn] if isinstance(block, DecoderBlock) else [block.attn]


def _fold_layer_norms(model: WhisperBase) -> None:
    """Move LayerNorm weights and biases into the linear maps that read them.

    The encoder's last LayerNorm keeps its own: its output is the encoder's.
    """
    for block in _blocks(model):
        attention = block.attn
        _fold(block.ln1, [attention.query, attention.key, attention.value])
        if isinstance(block, DecoderBlock):
            _fold(block.ln2, [block.cross_attn.query])
            _fold(block.ln3, [block.mlp.fc_in])
        else:
            _fold(block.ln2, [block.mlp.fc_in])
    assert model.decoder.unembedding is not None
    _fold(model.decoder.ln_final, [model.decoder.unembedding])


def _fold(norm: LayerNorm, readers: list[Linear]) -> None:
    for reader in readers:
        reader.bias.add_(reader.weight @ norm.bias)
        reader.weight.mul_(norm.weight)
        # What a LayerNorm gives has no mean: a reader's own mean over d_model reads nothing.
        _center(reader.weight)
    norm.weight.fill_(1)
    norm.bias.zero_()


def _center_writing_weights(model: WhisperBase) -> None:
    """Take the mean over d_model out of what is added to either residual stream."""
    _center(model.decoder.token_embedding.weight)
    _center(model.encoder.positional_embedding)
    _center(model.decoder.positional_embedding)
    for block in _blocks(model):
        for writer in [*(attention.out for attention in _attentions(block)), block.mlp.fc_out]:
            _center(writer.weight.T)
            _center(writer.bias)


def _center(weight: Tensor) -> None:
    weight -= weight.mean(dim=-1, keepdim=True)
