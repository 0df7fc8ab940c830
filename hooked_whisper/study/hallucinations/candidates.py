"""Edits that may stop a model from writing where nobody speaks, family by family."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.interventions import (
    Clamp,
    Interventions,
    ProjectOut,
    Site,
    SiteEdit,
    Steer,
    ZeroAblation,
)

STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Lengths of a steering vector, in mean lengths of the vectors at its place."""
FEW_STRENGTHS = (0.1, 0.3)
"""The same where each costs most of a pass through the encoder."""
RANKS = (1, 2, 4, 8)
N_HEADS = (1, 2, 3, 4, 6)
N_LATENTS = (1, 4, 16, 64)
Head = tuple[str, int]
"""The hook of its values, and its number."""
Edits = tuple[SiteEdit, ...]


@dataclass(frozen=True, eq=False)
class Candidate:
    """Edits that act together.

    Args:
        family: heads, decoder direction, encoder direction, subspace or latents.
        name: What it does, unlike any other's.
        edits: The edits.
        layer: The first encoder block that they touch; None where they touch the decoder alone.
        spliced: Whether they need the autoencoder.
        random: Makes the same of equal size at random, from a generator.
    """

    family: str
    name: str
    edits: Edits = ()
    layer: int | None = None
    spliced: bool = False
    random: Callable[[torch.Generator], Edits] | None = field(default=None, repr=False)

    @contextmanager
    def acting(self, model: HookedWhisper, saes: Mapping[str, Any]) -> Iterator[None]:
        """Have them act on whatever the model does."""
        with ExitStack() as stack:
            if self.spliced:
                stack.enter_context(model.saes(dict(saes), use_error_term=True))
            stack.enter_context(Interventions(model, *self.edits))
            yield

    def at_random(self, seed: int) -> "Candidate":
        """Its control: as many heads or latents, or a vector of equal length, at random."""
        assert self.random is not None
        edits = self.random(torch.Generator().manual_seed(seed))
        name = f"{self.name}, at random {seed}"
        return Candidate(f"random {self.family}", name, edits, self.layer, self.spliced)


NOTHING = Candidate("", "nothing")
"""The model as it is."""


def head_name(head: Head) -> str:
    """A head as the tables call it: `decoder cross 0.2`."""
    stack, _, layer, kind, _ = head[0].split(".")
    return f"{stack} {'cross' if kind == 'cross_attn' else 'self'} {layer}.{head[1]}"


def head_candidates(ranked: Sequence[Head], n_heads: Mapping[str, int]) -> Iterator[Candidate]:
    """The first heads of a ranking zeroed, and each index in all layers of the decoder at once.

    Args:
        ranked: Heads, the most promising first.
        n_heads: Heads of every hook of values.
    """
    every = [(name, i) for name, n in n_heads.items() for i in range(n)]
    sets = [list(ranked[:n]) for n in N_HEADS if n <= len(ranked)]
    for kind in ("attn", "cross_attn"):
        names = [name for name in n_heads if name.startswith("decoder") and f".{kind}." in name]
        sets += [[(name, i) for name in names] for i in range(n_heads[names[0]])]
    for heads in sets:
        # At random only where the same sites are: the decoder's heads, or all.
        pool = [each for each in every if each[0].startswith(_stacks(heads))]
        yield Candidate(
            "heads",
            f"{', '.join(map(head_name, heads))} zeroed",
            _zeroed(heads),
            _first_layer([name for name, _ in heads]),
            random=partial(_random_heads, pool, len(heads)),
        )


def _stacks(heads: Sequence[Head]) -> tuple[str, ...]:
    return tuple(sorted({name.split(".")[0] for name, _ in heads}))


def _zeroed(heads: Sequence[Head]) -> Edits:
    names = sorted({name for name, _ in heads})
    return tuple(
        ZeroAblation(Site(name, head=[i for at, i in heads if at == name])) for name in names
    )


