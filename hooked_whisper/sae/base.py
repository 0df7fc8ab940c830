"""What all sparse autoencoders here are: weights, a configuration, and how they learn.

Symbols, as in SAELens:

    x           activations, [... d_in]
    latents     f = activation(W_enc x + b_enc), [... d_sae], mostly zeros
    recons      W_dec f + b_dec, [... d_out]; d_out is d_in but for transcoders

`encode` passes its pre-activations through `self.hook_sae_acts_pre`, as SAELens's classes
do: there a splice reads and edits them. `losses` is the way of training: the same latents
and reconstructions in as few passes over memory as possible, not through that module.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hooked_whisper.display import box, facts, fold, size, table
from hooked_whisper.distributed import ProcessGroup
from hooked_whisper.errors import SAEConfigError, SAEError, shown
from hooked_whisper.sae.saving import save_sae


@dataclass(frozen=True)
class SAEConfig:
    """Sizes of a sparse autoencoder and where it belongs; architectures add their own.

    Args:
        d_in: Width of what it reads.
        d_sae: Number of latents.
        hook_name: Where it was trained, and is spliced unless told otherwise.
        apply_b_dec_to_input: Subtract the decoder's bias before encoding.
        normalize_activations: How inputs are scaled at run time, as SAELens
            writes it: `"none"`, `"layer_norm"`, `"constant_norm_rescale"`,
            or `"expected_average_only_in"`, which is left to whoever gives the inputs.
        max_activation_norm: Longer inputs are scaled down to this length and what is decoded
            back up; None takes all as they are, as SAELens does, which has no such field.
        unit_norm_decoder: Keep the decoder's rows at length 1 while training.
        metadata: Anything else to keep with it, in values that JSON has.

    Raises:
        SAEConfigError: A value that a field cannot have.
    """

    architecture: ClassVar[str]

    d_in: int
    d_sae: int
    hook_name: str | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    max_activation_norm: float | int | None = None
    unit_norm_decoder: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ()
    """Fields that may be 0 or None, but not less."""

    NORMALIZATIONS: ClassVar[tuple[str, ...]] = (
        "none",
        "layer_norm",
        "constant_norm_rescale",
        "expected_average_only_in",
    )

    def __post_init__(self) -> None:
        if any(not isinstance(name, str | None) for name in (self.hook_name, self.hook_name_out)):
            raise SAEConfigError(f"hook_name is {shown(self.hook_name)}; it must be a hook's name.")
        for field_ in fields(self):
            name, value = field_.name, getattr(self, field_.name)
            if field_.type is int and (type(value) is not int or not 1 <= value <= 10**9):
                raise SAEConfigError(
                    f"{name} is {shown(value)}; it must be a positive integer under 10^9."
                )
            if field_.type is bool and type(value) is not bool:
                raise SAEConfigError(f"{name} is {value!r}; it must be True or False.")
            if field_.type == float | int and not is_number(value):
                raise SAEConfigError(f"{name} is {value!r}; it must be a finite number.")
            if name in self.NOT_NEGATIVE and (value or 0) < 0:
                raise SAEConfigError(f"{name} is {value}; it can't be negative.")
        if self.normalize_activations not in self.NORMALIZATIONS:
            raise SAEConfigError(
                f"normalize_activations is {self.normalize_activations!r}; it can be one of "
                f"{', '.join(self.NORMALIZATIONS)}."
            )
        longest = self.max_activation_norm
        if longest is not None and (not is_number(longest) or longest <= 0):
            raise SAEConfigError(
                f"max_activation_norm is {longest!r}; it must be a positive number or None."
            )
        if longest is not None and (self.scales_each or self.is_transcoder):
            raise SAEConfigError(
                f"max_activation_norm is {longest}, and {self.normalize_activations!r} scales each "
                "vector anyhow, or a transcoder writes another one. Leave it None."
            )

    @property
    def scales_each(self) -> bool:
        """Whether each input is brought to one length at run time."""
        return self.normalize_activations in ("layer_norm", "constant_norm_rescale")

    @property
    def d_out(self) -> int:
        """Width of what it writes."""
        return self.d_in

    @property
    def hook_name_out(self) -> str | None:
        """What it replaces: the hook that it reads, but for transcoders."""
        return self.hook_name

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes something other than it reads."""
        return type(self).d_out is not SAEConfig.d_out

    def to_dict(self) -> dict[str, Any]:
        """Everything, the architecture's name included, in values that JSON has."""
        return {"architecture": self.architecture, **asdict(self)}


