"""Matryoshka BatchTopK autoencoders: the first latents alone have to do, at several widths."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import SAEConfigError
from hooked_whisper.sae.architectures.batch_topk import BatchTopKConfig, BatchTopKSAE
from hooked_whisper.sae.gradients import squared_error
from hooked_whisper.sae.selection import Selection
from hooked_whisper.sae.sparse import decode_selected


@dataclass(frozen=True)
class MatryoshkaConfig(BatchTopKConfig):
    """A Matryoshka BatchTopK autoencoder.

    Args:
        matryoshka_widths: How many latents each level has, rising, the last one `d_sae`
            (added where it is missing). Empty is an eighth, a quarter, half and all.
    """

    architecture: ClassVar[str] = "matryoshka_batchtopk"

    matryoshka_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = tuple(self.matryoshka_widths)
        if not widths:
            widths = tuple(sorted({max(1, self.d_sae // part) for part in (8, 4, 2)}))
        if widths[-1] != self.d_sae:
            widths = (*widths, self.d_sae)
        rising = all(a < b for a, b in pairwise(widths))
        if not rising or any(type(width) is not int or width < 1 for width in widths):
            raise SAEConfigError(
                f"matryoshka_widths is {self.matryoshka_widths}; it must be rising positive "
                f"integers of at most {self.d_sae}, the number of latents."
            )
        object.__setattr__(self, "matryoshka_widths", widths)


class MatryoshkaSAE(BatchTopKSAE):
    """A BatchTopK autoencoder whose first latents reconstruct by themselves too.

        loss = sum over widths m of |x - (f[:m] W_dec[:m] + b_dec)|^2

    `"mse"` among the losses is the error of all latents, `"mse_{m}"` of the first m.

    Source: Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse
    autoencoders"; the plain sum over levels as in SAELens.
    """

    Config = MatryoshkaConfig
    cfg: MatryoshkaConfig

    def _errors(
        self,
        values: Float[Tensor, " entry"],
        selection: Selection,
        target: Float[Tensor, "batch d_out"],
    ) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, "batch d_out"]]:
        errors = {}
        start, recons, partial = 0, target, self.b_dec
        for width in self.cfg.matryoshka_widths:
            level, kept = selection.between(start, width)
            partial = partial + decode_selected(values[kept], self.W_dec, level)
            recons = self._denormalize(partial)
            name = "mse" if width == self.cfg.d_sae else f"mse_{width}"
            errors[name] = squared_error(recons, target)
            start = width
        return errors, recons