def direction_candidates(
    name: str, vectors: Mapping[str, Float[Tensor, " d_model"]], length: float, pos: int | None
) -> Iterator[Candidate]:
    """Steering along directions at one place, with several strengths.

    Args:
        name: The hook.
        vectors: Directions by what they are called.
        length: The mean length of the vectors at the hook.
        pos: The decoder's position; None is every position of the encoder.
    """
    stack, site = name.split(".")[0], Site(name, pos=pos)
    few = stack == "encoder"
    for called, vector in vectors.items():
        unit = vector / vector.norm()
        for strength in FEW_STRENGTHS if few else STRENGTHS:
            size = strength * length
            yield Candidate(
                f"{stack} direction",
                f"{name} + {strength:g} lengths of {called}",
                (Steer(site, unit, size),),
                _first_layer([name]),
                random=partial(_random_direction, site, size, len(unit)),
            )


def subspace_candidates(
    name: str, differences: Float[Tensor, "clip d_model"], pos: int
) -> Iterator[Candidate]:
    """What sounds have and the end of a text has not, projected out.

    Source: Hallucination Space Projection (2609.04561), here without its gate.
    """
    basis = torch.linalg.svd(differences, full_matrices=False).Vh
    site = Site(name, pos=pos)
    for rank in (rank for rank in RANKS if rank <= len(basis)):
        yield Candidate(
            "subspace",
            f"{name} without the first {rank} directions of sounds less ends",
            (ProjectOut(site, basis[:rank].contiguous()),),
            random=partial(_random_subspace, site, rank, basis.shape[1]),
        )


def latent_candidates(
    name: str,
    activity: Float[Tensor, " latent"],
    effects: Float[Tensor, " latent"],
    most: Float[Tensor, " latent"],
) -> Iterator[Candidate]:
    """Latents that speak for a text zeroed, and those that speak against it set to their most.

    Args:
        name: The hook that the autoencoder reads.
        activity: Mean activation over the sounds.
        effects: How much a latent's activation raises the end over all other tokens.
        most: The greatest mean activation over any clip.
    """
    at, layer = f"{name}.hook_sae_acts_post", _first_layer([name])
    active = activity.nonzero()[:, 0]
    order = (activity * effects).argsort()
    for n in (n for n in N_LATENTS if n <= int((activity * effects < 0).sum())):
        latents = order[:n].tolist()
        listed = ", ".join(map(str, latents[:4])) + (" ..." if n > 4 else "")
        yield Candidate(
            "latents",
            f"{n} latents of {name} zeroed: {listed}",
            (Clamp(Site(at, latent=latents), 0.0),),
            layer,
            spliced=True,
            random=partial(_random_latents, at, active, n, 0.0),
        )
    [best] = (most * effects).topk(1).indices.tolist()
    for times in (1.0, 2.0, 4.0, 8.0):
        to = times * float(most[best])
        if to:
            yield Candidate(
                "latents",
                f"latent {best} of {name} set to {times:g} times its most",
                (Clamp(Site(at, latent=best), to),),
                layer,
                spliced=True,
                random=partial(_random_latents, at, active, 1, to),
            )


def _random_heads(pool: Sequence[Head], n: int, generator: torch.Generator) -> Edits:
    return _zeroed([pool[i] for i in torch.randperm(len(pool), generator=generator)[:n].tolist()])


def _random_direction(site: Site, size: float, width: int, generator: torch.Generator) -> Edits:
    vector = torch.randn(width, generator=generator)
    return (Steer(site, vector / vector.norm(), size),)


def _random_subspace(site: Site, rank: int, width: int, generator: torch.Generator) -> Edits:
    return (ProjectOut(site, torch.randn(rank, width, generator=generator)),)


def _random_latents(
    at: str, active: Tensor, n: int, to: float, generator: torch.Generator
) -> Edits:
    drawn = active[torch.randperm(len(active), generator=generator)[:n]].tolist()
    return (Clamp(Site(at, latent=drawn), to),)


def _first_layer(names: Sequence[str]) -> int | None:
    """The encoder block from which a pass is needed; one more than the last for the final norm."""
    parts = [name.split(".") for name in names if name.startswith("encoder.")]
    layers = [int(each[2]) if each[1] == "blocks" else _FINAL for each in parts]
    return min(layers) if layers else None


_FINAL = 10**6
"""Behind all blocks."""
