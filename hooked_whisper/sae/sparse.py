"""Encoding and decoding with few active latents a vector, in time that counts only those.

With k of d_sae latents active, a training step needs one full matrix product,
x W_enc. Everything else has k entries a vector: the decoder is a weighted sum of
k rows, and so are its gradients and the encoder's (Gao et al. 2024, appendix D).
They are `embedding_bag`s here: of decoder rows for each vector, and, with the
entries sorted by latent, of vectors for each latent.

Pre-activations are made a few hundred rows at a time: they stay in the
processor's cache while their largest are looked for, and never fill memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

_CHUNK_ELEMENTS = 3 << 19
"""Pre-activations made at once on the CPU: 6 MB in fp32."""

_GROUP = 8
"""How many pre-activations share a maximum when the k largest are looked for."""

_SPARSE_SHARE = {"cpu": 1 / 12, "cuda": 1 / 64}
"""Up to which share of active latents sparse decoding is faster (measured)."""


def is_sparse_faster(share: float, device: torch.device) -> bool:
    """Whether going through the active latents beats a matrix product at this share of them."""
    return share <= _SPARSE_SHARE.get(device.type, 0)


@dataclass(frozen=True, eq=False)
class Selection:
    """Which latents of which vectors of a batch may be active; entries run vector by vector.

    Args:
        indices: The latent of each entry.
        offsets: Where each vector's entries begin, and last the number of entries.
        n_latents: Number of latents that there are.
    """

    indices: Int[Tensor, " entry"]
    offsets: Int[Tensor, " batch_plus_1"]
    n_latents: int

    @property
    def n_vectors(self) -> int:
        """Number of vectors in the batch."""
        return len(self.offsets) - 1

    @cached_property
    def is_sparse(self) -> bool:
        """Whether there are so few entries that going through them is faster than a matrix."""
        share = len(self.indices) / max(1, self.n_vectors * self.n_latents)
        return is_sparse_faster(share, self.indices.device)

    @cached_property
    def rows(self) -> Int[Tensor, " entry"]:
        """The vector of each entry."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.indices))

    @cached_property
    def by_latent(self) -> "ByLatent":
        """The entries sorted by latent."""
        small = self.n_latents <= torch.iinfo(torch.int16).max
        order = (self.indices.short() if small else self.indices).argsort(stable=True)
        counts = torch.bincount(self.indices, minlength=self.n_latents)
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return ByLatent(order, self.rows[order], offsets)

    def between(self, start: int, stop: int) -> tuple["Selection", Bool[Tensor, " entry"]]:
        """The entries of latents from `start` to before `stop`, and which they are."""
        kept = (self.indices >= start) & (self.indices < stop)
        counts = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
        return Selection(self.indices[kept], counts[self.offsets], self.n_latents), kept

    def places(self) -> Int[Tensor, " entry"]:
        """Where each entry is in the flat batch of all latents."""
        return self.rows * self.n_latents + self.indices

    def as_matrix(self, values: Float[Tensor, " entry"]) -> Float[Tensor, "batch latent"]:
        """All latents, 0 but for the entries."""
        flat = values.new_zeros(self.n_vectors * self.n_latents)
        return flat.scatter_(0, self.places(), values).view(self.n_vectors, self.n_latents)

    def active(self, values: Float[Tensor, " entry"]) -> Bool[Tensor, " latent"]:
        """Which latents have a value that is not 0 anywhere."""
        result = torch.zeros(self.n_latents, dtype=torch.bool, device=values.device)
        result[self.indices[values != 0]] = True
        return result


class ByLatent(NamedTuple):
    """Entries of a selection sorted by latent: their places, vectors, and where latents begin."""

    order: Int[Tensor, " entry"]
    rows: Int[Tensor, " entry"]
    offsets: Int[Tensor, " latent_plus_1"]


# Which latents


