"""Encoding and decoding with few active latents a vector, in time that counts only those.

With k of d_sae latents active, a training step needs one full matrix product,
x W_enc. Everything else has k entries a vector: the decoder is a weighted sum of
k rows, and so are its gradients and the encoder's (Gao et al. 2024, appendix D).
They are `embedding_bag`s here: of decoder rows for each vector, and, with the
entries sorted by latent, of vectors for each latent.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from hooked_whisper.sae.selection import Selection, compute_dtype


class _Encode(torch.autograd.Function):
    """Pre-activations of a selection, whose values are known already."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor | None,
        values: Tensor,
        selection: Selection,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, W_enc)
        ctx.selection, ctx.dtype, ctx.subtracts = selection, dtype, b_dec is not None
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc = ctx.saved_tensors
        b_grad, W_grad = _sums_by_latent(ctx.selection, gradient, x, ctx.dtype)
        b_dec_grad = -(W_enc @ b_grad) if ctx.subtracts else None
        return None, W_grad.T, b_grad, b_dec_grad, None, None, None


class _Decode(torch.autograd.Function):
    """Sums of decoder rows."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, W_dec: Tensor, selection: Selection, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.selection, ctx.dtype = selection, dtype
        if not selection.is_sparse:
            return _product(selection.as_matrix(values), W_dec, dtype)
        return embedding_bag(
            selection.indices,
            W_dec,
            selection.offsets,
            mode="sum",
            per_sample_weights=values,
            include_last_offset=True,
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        selection = ctx.selection
        gradient = gradient.contiguous()
        if selection.is_sparse:
            along = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                gradient, W_dec, selection.indices, selection.offsets[:-1], selection.rows, 0
            )
        else:
            along = _product(gradient, W_dec.T, ctx.dtype).flatten()[selection.flat_indices()]
        return along, _sums_by_latent(selection, values, gradient, ctx.dtype)[1], None, None


def _sums_by_latent(
    selection: Selection, weights: Tensor, vectors: Tensor, dtype: torch.dtype
) -> tuple[Float[Tensor, " latent"], Float[Tensor, "latent width"]]:
    """For each latent the sum of its entries' weights, and of their vectors times weights."""
    if not selection.is_sparse:
        matrix = selection.as_matrix(weights)
        return matrix.sum(dim=0), _product(matrix.T, vectors, dtype)
    order, rows, offsets = selection.by_latent
    weights = weights[order]
    sums = torch.segment_reduce(weights, "sum", offsets=offsets, initial=0)
    bags = embedding_bag(
        rows, vectors, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    return sums, bags


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return (a.to(dtype) @ b.to(dtype)).to(a.dtype)


def encode_selected(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in latent"],
    b_enc: Float[Tensor, " latent"],
    b_dec: Float[Tensor, " d_in"] | None,
    values: Float[Tensor, " entry"],
    selection: Selection,
) -> Float[Tensor, " entry"]:
    """Pre-activations of a selection with gradients for the weights.

    Args:
        x: The encoder's input, from which `b_dec`, if any, is subtracted already; gets no gradient.
        W_enc: The encoder's matrix.
        b_enc: Its bias.
        b_dec: What was subtracted from the input, if anything.
        values: What the pre-activations are.
        selection: Which they are.
    """
    dtype = compute_dtype(x)
    result: Tensor = _Encode.apply(x.detach(), W_enc, b_enc, b_dec, values, selection, dtype)
    return result


def decode_selected(
    values: Float[Tensor, " entry"],
    W_dec: Float[Tensor, "latent d_out"],
    selection: Selection,
) -> Float[Tensor, "batch d_out"]:
    """The sum of decoder rows that each vector's latents stand for, without the bias."""
    dtype = compute_dtype(values)
    with torch.autocast(values.device.type, enabled=False):
        result: Tensor = _Decode.apply(values, W_dec, selection, dtype)
    return result
