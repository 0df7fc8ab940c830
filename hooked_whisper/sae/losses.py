"""Losses in fewer passes over memory than autograd takes.

With few latents active, only those are counted. With many, as ReLU has them, loss and gradients
are computed together, some rows at a time: no tensor of all latents of a batch is ever made.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.sae.base import SAE, Losses
from hooked_whisper.sae.selection import (
    Selection,
    compute_dtype,
    is_sparse_faster,
    row_chunks,
    select_positive,
)
from hooked_whisper.sae.sparse import decode_selected, encode_selected

Errors = tuple[dict[str, Float[Tensor, ""]], Float[Tensor, "batch d_out"]]
"""Squared errors by name, which are added up, and the reconstruction."""


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recons: Tensor, target: Tensor) -> Tensor:
        error = recons - target
        ctx.save_for_backward(error)
        return torch.dot(error.flatten(), error.flatten()) / len(error)

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        (error,) = ctx.saved_tensors
        gradient = error * (factor * (2 / len(error)))
        return gradient, -gradient if ctx.needs_input_grad[1] else None


def squared_error(
    recons: Float[Tensor, "batch width"], target: Float[Tensor, "batch width"]
) -> Float[Tensor, ""]:
    """Squared error summed over the width, mean over the batch.

    >>> squared_error(torch.ones(2, 3), torch.zeros(2, 3))
    tensor(3.)
    """
    result: Tensor = _SquaredError.apply(recons, target)
    return result


def squared_errors(
    sae: SAE,
    values: Float[Tensor, " entry"],
    selection: Selection,
    target: Float[Tensor, "batch d_out"],
) -> Errors:
    """The squared error (`"mse"`) of what a selection of latents stands for."""
    recons = sae._denormalize(decode_selected(values, sae.W_dec, selection) + sae.b_dec)
    return {"mse": squared_error(recons, target)}, recons


def selected_losses(
    sae: SAE,
    inputs: Float[Tensor, "batch d_in"],
    target: Float[Tensor, "batch d_out"],
    values: Float[Tensor, " entry"],
    selection: Selection,
    l1: float | None = None,
    errors: Callable[[SAE, Tensor, Selection, Tensor], Errors] = squared_errors,
) -> Losses:
    """The losses of an autoencoder of which it is known which latents are active.

    Args:
        sae: The autoencoder.
        inputs: The encoder's input, from which the decoder's bias is subtracted already
            where the configuration says so; gets no gradient.
        target: What to reconstruct.
        values: Pre-activations.
        selection: Which they are.
        l1: Weight of a penalty on latents times the lengths of their decoder rows; None is none.
        errors: What is minimised beside it.
    """
    subtracted = sae.b_dec if sae.cfg.apply_b_dec_to_input else None
    values = encode_selected(inputs, sae.W_enc, sae.b_enc, subtracted, values, selection).relu()
    parts, recons = errors(sae, values, selection, target)
    if l1 is not None:
        lengths = sae.W_dec.norm(dim=-1)
        parts["l1"] = l1 * (values * lengths[selection.indices]).sum() / len(inputs)
    n_active = (values.detach() > 0).sum()
    return Losses.of(parts, recons, selection.active(values.detach()), n_active / len(inputs))


def relu_losses(
    sae: SAE,
    inputs: Float[Tensor, "batch d_in"],
    target: Float[Tensor, "batch d_out"],
    l1: float,
) -> Losses:
    """Squared error and L1 penalty: `|target - recons|^2 + l1 * sum_i f_i |W_dec_i|`.

    Arguments are those of `selected_losses`.
    """
    with torch.no_grad():
        some = inputs[:: max(1, len(inputs) // 64)]
        share = float((some @ sae.W_enc + sae.b_enc > 0).float().mean())
    if is_sparse_faster(share, inputs.device):
        values, selection = select_positive(inputs, sae.W_enc, sae.b_enc)
        return selected_losses(sae, inputs, target, values, selection, l1)
    return _dense_losses(sae, inputs, target, l1)


def _dense_losses(
    sae: SAE,
    inputs: Float[Tensor, "batch d_in"],
    target: Float[Tensor, "batch d_out"],
    l1: float,
) -> Losses:
    parameters = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, target]
    dtype = compute_dtype(inputs)
    with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
        parts = _Parts(sae, inputs, target, l1, dtype)
        for start, stop in row_chunks(len(inputs), sae.cfg.d_sae, inputs.device):
            parts.add(start, stop)
        mse, penalty, gradients = parts.finish()
    return Losses(
        total=_KnownGradients.apply(mse + penalty, gradients, *parameters),
        parts={"mse": mse, "l1": penalty},
        recons=parts.recons,
        active=parts.n_active > 0,
        l0=parts.n_active.sum() / len(inputs),
    )


class _Parts:
    """Loss, gradients and statistics of a batch, added up over parts of it.

    With e the error of a part, s what its reconstruction is scaled with, B the size of
    the whole batch, and 1 where a latent is active:

        G = 2 s e / B                            gradient of the reconstruction
        D = (G W_dec^T + l1 |W_dec_i| / B) * 1   gradient of the pre-activations
        dW_dec = f^T G,  dW_enc = x^T D,  db_enc = sum D,  db_dec = sum G - W_enc db_enc
    """

    def __init__(self, sae: SAE, inputs: Tensor, target: Tensor, l1: float, dtype: torch.dtype):
        self.sae, self.inputs, self.target, self.dtype = sae, inputs, target, dtype
        self.W_enc, self.W_dec = sae.W_enc.to(dtype), sae.W_dec.to(dtype)
        self.b_enc, self.b_dec = sae.b_enc.to(dtype), sae.b_dec.to(dtype)
        self.lengths = sae.W_dec.norm(dim=-1)
        self.l1 = l1 / len(inputs)
        self.l1_gradient = (self.l1 * self.lengths).to(dtype)
        self.recons = torch.empty_like(target, dtype=sae.dtype)
        self.error_gradient = torch.empty_like(self.recons)
        self.squared = self.recons.new_zeros(())
        self.latent_sums = torch.zeros_like(self.lengths)
        self.n_active = torch.zeros_like(self.lengths)
        self.W_enc_grad = torch.zeros_like(sae.W_enc, memory_format=torch.contiguous_format)
        self.W_dec_grad = torch.zeros_like(sae.W_dec)
        self.b_enc_grad = torch.zeros_like(sae.b_enc)

    def add(self, start: int, stop: int) -> None:
        """Count the rows from `start` to before `stop`."""
        x = self.inputs[start:stop].to(self.dtype)
        latents = torch.addmm(self.b_enc, x, self.W_enc).relu_()
        self.latent_sums += latents.sum(dim=0, dtype=self.latent_sums.dtype)
        self.n_active += latents.sign().sum(dim=0, dtype=self.n_active.dtype)
        gradient = self._reconstruct(latents, start, stop)
        _add_product(self.W_dec_grad, latents.T, gradient)
        along = torch.addmm(self.l1_gradient, gradient, self.W_dec.T)
        torch.ops.aten.threshold_backward.grad_input(along, latents, 0, grad_input=along)
        _add_product(self.W_enc_grad, x.T, along)
        self.b_enc_grad += along.sum(dim=0)

    def _reconstruct(self, latents: Tensor, start: int, stop: int) -> Tensor:
        """The gradient of some rows' reconstruction."""
        recons = self.recons[start:stop].copy_(torch.addmm(self.b_dec, latents, self.W_dec))
        scale = self.sae._scale
        if scale is not None:
            recons *= scale.factor[start:stop]
            if scale.shift is not None:
                recons += scale.shift[start:stop]
        error = torch.sub(recons, self.target[start:stop], out=self.error_gradient[start:stop])
        self.squared += torch.dot(error.flatten(), error.flatten())
        gradient = error.mul_(2 / len(self.target))
        return (gradient if scale is None else gradient * scale.factor[start:stop]).to(self.dtype)

    def finish(self) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Squared error, penalty, and the gradients of both encoder, both decoder and target."""
        mse = self.squared / len(self.target)
        penalty = self.l1 * (self.latent_sums @ self.lengths)
        along_lengths = self.l1 * self.latent_sums / self.lengths.clamp_min(1e-12)
        self.W_dec_grad.addcmul_(along_lengths[:, None], self.sae.W_dec)
        scale = self.sae._scale
        errors = self.error_gradient
        b_dec_grad = (errors if scale is None else errors * scale.factor).sum(dim=0)
        if self.sae.cfg.apply_b_dec_to_input:
            b_dec_grad = b_dec_grad - self.sae.W_enc @ self.b_enc_grad
        target_grad = -errors if self.target.requires_grad else None
        gradients = [self.W_enc_grad, self.b_enc_grad, self.W_dec_grad, b_dec_grad, target_grad]
        return mse, penalty, gradients


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


class _KnownGradients(torch.autograd.Function):
    """A loss that hands given gradients to its parameters when it goes backward, once."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradients of this loss were handed out; compute the losses again "
                "to go backward a second time."
            )
        # Handed out rather than kept: .grad can then be these very tensors, and no copies.
        gradients, ctx.gradients = ctx.gradients, None
        if factor.device.type == "cpu" and float(factor) == 1:
            return None, None, *gradients
        return None, None, *[None if each is None else each * factor for each in gradients]
