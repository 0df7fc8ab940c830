"""Which latents of a batch are active: the largest of each vector, of the batch, or all positive.

Pre-activations are made a few hundred rows at a time: they stay in the
processor's cache while their largest are looked for, and never fill memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.distributed import ProcessGroup

_CHUNK_ELEMENTS = 3 << 19
"""Pre-activations made at once on the CPU: 6 MB in fp32."""

_GROUP = 8
"""How many pre-activations share a maximum when the k largest are looked for."""

_SPARSE_SHARE = {"cpu": 1 / 12, "cuda": 1 / 64}
"""Up to which share of active latents sparse decoding is faster; CUDA's is a guess."""

Selected = tuple[Float[Tensor, " entry"], "Selection"]
"""Pre-activations (not scaled), and which they are."""


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
        """Vectors in the batch."""
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

    def flat_indices(self) -> Int[Tensor, " entry"]:
        """Where each entry is in the flat batch of all latents."""
        return self.rows * self.n_latents + self.indices

    def as_matrix(self, values: Float[Tensor, " entry"]) -> Float[Tensor, "batch latent"]:
        """All latents, 0 but for the entries."""
        flat = values.new_zeros(self.n_vectors * self.n_latents)
        return flat.scatter_(0, self.flat_indices(), values).view(self.n_vectors, self.n_latents)

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
) -> Selected:
    """The k latents with the largest pre-activations of every vector.

    Args:
        x: The encoder's input.
        W_enc: Its matrix.
        b_enc: Its bias.
        k: How many.
        scale: What pre-activations are multiplied with where they are compared.
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
    ranks: ProcessGroup | None = None,
) -> Selected:
    """The n largest pre-activations of the whole batch, as far as they are positive.

    A bound a little too low is read off some vectors; whatever is over it is
    kept, and the n largest of that are found exactly. Ranks that have parts of the batch
    tell each other what is over the bound, and so find the same ones as one process.

    Args:
        x: The encoder's input; this and the others are `select_top_k`'s.
        n: How many in the whole batch; of several ranks, for this one's vectors.
        ranks: Who has parts of the batch; None is this process alone.
    """
    ranks = ranks or ProcessGroup()
    surplus = 1.2
    while True:
        bound = ranks.minimum(_bound_for(surplus * n / len(x), x, W_enc, b_enc, scale))
        compared, flat, values = _over(bound, x, W_enc, b_enc, scale)
        found, wanted = zip(*ranks.gather_counts(len(flat), n), strict=True)
        if sum(found) >= sum(wanted) or bound == 0:
            break
        surplus *= 2
    if sum(found) > sum(wanted):
        everyone = torch.cat(ranks.gather_rows(compared, found))
        kept = _largest(everyone, sum(wanted)).split(found)[ranks.rank]
        flat, values = flat[kept], values[kept]
    return values, _selection_of(flat, len(x), len(b_enc))


@torch.no_grad()
def select_positive(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in latent"],
    b_enc: Float[Tensor, " latent"],
) -> Selected:
    """All positive pre-activations, and which they are."""
    _, flat, values = _over(0.0, x, W_enc, b_enc, None)
    return values, _selection_of(flat, len(x), len(b_enc))


def _over(
    bound: float,
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in latent"],
    b_enc: Float[Tensor, " latent"],
    scale: Float[Tensor, " latent"] | None,
) -> tuple[Float[Tensor, " entry"], Int[Tensor, " entry"], Float[Tensor, " entry"]]:
    """Scaled pre-activations over a bound, their flat in the flat batch, and unscaled ones."""
    compared, flat, values = [], [], []
    for start, pre in _pre_activations(x, W_enc, b_enc):
        scaled = (pre if scale is None else pre * scale).flatten()
        found = (scaled > bound).nonzero().squeeze(-1)
        compared.append(scaled[found].to(x.dtype))
        values.append(compared[-1] if scale is None else pre.flatten()[found].to(x.dtype))
        flat.append(found.add_(start * len(b_enc)))
    return torch.cat(compared), torch.cat(flat), torch.cat(values)


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


def _selection_of(flat: Int[Tensor, " entry"], n_rows: int, n_latents: int) -> Selection:
    starts = torch.arange(0, (n_rows + 1) * n_latents, n_latents, device=flat.device)
    return Selection(flat % n_latents, torch.searchsorted(flat, starts), n_latents)


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