class TrainBatch(NamedTuple):
    """What a training step is computed of.

    Args:
        x: Activations; no gradient reaches them.
        target: What to reconstruct; the activations themselves, but for transcoders.
        warm_up: What the sparsity coefficient is multiplied with, 0 to 1.
        dead: Latents that have not been active for long; an auxiliary
            loss, where the architecture has one, revives them.
        ranks: Who else has a part of the batch, where several train one autoencoder.
    """

    x: Float[Tensor, "batch d_in"]
    target: Float[Tensor, "batch d_out"]
    warm_up: float = 1.0
    dead: Bool[Tensor, " latent"] | None = None
    ranks: ProcessGroup | None = None


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

    @classmethod
    def of(
        cls,
        parts: dict[str, Float[Tensor, ""]],
        recons: Float[Tensor, "batch d_out"],
        active: Bool[Tensor, " latent"],
        l0: Float[Tensor, ""],
    ) -> "Losses":
        """Those of terms with a graph, which are added up."""
        total = sum(parts.values(), start=recons.new_zeros((), dtype=recons.dtype))
        detached = {name: part.detach() for name, part in parts.items()}
        return cls(total, detached, recons.detach(), active, l0.detach())


class Scale(NamedTuple):
    """How activations were normalised before encoding: `x = normalised * factor + shift`."""

    factor: Float[Tensor, "*batch 1"]
    shift: Float[Tensor, "*batch 1"] | None


