"""Whether training again with another seed finds the same directions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hooked_whisper.errors import InputError, SpliceError, shown
from hooked_whisper.sae.evaluation.reconstruction import decoder_directions


@dataclass(frozen=True, eq=False)
class Stability:
    """How alike the directions of two autoencoders are.

    Args:
        match: For each latent of the first, its partner in the second; -1
            for those without one, where the first has more latents.
        matched: The cosine with the partner; NaN without one.
        nearest: The greatest cosine with any latent of the second; several
            may share one.
        nearest_back: The same for the latents of the second.
    """

    match: Int64[Tensor, " latent"]
    matched: Float[Tensor, " latent"]
    nearest: Float[Tensor, " latent"]
    nearest_back: Float[Tensor, " other_latent"]

    @property
    def mean_matched(self) -> float:
        """Mean cosine of partners, each latent with one partner: 1 if nothing changed but order."""
        return float(self.matched.double().nanmean())

    @property
    def mean_nearest(self) -> float:
        """Mean over the latents of both of the cosine with the nearest latent of the other."""
        both = torch.cat([self.nearest, self.nearest_back])
        return float(both.double().mean())

    def share_above(self, cosine: float | int = 0.7) -> float:
        """Share of the pairs of partners that are at least so alike."""
        matched = self.matched[~self.matched.isnan()]
        return float((matched >= cosine).double().mean())

    def to_dict(self) -> dict[str, float]:
        """The means, and the share of partners above 0.7 and 0.9."""
        return {
            "mean_matched": self.mean_matched,
            "mean_nearest": self.mean_nearest,
            "share_above_0.7": self.share_above(0.7),
            "share_above_0.9": self.share_above(0.9),
        }


@torch.no_grad()
def decoder_stability(sae: Any, other: Any, used: Any = None, other_used: Any = None) -> Stability:
    """Compare the decoders of two autoencoders of one site, trained with different seeds.

    Partners are chosen so that the sum of their cosines is the greatest
    possible (the Hungarian method). Random directions are not at 0: the
    nearest of many is always a little alike, the more so the narrower the site.

    Args:
        sae: The first.
        other: The second; it may have another number of latents.
        used: Which latents of the first to compare: bools, for instance
            `density > 0`, as dead latents keep what they began with. None is all.
        other_used: The same for the second.

    Raises:
        InputError: Directions of different widths, or none to compare.

    Source: matched decoder cosine, Paulo and Belrose 2025 (2501.16615).
    """
    a, b = _chosen(sae, used, "used"), _chosen(other, other_used, "other_used")
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"the first autoencoder writes vectors of {a.shape[1]} numbers, the second of "
            f"{b.shape[1]}. Compare two of the same site."
        )
    cosines = a @ b.T
    partner = torch.from_numpy(assignment(cosines.numpy()))
    matched = cosines.gather(1, partner.clamp(min=0)[:, None])[:, 0]
    matched = torch.where(partner >= 0, matched, torch.nan)
    return Stability(partner, matched, cosines.amax(dim=1), cosines.amax(dim=0))


def assignment(scores: np.ndarray) -> np.ndarray:
    """For each row a column of its own, with the greatest possible sum of scores; -1 for none.

    Args:
        scores: `[row, column]`, finite; as many partners as there are of the fewer.

    Source: Jonker and Volgenant 1987, the shortest augmenting paths; Crouse 2016.

    >>> assignment(np.array([[0.9, 0.8], [0.8, 0.1]])).tolist()
    [1, 0]
    """
    if scores.shape[0] > scores.shape[1]:
        columns = assignment(scores.T)
        rows = np.full(scores.shape[0], -1, dtype=np.int64)
        rows[columns] = np.arange(len(columns))
        return rows
    cost = -scores.astype(np.float64)
    n_rows, n_columns = cost.shape
    of_row = np.full(n_rows, -1, dtype=np.int64)
    of_column = np.full(n_columns, -1, dtype=np.int64)
    price_row, price_column = cost.min(axis=1), np.zeros(n_columns)
    for row, column in enumerate(cost.argmin(axis=1)):  # whoever wants what nobody else has taken
        if of_column[column] < 0:
            of_row[row], of_column[column] = column, row
    for left in np.flatnonzero(of_row < 0):
        _give_way(int(left), cost, of_row, of_column, price_row, price_column)
    return of_row


def _give_way(
    first: int,
    cost: np.ndarray,
    of_row: np.ndarray,
    of_column: np.ndarray,
    price_row: np.ndarray,
    price_column: np.ndarray,
) -> None:
    """Give one more row a column, along the cheapest path of rows that change theirs."""
    n_columns = cost.shape[1]
    distance, came_from = np.full(n_columns, np.inf), np.full(n_columns, -1, dtype=np.int64)
    open_columns, visited_rows = np.ones(n_columns, dtype=bool), []
    row, least = first, 0.0
    while True:
        visited_rows.append(row)
        along = least + cost[row] - price_row[row] - price_column
        better = open_columns & (along < distance)
        distance[better], came_from[better] = along[better], row
        column = int(np.where(open_columns, distance, np.inf).argmin())
        least = distance[column]
        open_columns[column] = False
        if of_column[column] < 0:
            break
        row = int(of_column[column])
    closed = ~open_columns
    price_row[first] += least
    others = np.array(visited_rows[1:], dtype=np.int64)
    price_row[others] += least - distance[of_row[others]]
    price_column[closed] -= least - distance[closed]
    while True:
        row = int(came_from[column])
        of_column[column] = row
        of_row[row], column = column, int(of_row[row])
        if row == first:
            break


def _chosen(sae: Any, used: Any, name: str) -> Tensor:
    directions = decoder_directions(sae)
    if not bool(torch.isfinite(directions).all()):
        raise SpliceError("the decoder holds values that are not finite. Check its weights.")
    if used is not None:
        try:
            used = torch.as_tensor(used)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{name} is {shown(used)}; it must hold bools.") from error
        if used.dtype != torch.bool or used.shape != directions.shape[:1]:
            raise InputError(
                f"{name} is {used.dtype} of shape {tuple(used.shape)}; it must be a bool for each "
                f"of the {len(directions)} latents."
            )
        directions = directions[used]
    if not len(directions):
        raise InputError("there are no latents to compare.")
    return directions
