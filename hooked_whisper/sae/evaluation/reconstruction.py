"""How well an autoencoder gives back what it reads, and with how many latents.

Everything is summed up batch by batch in float64, so that memory does not
grow with the data, and batches of any size give the same numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from hooked_whisper.analysis.massive_activations import SumsByNorm
from hooked_whisper.analysis.moments import Histogram, RunningMoments
from hooked_whisper.errors import InputError, SpliceError, describe

ALWAYS_ON = 0.9
"""Share of the vectors above which a latent counts as always on."""
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an autoencoder does to vectors; shares are of 1.

    Args:
        n_vectors: How many vectors were judged.
        fvu: Fraction of variance unexplained: squared error over squared
            distance from the mean vector. 0 is perfect, 1 as good as the mean.
        fvu_without_massive: The same of all vectors but the massive ones, which are over 3
            times as long as the median vector (to 1 %) and may carry most of the variance.
        fvu_normalized: The same of vectors that are divided by their length, and their
            reconstructions by the same: every position counts alike.
        massive_share: Share of the vectors that are massive.
        massive_variance: Their share of the squared distances from the mean vector.
        explained_variance: 1 less the variance of the error over that of the
            vectors. A constant error, which `fvu` counts, does not lower it.
        mse: Squared error of a vector, summed over its width.
        cosine: Mean cosine of vector and reconstruction.
        norm_ratio: Length of the reconstructions over that of the vectors.
        l0: Latents that are active (not 0) at once, on average.
        density: Share of the vectors on which each latent is active.
    """

    n_vectors: int
    fvu: float
    fvu_without_massive: float
    fvu_normalized: float
    massive_share: float
    massive_variance: float
    explained_variance: float
    mse: float
    cosine: float
    norm_ratio: float
    l0: float
    density: Float64[Tensor, " latent"]

    @property
    def dead_share(self) -> float:
        """Share of latents that are active on none of the vectors."""
        return float((self.density == 0).double().mean())

    @property
    def always_on_share(self) -> float:
        """Share of latents that are active on more than 90 % of the vectors."""
        return float((self.density > ALWAYS_ON).double().mean())

    def density_histogram(self, low: float | int = -6, n_bins: int = 24) -> Histogram:
        """How many latents have which density, over its decimal logarithm from `low` to 0.

        Dead latents, which have no logarithm, count as outside.
        """
        if n_bins < 1 or low >= 0:
            raise InputError(f"low is {low} and n_bins {n_bins}; low is under 0, n_bins over it.")
        logs = self.density.log10()
        edges = torch.linspace(low, 0, n_bins + 1, dtype=torch.float64)
        return Histogram.of(logs, edges)

    def to_dict(self) -> dict[str, Any]:
        """Every number, and the histogram of densities."""
        histogram = self.density_histogram()
        numbers = {
            name: value for name, value in vars(self).items() if not isinstance(value, Tensor)
        }
        return numbers | {
            "dead_share": self.dead_share,
            "always_on_share": self.always_on_share,
            "density": self.density.tolist(),
            "log10_density_histogram": {
                "counts": histogram.counts.tolist(),
                "edges": histogram.edges.tolist(),
                "dead_or_under": histogram.n_outside,
            },
        }