def top_k(
    pre: Float[Tensor, "batch latent"], k: int
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The k largest of every row in any order, and where they are: `torch.topk`, faster on CPUs.

    The k largest lie in the k groups with the largest maxima, and these are few.

    >>> values, indices = top_k(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), 2)
    >>> values.sort().values, indices.sort().values
    (tensor([[2., 3.]]), tensor([[1, 3]]))
    """
    n_rows, n_latents = pre.shape
    n_groups = n_latents // _GROUP
    if pre.device.type != "cpu" or n_latents % _GROUP or n_groups < 2 * k:
        values, indices = pre.topk(k, dim=-1, sorted=False)
        return values, indices
    # Group g holds latents g, g + n_groups, ...: maxima are then taken of whole rows.
    groups = pre.view(n_rows, _GROUP, n_groups)
    best = groups.amax(dim=1).topk(k, dim=-1, sorted=False).indices
    members = groups.gather(2, best[:, None].expand(-1, _GROUP, -1)).flatten(1)
    values, places = members.topk(k, dim=-1, sorted=False)
    indices = places.div(k, rounding_mode="floor").mul_(n_groups)
    return values, indices.add_(best.gather(1, places.remainder_(k)))


@torch.no_grad()
def select_top_k(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in latent"],
    b_enc: Float[Tensor, " latent"],
    k: int,
    scale: Float[Tensor, " latent"] | None = None,
) -> tuple[Float[Tensor, " entry"], Selection]:
    """The k latents with the largest pre-activations of every vector.

    Args:
        x: The encoder's input.
        W_enc: Its matrix.
        b_enc: Its bias.
        k: How many.
        scale: What pre-activations are multiplied with where they are compared.

    Returns:
        Their pre-activations (not multiplied), and which they are.
    """
    values, indices = [], []
    for _, pre in _pre_activations(x, W_enc, b_enc):
        if scale is None:
            top, places = top_k(pre, k)
        else:
            places = top_k(pre * scale, k)[1]
            top = pre.gather(1, places)
        values.append(top.to(x.dtype))
        indices.append(places)
    offsets = torch.arange(0, len(x) * k + 1, k, device=x.device)
    return torch.cat(values).flatten(), Selection(torch.cat(indices).flatten(), offsets, len(b_enc))


@torch.no_grad()
def select_top_of_batch(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in latent"],
    b_enc: Float[Tensor, " latent"],
    n: int,
    scale: Float[Tensor, " latent"] | None = None,
) -> tuple[Float[Tensor, " entry"], Selection]:
    """The n largest pre-activations of the whole batch, as far as they are positive.

    A bound a little too low is read off some vectors; whatever is over it is
    kept, and the n largest of that are found exactly.

    Args:
        x: The encoder's input.
        W_enc: Its matrix.
        b_enc: Its bias.
        n: How many in the whole batch.
        scale: What pre-activations are multiplied with where they are compared.

    Returns:
        Their pre-activations (not multiplied), and which they are.
    """
    surplus = 1.2
    while True:
        bound = _bound_for(surplus * n / len(x), x, W_enc, b_enc, scale)
        compared, places, values = _over(bound, x, W_enc, b_enc, scale)
        if len(places) >= n or bound == 0:
            break
        surplus *= 2
    if len(places) > n:
        kept = _largest(compared, n)
        places, values = places[kept], values[kept]
    return values, _selection_of_places(places, len(x), len(b_enc))


@torch.no_grad()
def select_positive(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in latent"],
    b_enc: Float[Tensor, " latent"],
) -> tuple[Float[Tensor, " entry"], Selection]:
    """All positive pre-activations, and which they are."""
    _, places, values = _over(0.0, x, W_enc, b_enc, None)
    return values, _selection_of_places(places, len(x), len(b_enc))


def _over(
    bound: float,
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in latent"],
    b_enc: Float[Tensor, " latent"],
    scale: Float[Tensor, " latent"] | None,
) -> tuple[Float[Tensor, " entry"], Int[Tensor, " entry"], Float[Tensor, " entry"]]:
    """Scaled pre-activations over a bound, their places in the flat batch, and unscaled ones."""
    compared, places, values = [], [], []
    for start, pre in _pre_activations(x, W_enc, b_enc):
        scaled = (pre if scale is None else pre * scale).flatten()
        found = (scaled > bound).nonzero().squeeze(-1)
        compared.append(scaled[found].to(x.dtype))
        values.append(compared[-1] if scale is None else pre.flatten()[found].to(x.dtype))
        places.append(found.add_(start * len(b_enc)))
    return torch.cat(compared), torch.cat(places), torch.cat(values)


def _bound_for(
    n_active: float,
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in latent"],
    b_enc: Float[Tensor, " latent"],
    scale: Float[Tensor, " latent"] | None,
) -> float:
    """What `n_active` pre-activations a vector are over, guessed from a few vectors; at least 0."""
    step = max(1, len(x) // 256)
    pre = torch.cat([pre for _, pre in _pre_activations(x[::step].contiguous(), W_enc, b_enc)])
    if scale is not None:
        pre = pre * scale
    rank = pre.numel() - int(n_active * len(pre))
    if rank < 1:
        return 0.0
    return max(0.0, float(pre.flatten().float().kthvalue(rank).values))


def _largest(values: Float[Tensor, " entry"], n: int) -> Bool[Tensor, " entry"]:
    """Which are the n largest; of equal ones the first."""
    least = values.kthvalue(len(values) - n + 1).values
    over = values > least
    equal = values == least
    return over | (equal & (equal.cumsum(0) <= n - over.sum()))


def _selection_of_places(places: Int[Tensor, " entry"], n_rows: int, n_latents: int) -> Selection:
    starts = torch.arange(0, (n_rows + 1) * n_latents, n_latents, device=places.device)
    return Selection(places % n_latents, torch.searchsorted(places, starts), n_latents)


def _pre_activations(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in latent"],
    b_enc: Float[Tensor, " latent"],
) -> Iterator[tuple[int, Float[Tensor, "some latent"]]]:
    """Pre-activations some rows at a time, with the first row's number."""
    dtype = compute_dtype(x)
    x, W_enc, b_enc = x.to(dtype), W_enc.to(dtype), b_enc.to(dtype)
    for start, stop in row_chunks(len(x), len(b_enc), x.device):
        yield start, torch.addmm(b_enc, x[start:stop], W_enc)


# Gradients


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
            along = _product(gradient, W_dec.T, ctx.dtype).flatten()[selection.places()]
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
        x: The encoder's input, from which `b_dec` is subtracted already; gets no gradient.
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


# Sizes


def row_chunks(n_rows: int, n_latents: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """First and last row (not included) of parts whose pre-activations fit in the cache."""
    at_once = max(64, _CHUNK_ELEMENTS // n_latents) if device.type == "cpu" else n_rows
    for start in range(0, n_rows, max(1, at_once)):
        yield start, min(start + at_once, n_rows)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products are computed in: autocast's dtype where it is on."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