class SAE(nn.Module, ABC):
    """A sparse autoencoder.

    The decoder's rows begin as random directions of length 1; the encoder as the
    decoder's transpose, times `first_length`; the biases as 0.

    Args:
        cfg: Its sizes.
        generator: Draws the initial weights; None is torch's own.

    Raises:
        SAEConfigError: The configuration is another architecture's.
    """

    Config: ClassVar[type[SAEConfig]]
    cfg: SAEConfig

    W_enc: Float[Tensor, "d_in latent"]
    b_enc: Float[Tensor, " latent"]
    W_dec: Float[Tensor, "latent d_out"]
    b_dec: Float[Tensor, " d_out"]

    def __init__(self, cfg: SAEConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if type(cfg) is not self.Config:
            raise SAEConfigError(
                f"a {type(self).__name__} needs a {self.Config.__name__}; got a "
                f"{type(cfg).__name__}. make_sae(cfg) finds the class that belongs to it."
            )
        self.cfg = cfg
        self.hook_sae_acts_pre = nn.Identity()
        self._scale: Scale | None = None
        directions = torch.randn(cfg.d_sae, cfg.d_out, generator=generator)
        self.W_dec = nn.Parameter(nn.functional.normalize(directions, dim=-1))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_out))
        self._make_encoder(generator)

    def _make_encoder(self, generator: torch.Generator | None) -> None:
        """The encoder's weights, after the decoder's."""
        self.W_enc = nn.Parameter(self.first_length * self.W_dec.detach().T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae))

    @property
    def first_length(self) -> float:
        """The length of the encoder's directions at first.

        Where half of the latents are active at first, `2 d_in / d_sae`: the first
        reconstructions are then as long as the activations.
        """
        return min(1.0, 2 * self.cfg.d_in / self.cfg.d_sae)

    # Using it

    @abstractmethod
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """The latents of activations."""

    def decode(self, latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch d_out"]:
        """The activations that latents stand for; any latents, edited ones too.

        Raises:
            SAEError: Inputs are normalised at run time, and none of this shape was encoded before.
        """
        return self._denormalize(latents.to(self.dtype) @ self.W_dec + self.b_dec)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Activations, reconstructed."""
        return self.decode(self.encode(x))

    if TYPE_CHECKING:  # torch's own types say Any

        def __call__(self, x: Tensor) -> Tensor: ...

    def save(self, folder: str | Path) -> Path:
        """Write it in SAELens's format, as `save_sae` does; gives the folder."""
        return save_sae(self, folder)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.W_dec.device

    def extra_repr(self) -> str:
        values = {name: value for name, value in self.cfg.to_dict().items() if name != "metadata"}
        return ", ".join(f"{name}={value!r}" for name, value in values.items())

    def _repr_html_(self) -> str:
        """The configuration, the weights, and what is known of the training."""
        cfg = self.cfg.to_dict()
        metadata = cfg.pop("metadata")
        weights = [
            [name, list(each.shape), size(each.nbytes)] for name, each in self.named_parameters()
        ]
        about = (
            f"{self.cfg.d_sae:,} latents of width {self.cfg.d_in}, {self.dtype} on {self.device}"
        )
        parts = [facts(cfg), fold("weights", table([], weights))]
        if metadata:
            parts.append(fold("metadata", facts(metadata)))
        return box(type(self).__name__, about, *parts)

    # Training it

    def losses(
        self,
        x: Float[Tensor, "batch d_in"],
        target: Float[Tensor, "batch d_out"] | None = None,
        *,
        warm_up: float = 1.0,
        dead: Bool[Tensor, " latent"] | None = None,
        ranks: ProcessGroup | None = None,
    ) -> Losses:
        """The training loss of a batch; arguments as in `TrainBatch`.

        Raises:
            SAEError: A transcoder without a target.
        """
        if target is None and self.cfg.is_transcoder:
            raise SAEError(
                "a transcoder needs a target: what its second hook point holds. Pass pairs "
                "(x, target)."
            )
        return self._losses(TrainBatch(x, x if target is None else target, warm_up, dead, ranks))

    @abstractmethod
    def _losses(self, batch: TrainBatch) -> Losses: ...

    @torch.no_grad()
    def project_gradients_(self) -> None:
        """Take out of the decoder's gradient what would change the length of its rows."""
        gradient = self.W_dec.grad
        if gradient is None or not self.cfg.unit_norm_decoder:
            return
        along = torch.linalg.vecdot(gradient, self.W_dec)
        along /= torch.linalg.vecdot(self.W_dec, self.W_dec)
        gradient.addcmul_(along[:, None], self.W_dec, value=-1)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Bring the weights back to where the architecture wants them: unit decoder rows."""
        if self.cfg.unit_norm_decoder:
            self.W_dec /= self.W_dec.norm(dim=-1, keepdim=True)

    def calibrate_(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Set what is needed in use and not in training, by one batch; here nothing."""

    def inference(self) -> "SAE":
        """The autoencoder to use and to save; another architecture where training has its own.

        BatchTopK becomes a JumpReLU with its threshold, as SAELens saves it.
        """
        return self

    # For the architectures

    def _pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """Latents before their activation function, where a splice reads and edits them."""
        pre: Tensor = self.hook_sae_acts_pre(self._encoder_input(x) @ self.W_enc + self.b_enc)
        return pre

    def _encoder_input(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Activations as the encoder's matrix gets them: normalised, the decoder's bias off."""
        x = self._normalize(x.to(self.dtype))
        return x - self.b_dec if self.cfg.apply_b_dec_to_input else x

    def _normalize(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Activations as `normalize_activations` wants them; keeps how to undo it.

        Source: SAELens 6.54, `SAE._setup_activation_normalization`.
        """
        if self.cfg.normalize_activations == "constant_norm_rescale":
            factor = x.norm(dim=-1, keepdim=True) / self.cfg.d_in**0.5
            self._scale = Scale(factor, None)
            return x / factor
        if self.cfg.normalize_activations == "layer_norm":
            shift = x.mean(dim=-1, keepdim=True)
            factor = x.std(dim=-1, keepdim=True)
            self._scale = Scale(factor, shift)
            return (x - shift) / (factor + 1e-5)
        if self.cfg.max_activation_norm is not None:
            factor = x.norm(dim=-1, keepdim=True) / self.cfg.max_activation_norm
            self._scale = Scale(factor.clamp_min(1), None)
            return x / self._scale.factor
        return x

    def _denormalize(self, recons: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        """Undo the normalisation of the activations that were encoded last."""
        if not self.cfg.scales_each and self.cfg.max_activation_norm is None:
            return recons
        if self._scale is None or self._scale.factor.shape[:-1] != recons.shape[:-1]:
            last = "nothing" if self._scale is None else tuple(self._scale.factor.shape[:-1])
            raise SAEError(
                f"normalize_activations is {self.cfg.normalize_activations!r} and "
                f"max_activation_norm {self.cfg.max_activation_norm}: decode undoes what encode "
                f"did to the same activations. Latents of shape {tuple(recons.shape[:-1])} "
                f"came in, and what was encoded last was {last}. Call encode on their "
                "activations first."
            )
        recons = recons * self._scale.factor
        return recons if self._scale.shift is None else recons + self._scale.shift

    def __getstate__(self) -> dict[str, Any]:
        """What copies and files hold: all but what belongs to the last activations."""
        return {**self.__dict__, "_scale": None}


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
