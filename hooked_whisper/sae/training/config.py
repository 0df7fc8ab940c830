"""How a sparse autoencoder is trained."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from hooked_whisper.device import as_device
from hooked_whisper.errors import SAEConfigError
from hooked_whisper.sae.base import SAEConfig, is_number


@dataclass(frozen=True)
class TrainingConfig:
    """How one autoencoder is trained. Give it `n_vectors` or `n_steps`.

    Args:
        sae: What to train.
        n_vectors: Activations to train on; the last batch is smaller where they do not divide.
        n_steps: The same, in batches.
        batch_size: Activations a step.
        lr: Learning rate of Adam, at its highest.
        lr_warm_up: Share of the steps over which the learning rate rises from 0.
        lr_decay: Share of the steps, at the end, over which it falls back to 0.
        betas: Adam's.
        sparsity_warm_up: Share of the steps over which the sparsity coefficient rises from 0.
        dead_after_vectors: A latent that was inactive for so many activations counts as dead.
        clip_grad_norm: Length that the gradient of all weights is cut to; None leaves it.
        seed: Of the weights, of the order of the data where a source shuffles, and of
            whatever an architecture draws. Torch's own generator is neither used nor changed.
        autocast: `"bf16"` computes losses in bfloat16 where that is safe; the weights
            stay float32. None computes in float32.
        normalize: Scale activations so that their mean length is `sqrt(d_in)`, which makes
            `lr` and sparsity coefficients mean the same everywhere. The scale comes from the
            first batch and is folded into the weights at the end.
        massive_activations: What becomes of vectors over `max_activation_norm_multiple` times
            the first batch's median length, which else take the loss, and a BatchTopK's
            choice of latents, for themselves. `"exclude"` leaves them out of training alone.
            `"clip"` scales them down to that length; the autoencoder keeps it, as
            `max_activation_norm`, and does the same in use. `"normalize"` brings every vector
            to one length, and its error too: `normalize_activations` of the autoencoder is then
            `"constant_norm_rescale"`, or `"layer_norm"` where it says so. None takes all as they
            are.
        max_activation_norm_multiple: How long that is. The name is dictionary_learning's.
        init_b_dec: The decoder's bias at first: `"geometric_median"` or `"mean"` of the
            first batch (of the targets), or `"zeros"`.
        early_stopping: End after so many lines of the log whose held-out FVU is no new least,
            and keep the weights that had the least; None goes on to the end, and keeps the last.
            Needs held-out vectors.
        folder: Where to write the autoencoder, checkpoints and the log; None writes nothing.
        checkpoint_every: Steps between checkpoints; None writes one only when training ends,
            in whatever way.
        log_every: Steps between lines of the log.
        device: Where to train; None is where the first activations are.

    Raises:
        SAEConfigError: A value that makes no sense.
        DeviceError: A device that is not there.
    """

    sae: SAEConfig
    n_vectors: int | None = None
    n_steps: int | None = None
    batch_size: int = 4096
    lr: float | int = 3e-4
    lr_warm_up: float | int = 0.02
    lr_decay: float | int = 0.2
    betas: tuple[float, float] = (0.9, 0.999)
    sparsity_warm_up: float | int = 0.05
    dead_after_vectors: int = 500_000
    clip_grad_norm: float | int | None = 1.0
    seed: int = 0
    autocast: str | None = None
    normalize: bool = True
    massive_activations: str | None = None
    max_activation_norm_multiple: float | int = 3.0
    init_b_dec: str = "geometric_median"
    early_stopping: int | None = None
    folder: str | Path | None = None
    checkpoint_every: int | None = None
    log_every: int = 100
    device: str | None = None

    INITS: ClassVar[tuple[str, ...]] = ("geometric_median", "mean", "zeros")
    MASSIVE: ClassVar[tuple[str | None, ...]] = ("exclude", "clip", "normalize", None)
    AUTOCASTS: ClassVar[tuple[str | None, ...]] = ("bf16", None)
    NOT_OF_THE_RESULT: ClassVar[tuple[str, ...]] = (
        "folder",
        "checkpoint_every",
        "log_every",
        "device",
    )
    """What a resumed run may change."""

    def __post_init__(self) -> None:
        if not isinstance(self.sae, SAEConfig):
            raise SAEConfigError(
                f"sae is {self.sae!r}; it must be an autoencoder's configuration, such as "
                "TopKConfig(d_in=96, d_sae=768, k=32)."
            )
        if (self.n_vectors is None) == (self.n_steps is None):
            what = "neither" if self.n_steps is None else "both"
            raise SAEConfigError(f"{what} of n_vectors and n_steps given; pass one of them.")
        if self.device is not None:
            as_device(self.device)
        self._check_counts()
        self._check_numbers()
        self._check_choices()
        self._check_massive()

    def _check_counts(self) -> None:
        may_be_none = ("n_vectors", "n_steps", "checkpoint_every", "early_stopping")
        for name in (*may_be_none, "batch_size", "dead_after_vectors", "log_every"):
            value = getattr(self, name)
            if value is None and name in may_be_none:
                continue
            if type(value) is not int or value < 1:
                raise SAEConfigError(f"{name} is {value!r}; it must be a positive integer.")
        if type(self.seed) is not int or self.seed < 0:
            raise SAEConfigError(f"seed is {self.seed!r}; it must be an integer, 0 or more.")

    def _check_numbers(self) -> None:
        for name in ("lr", "clip_grad_norm"):
            value = getattr(self, name)
            if value is None and name == "clip_grad_norm":
                continue
            if not is_number(value) or value <= 0:
                raise SAEConfigError(f"{name} is {value!r}; it must be a positive number.")
        for name in ("lr_warm_up", "lr_decay", "sparsity_warm_up"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise SAEConfigError(
                    f"{name} is {value!r}; it is a share of all steps, from 0 to 1."
                )
        if len(self.betas) != 2 or not all(is_number(b) and 0 <= b < 1 for b in self.betas):
            raise SAEConfigError(f"betas is {self.betas!r}; it must be two numbers, 0 to under 1.")

    def _check_choices(self) -> None:
        for name, allowed in (
            ("init_b_dec", self.INITS),
            ("autocast", self.AUTOCASTS),
            ("massive_activations", self.MASSIVE),
        ):
            if getattr(self, name) not in allowed:
                raise SAEConfigError(
                    f"{name} is {getattr(self, name)!r}; it can be one of "
                    f"{', '.join(map(repr, allowed))}."
                )
        each = self.massive_activations == "normalize"
        if self.normalize and self.sae.scales_each and not each:
            raise SAEConfigError(
                f"normalize_activations is {self.sae.normalize_activations!r}, which scales each "
                "activation at run time; another scale would be lost in it. Pass normalize=False, "
                'or massive_activations="normalize", which counts the errors of all alike.'
            )

    def _check_massive(self) -> None:
        multiple, how = self.max_activation_norm_multiple, self.massive_activations
        if not is_number(multiple) or multiple <= 1:
            raise SAEConfigError(
                f"max_activation_norm_multiple is {multiple!r}; it must be a number over 1."
            )
        if how in ("clip", "normalize") and self.sae.is_transcoder:
            raise SAEConfigError(
                f"massive_activations is {how!r}, and a transcoder writes vectors of other lengths "
                'than it reads. Pass massive_activations="exclude", or None.'
            )
        if how == "normalize" and not self.sae.scales_each:
            sae = replace(self.sae, normalize_activations="constant_norm_rescale")
            object.__setattr__(self, "sae", sae)

    @property
    def total_vectors(self) -> int:
        """Activations to train on."""
        if self.n_vectors is not None:
            return self.n_vectors
        assert self.n_steps is not None
        return self.n_steps * self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps to train for."""
        return -(-self.total_vectors // self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Everything that the result depends on, in values as JSON gives them back."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["sae"] = self.sae.to_dict()
        kept = {name: v for name, v in values.items() if name not in self.NOT_OF_THE_RESULT}
        plain: dict[str, Any] = json.loads(json.dumps(kept))
        return plain