class VarianceMeter:
    """Takes batches of vectors and what they were given back as; says what is unexplained."""

    def __init__(self) -> None:
        self._by_norm = SumsByNorm()
        self._target = RunningMoments()
        self._directions = RunningMoments()
        self.squared_error = self._normalized_error = 0.0

    @property
    def n_vectors(self) -> int:
        """Vectors so far."""
        return self._target.n

    @property
    def mean(self) -> Float64[Tensor, " d_out"]:
        """The mean of the vectors that were to be given back."""
        if not self.n_vectors:
            raise InputError("no vectors were given; there is nothing to judge.")
        return self._target.mean

    @property
    def spread(self) -> float:
        """The squared distances of all vectors from the mean vector, summed up."""
        return self._target.spread

    @torch.no_grad()
    def update(
        self, target: Float[Tensor, "vector d_out"], recons: Float[Tensor, "vector d_out"]
    ) -> None:
        """Take one batch: what was to be given back, and what was."""
        target = target.double()
        errors = (target - recons).square().sum(dim=1)
        lengths = target.norm(dim=1).clamp_min(1e-150)
        self._target.add(target)
        self._by_norm.add(target, errors)
        self._directions.add(target / lengths[:, None])
        self.squared_error += float(errors.sum())
        self._normalized_error += float((errors / lengths.square()).sum())

    def numbers(self) -> dict[str, float]:
        """Those of `Reconstruction` that are shares of variance, by their names there."""
        usual, every = self._by_norm.parted()
        without = _ratio(usual.squared_error, usual.spread)
        by_massive = every.spread - usual.spread_about(every)
        fvu = _ratio(self.squared_error, self.spread)
        some = usual.n < every.n
        return {
            "fvu": fvu,
            "fvu_without_massive": without if some else fvu,
            "fvu_normalized": _ratio(self._normalized_error, self._directions.spread),
            "massive_share": 1 - usual.n / every.n,
            "massive_variance": _ratio(by_massive, every.spread) if some else 0.0,
        }


class ReconstructionMeter:
    """Takes batches of vectors one after the other; `result()` says how they were given back."""

    def __init__(self) -> None:
        self._variance = VarianceMeter()
        self._error = RunningMoments()
        self._sums = {"cosine": 0.0, "length": 0.0, "length_back": 0.0}
        self._active: Int[Tensor, " latent"] | None = None

    @property
    def n_vectors(self) -> int:
        """Vectors so far."""
        return self._variance.n_vectors

    @property
    def mean(self) -> Float64[Tensor, " d_out"]:
        """The mean of the vectors that were to be given back."""
        return self._variance.mean

    @torch.no_grad()
    def update(
        self,
        target: Float[Tensor, "vector d_out"],
        recons: Float[Tensor, "vector d_out"],
        latents: Float[Tensor, "vector latent"],
    ) -> None:
        """Take one batch: what was to be given back, what was, and the latents."""
        if not len(target):
            return
        active = (latents != 0).sum(dim=0).cpu()
        self._active = active if self._active is None else self._active + active
        target, recons = target.double().cpu(), recons.double().cpu()
        self._variance.update(target, recons)
        self._error.add(target - recons)
        self._sums["cosine"] += float(F.cosine_similarity(target, recons, dim=-1).sum())
        self._sums["length"] += float(target.norm(dim=-1).sum())
        self._sums["length_back"] += float(recons.norm(dim=-1).sum())

    def result(self) -> Reconstruction:
        """The numbers over everything so far."""
        n = self.n_vectors
        if not n or self._active is None:
            raise InputError("no vectors were given; there is nothing to judge.")
        density = self._active.double() / n
        return Reconstruction(
            n_vectors=n,
            **self._variance.numbers(),
            explained_variance=1 - _ratio(self._error.spread, self._variance.spread),
            mse=self._variance.squared_error / n,
            cosine=self._sums["cosine"] / n,
            norm_ratio=_ratio(self._sums["length_back"], self._sums["length"]),
            l0=float(density.sum()),
            density=density,
        )


@torch.no_grad()
def judge_reconstruction(sae: Any, activations: Iterable[Any]) -> Reconstruction:
    """How well an autoencoder gives vectors back, from batches of them, without a model.

    Args:
        sae: Anything with `encode` and `decode`.
        activations: Batches `[n, d_in]`; for transcoders, pairs of what is
            read and what is to be given back.

    Raises:
        InputError: No vectors.
        SpliceError: A result of another shape, or not finite.
    """
    if not (hasattr(sae, "encode") and hasattr(sae, "decode")):
        raise SpliceError(f"{describe(sae)} is no autoencoder: it has no encode and decode.")
    meter = ReconstructionMeter()
    for i, batch in enumerate(activations):
        x, target = batch if isinstance(batch, tuple | list) else (batch, batch)
        latents = sae.encode(x)
        recons = sae.decode(latents)
        if recons.shape != target.shape:
            raise SpliceError(
                f"batch {i} of the reconstructions is {tuple(recons.shape)}; it must be "
                f"{tuple(target.shape)}, as what is to be given back."
            )
        for what, value in (("latents", latents), ("reconstructions", recons)):
            if not bool(torch.isfinite(value).all()):
                raise SpliceError(f"batch {i} of the {what} holds values that are not finite.")
        meter.update(target, recons, latents)
    return meter.result()


