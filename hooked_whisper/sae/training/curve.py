"""How much an autoencoder would gain by more recordings: trained on parts of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from hooked_whisper.display import box, picture, table
from hooked_whisper.errors import InputError, TrainingError
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.io import as_path, write_json
from hooked_whisper.sae.training.config import TrainingConfig
from hooked_whisper.sae.training.train import train_saes

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""Of the sound that there is, where no minutes are named."""

MEASURES = ("fvu", "fvu_without_massive", "fvu_normalized", "l0", "never_active")


@runtime_checkable
class PartedSource(Protocol):
    """A source of activations that can be cut to less sound, such as `Epochs(store, 0.1)`."""

    @property
    def minutes(self) -> float:
        """Minutes of sound to train on."""

    def of_minutes(self, minutes: float | int) -> Any:
        """The same with less, and the same held out."""

    def held_out(self, hook_names: NamesFilter) -> Mapping[str, Tensor] | None:
        """What is never trained on."""


@dataclass(frozen=True)
class LearningCurve:
    """What autoencoders give back of the same held-out recordings, by the sound they learned from.

    Args:
        hook_name: What they read.
        points: A row for each amount, rising: `minutes`, `n_rows` (different vectors),
            `n_vectors` (seen), and of training and `held_out_` of the held-out vectors `fvu`,
            `fvu_without_massive`, `fvu_normalized`, `l0` and `never_active`.
    """

    hook_name: str
    points: tuple[Mapping[str, float | None], ...]

    def __repr__(self) -> str:
        told = (f"{p['minutes']:.1f} min {_told(p['held_out_fvu'])}" for p in self.points)
        return f"LearningCurve({self.hook_name}, held-out FVU: {', '.join(told)})"

    def _repr_html_(self) -> str:
        """The picture and the numbers."""
        about = f"{self.hook_name}, {len(self.points)} amounts of sound"
        rows = [list(point.values()) for point in self.points]
        numbers = table(list(self.points[0]), rows)
        return box(type(self).__name__, about, picture(self.plot(), about), numbers)

    def plot(self, title: str = "") -> "matplotlib.figure.Figure":
        """FVU of what was trained on and of what was held out, over minutes."""
        from hooked_whisper.figures import plot_learning_curve

        return plot_learning_curve(self.points, title=title or self.hook_name)

    def to_dataframe(self) -> "pandas.DataFrame":
        """A row for each amount of sound."""
        import pandas

        return pandas.DataFrame(list(self.points))

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            InputError: `path` is no path.
            StoreWriteError: The file cannot be written; one that was there stays.
        """
        found = {"hook_name": self.hook_name, "points": [dict(point) for point in self.points]}
        write_json(as_path(path, InputError), found)


def learning_curve(
    cfg: TrainingConfig,
    source: PartedSource,
    minutes: Sequence[float | int] | None = None,
    *,
    progress: bool = True,
) -> LearningCurve:
    """Train the same autoencoder on more and more sound, and judge each on what is held out.

    Each is trained for as many vectors, so that those of less sound see theirs more often.

    Args:
        cfg: How each is trained. A `folder` gets a folder for each amount.
        source: Such as `Epochs(store, held_out=0.1)`.
        minutes: How much sound; None is a sixteenth, an eighth, ... and all there is.
        progress: Show a bar.

    Raises:
        TrainingError: Nothing is held out, or what `train_sae` raises.
        StoreError: More minutes than there are.

    Source: Hestness et al. 2017, "Deep Learning Scaling is Predictable, Empirically", for the form.
    """
    if source.held_out([str(cfg.sae.hook_name)]) is None:
        raise TrainingError(
            "nothing is held out, and the curve is of held-out recordings. Pass a source that "
            "keeps some: Epochs(store, held_out=0.1)."
        )
    amounts = [share * source.minutes for share in SHARES] if minutes is None else sorted(minutes)
    points = []
    for amount in amounts:
        part = source.of_minutes(amount)
        name = f"{amount:.2f} minutes"
        folder = None if cfg.folder is None else Path(cfg.folder) / name
        trained = train_saes({name: replace(cfg, folder=folder)}, part, progress=progress)
        last = trained[name].cfg.metadata["training"]
        point = {"minutes": part.minutes, "n_rows": part.n_rows(cfg.sae.hook_name)}
        point |= {"n_vectors": last["n_vectors"]}
        point |= {f"{p}{key}": last.get(f"{p}{key}") for p in ("", "held_out_") for key in MEASURES}
        points.append(point)
    return LearningCurve(str(cfg.sae.hook_name), tuple(points))


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
