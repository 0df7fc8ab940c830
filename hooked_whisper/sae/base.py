"""What all sparse autoencoders here are: weights, a configuration, and how they learn.

Symbols, as in SAELens:

    x           activations, [... d_in]
    latents     f = activation(W_enc x + b_enc), [... d_sae], mostly zeros
    recons      W_dec f + b_dec, [... d_out]; d_out is d_in but for transcoders

`encode` passes its pre-activations through `self.hook_sae_acts_pre`, as SAELens's
classes do: there a splice reads and edits them.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hooked_whisper.errors import SAEConfigError


@dataclass(frozen=True)
class SAEConfig:
    """Sizes of a sparse autoencoder and where it belongs; subclasses add their architecture's own.

    Args:
        d_in: Width of what it reads.
        d_sae: Number of latents.
        hook_name: Where it was trained, and is spliced unless told otherwise.
        apply_b_dec_to_input: Subtract the decoder's bias before encoding.
        normalize_activations: How inputs are scaled at run time, as SAELens
            writes it: `"none"`, `"layer_norm"`, `"constant_norm_rescale"`,
            or `"expected_average_only_in"`, which is left to whoever gives the inputs.
        metadata: Anything else to keep with it, in values that JSON has.

    Raises:
        SAEConfigError: A size that is no positive integer, or an unknown normalisation.
    """

    architecture: ClassVar[str]

    d_in: int
    d_sae: int
    hook_name: str | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    metadata: dict[str, Any] = field(default_factory=dict)

    NORMALIZATIONS: ClassVar[tuple[str, ...]] = (
        "none",
        "layer_norm",
        "constant_norm_rescale",
        "expected_average_only_in",
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type is int and (type(value) is not int or value < 1):
                raise SAEConfigError(f"{each.name} is {value!r}; it must be a positive integer.")
        if self.normalize_activations not in self.NORMALIZATIONS:
            raise SAEConfigError(
                f"normalize_activations is {self.normalize_activations!r}; it can be one of "
                f"{', '.join(self.NORMALIZATIONS)}."
            )

    @property
    def d_out(self) -> int:
        """Width of what it writes."""
        return self.d_in

    @property
    def hook_name_out(self) -> str | None:
        """What it replaces: the hook that it reads, but for transcoders."""
        return self.hook_name

    def to_dict(self) -> dict[str, Any]:
        """Everything, the architecture's name included, in values that JSON has."""
        return {"architecture": self.architecture, **asdict(self)}


class SparseLatents(NamedTuple):
    """The latents of a batch that may be active: `values` at `indices`, all others 0."""

    values: Float[Tensor, "batch k"]
    indices: Tensor


class Losses(NamedTuple):
    """What one training batch gives.

    Args:
        total: What to minimise; a scalar with a graph.
        parts: Its terms by name, each a detached scalar: always `"mse"` (the
            mean over the batch of the squared error summed over the width);
            others as the architecture has them, such as `"l1"` or `"aux"`.
        recons: The reconstruction, detached.
        active: Which latents were active anywhere in the batch.
        l0: Mean number of active latents a vector; a scalar.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    recons: Float[Tensor, "batch d_out"]
    active: Bool[Tensor, " latent"]
    l0: Float[Tensor, ""]


class SAE(nn.Module, ABC):
    """A sparse autoencoder.

    Args:
        cfg: Its sizes.
        generator: Draws the initial weights; None is torch's own.
    """

    Config: ClassVar[type[SAEConfig]]

    W_enc: Float[Tensor, "d_in latent"]
    b_enc: Float[Tensor, " latent"]
    W_dec: Float[Tensor, "latent d_out"]
    b_dec: Float[Tensor, " d_out"]

    def __init__(self, cfg: SAEConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if type(cfg) is not self.Config:
            raise SAEConfigError(
                f"a {type(self).__name__} needs a {self.Config.__name__}; got a "
                f"{type(cfg).__name__}."
            )
        self.cfg = cfg
        self.hook_sae_acts_pre = nn.Identity()

    # Using it

    @abstractmethod
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """The latents of activations."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch d_out"]:
        """The activations that latents stand for."""

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Activations, reconstructed."""
        return self.decode(self.encode(x))

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in."""
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    # Training it

    @abstractmethod
    def losses(
        self,
        x: Float[Tensor, "batch d_in"],
        target: Float[Tensor, "batch d_out"] | None = None,
        *,
        warm_up: float = 1.0,
        dead: Bool[Tensor, " latent"] | None = None,
    ) -> Losses:
        """The training loss of a batch.

        Args:
            x: Activations.
            target: What to reconstruct; None is `x`.
            warm_up: What the sparsity coefficient is multiplied with, 0 to 1.
            dead: Latents that have not been active for long; an auxiliary
                loss, where the architecture has one, revives them.
        """

    @torch.no_grad()
    def project_gradients_(self) -> None:
        """Take out of the decoder's gradient what would change the length of its rows."""

    @torch.no_grad()
    def constrain_(self) -> None:
        """Bring the weights back to where the architecture wants them: unit decoder rows."""

    def inference(self) -> "SAE":
        """The autoencoder to use and to save; another architecture where training has its own.

        BatchTopK becomes a JumpReLU with its threshold, as SAELens saves it.
        """
        return self