@dataclass(frozen=True, eq=False)
class DecoderCosines:
    """How alike the directions are that the latents write.

    Args:
        nearest: For each latent, the greatest cosine with any other one.
    """

    nearest: Float[Tensor, " latent"]

    @property
    def mean_nearest(self) -> float:
        """Mean over latents of the cosine with the nearest other one."""
        return float(self.nearest.double().mean())

    def histogram(self, n_bins: int = 40) -> Histogram:
        """How many latents have their nearest other one at which cosine, from -1 to 1."""
        return Histogram.of(self.nearest.clamp(-1, 1), torch.linspace(-1, 1, n_bins + 1))

    def to_dict(self) -> dict[str, Any]:
        """The mean, the quantiles and the histogram."""
        histogram = self.histogram()
        levels = torch.tensor([0.1, 0.5, 0.9])
        tenth, median, ninetieth = self.nearest.quantile(levels).tolist()
        return {
            "mean_nearest": self.mean_nearest,
            "tenth": tenth,
            "median": median,
            "ninetieth": ninetieth,
            "above_0.9": float((self.nearest > 0.9).double().mean()),
            "histogram": {
                "counts": histogram.counts.tolist(),
                "edges": histogram.edges.tolist(),
            },
        }


@torch.no_grad()
def decoder_cosines(sae: Any) -> DecoderCosines:
    """How alike the decoder's directions are: for each latent, the cosine with the nearest other.

    A direction of length 0 has cosine 0 with all others; one latent alone has 0.
    """
    directions = decoder_directions(sae)
    n = len(directions)
    nearest = torch.zeros(n)
    for start in range(0, n if n > 1 else 0, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        cosines = directions[rows] @ directions.T
        places = torch.arange(len(cosines))
        cosines[places, places + start] = -torch.inf
        nearest[rows] = cosines.amax(dim=1)
    return DecoderCosines(nearest)


@torch.no_grad()
def decoder_directions(sae: Any) -> Float[Tensor, "latent d_out"]:
    """What each latent writes, at length 1, in float32 on the CPU; zeros stay zeros.

    Read from `W_dec`, or else found by decoding each latent alone.

    Raises:
        SpliceError: There is no `W_dec [latent, d_out]`, and the number of latents is unknown.
    """
    W_dec = getattr(sae, "W_dec", None)
    if not isinstance(W_dec, Tensor):
        W_dec = _decoded_one_by_one(sae)
    if W_dec.ndim != 2 or W_dec.is_meta:
        where = f"{tuple(W_dec.shape)} on {W_dec.device}"
        raise SpliceError(f"W_dec has shape {where}; it must be [latent, d_out], with values.")
    return F.normalize(W_dec.detach().float().cpu(), dim=1)


def _decoded_one_by_one(sae: Any) -> Tensor:
    cfg = getattr(sae, "cfg", None)
    d_sae = getattr(cfg, "d_sae", None) or getattr(sae, "d_sae", None)
    if not isinstance(d_sae, int):
        raise SpliceError(
            f"{type(sae).__name__} has neither a W_dec nor a d_sae, so that its directions cannot "
            "be found. Give it one of them."
        )
    weights = [each for each in getattr(sae, "parameters", list)() if each.is_floating_point()]
    like = weights[0] if weights else torch.zeros(())
    zero = sae.decode(like.new_zeros(1, d_sae))
    ones = torch.eye(d_sae, dtype=like.dtype, device=like.device).split(_ROWS_AT_ONCE)
    return torch.cat([sae.decode(part) - zero for part in ones])


def _ratio(part: float, whole: float) -> float:
    """A share; nothing of nothing is 0, something of nothing has no number."""
    if whole:
        return part / whole
    return 0.0 if not part else float("nan")
