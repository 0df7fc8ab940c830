"""Massive activations of a model on recordings: where, which, who writes them, what without."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis import frame_energy
from hooked_whisper.analysis.massive_activations import MASSIVE_TIMES, SumsByNorm, check_times
from hooked_whisper.config import POSITION_S
from hooked_whisper.data import AudioWindow, load_windows, window_batches
from hooked_whisper.data.batches import check_batch_size
from hooked_whisper.display import box, count, json_value, picture, progress_bar, table
from hooked_whisper.errors import HookNameError, InputError
from hooked_whisper.io import as_path, write_json
from hooked_whisper.lenses.massive_removal import MassiveRemoval, removals_of
from hooked_whisper.lenses.massive_writers import Writers
from hooked_whisper.model.whisper import HookedWhisper

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

N_DIMENSIONS = 3
"""Dimensions that are told, and put back to their usual mean by a removal."""
QUIET = 0.25
"""A position is in a pause where it is among so large a share of the quietest of its recording."""
_SHOWN = 30


@dataclass(frozen=True)
class MassivePosition:
    """One position whose vector is massive.

    Args:
        recording: The recording's name.
        start_s: When it begins there, in seconds.
        norm_ratio: Length of its vector over the median of all positions.
        loudness: Its rank among the positions of its window: 0 the quietest, 1 the loudest.
        seconds_left: From it to the end of the sound.
        word: The word that is spoken; "" between words, None where their times are unknown.
    """

    recording: str
    start_s: float
    norm_ratio: float
    loudness: float
    seconds_left: float
    word: str | None

    @property
    def is_quiet(self) -> bool:
        """Whether it is among the quietest quarter of its window."""
        return self.loudness < QUIET


@dataclass(frozen=True, eq=False)
class MassiveActivations:
    """What was found out about massive activations at one hook.

    Args:
        hook_name: Where.
        times: Over how many times the median length (L2) a vector counts as massive.
        n_recordings: Recordings.
        n_positions: Positions of speech.
        median_norm: The median length of their vectors.
        max_ratio: The longest vector's length over the median.
        massive_variance: Share of the variance that massive positions carry.
        positions: The massive positions, in the recordings' order.
        dimensions: Mean size of each dimension at massive positions; zeros without any.
        usual_dimensions: The same at all other positions.
        writers: What share of the massive vectors each component of the residual stream wrote,
            along the vector itself: they add up to 1. Empty where the hook is no stream.
        neurons: The neurons with the largest such shares, `"L3N17"`, of every MLP before.
        removals: What their removal does, by what was done; empty where it was not tried.
        norm_counts, norm_edges: Positions by length over the median.
        example: Length ratio and log-mel energy at each position of the recording with the most.
        example_name: Its name.
    """

    hook_name: str
    times: float
    n_recordings: int
    n_positions: int
    median_norm: float
    max_ratio: float
    massive_variance: float
    positions: tuple[MassivePosition, ...]
    dimensions: Float[Tensor, " d_model"]
    usual_dimensions: Float[Tensor, " d_model"]
    writers: Mapping[str, float]
    neurons: Mapping[str, float]
    removals: Mapping[str, MassiveRemoval]
    norm_counts: Float[Tensor, " bin"]
    norm_edges: Float[Tensor, " edge"]
    example: tuple[Float[Tensor, " pos"], Float[Tensor, " pos"]]
    example_name: str

    @property
    def share(self) -> float:
        """Share of the positions that are massive."""
        return len(self.positions) / self.n_positions

    @property
    def quiet_share(self) -> float:
        """Share of the massive positions among the quietest quarter of their windows."""
        n_quiet = sum(position.is_quiet for position in self.positions)
        return n_quiet / len(self.positions) if self.positions else float("nan")

    @property
    def top_dimensions(self) -> list[int]:
        """The largest dimensions at massive positions."""
        return self.dimensions.topk(N_DIMENSIONS).indices.tolist() if self.positions else []

    def __repr__(self) -> str:
        text = f"MassiveActivations({self.hook_name}: {len(self.positions)} of {self.n_positions:,}"
        text += f" positions over {self.times:g} times the median length, at most "
        return text + f"{self.max_ratio:.1f}, with {self.massive_variance:.1%} of the variance)"

    def _repr_html_(self) -> str:
        """Numbers, the picture, what removing does, and the first positions."""
        about = f"{self.hook_name}: {count(len(self.positions), 'massive position')} of "
        about += f"{self.n_positions:,}, {self.massive_variance:.1%} of the variance"
        parts = [picture(self.plot(), about)]
        if self.writers:
            shares = {**self.writers, **self.neurons}.items()
            written = sorted(shares, key=lambda item: -abs(item[1]))
            parts.append(table(["written by", "share"], [list(row) for row in written], 12))
        if self.removals:
            rows = [[name, *asdict(each).values()] for name, each in self.removals.items()]
            header = ["without", *next(map(asdict, self.removals.values()))]
            parts.append(table(header, rows))
        if self.positions:
            rows = [list(asdict(each).values()) for each in self.positions]
            parts.append(table(list(asdict(self.positions[0])), rows, _SHOWN))
        return box(type(self).__name__, about, *parts)

    def plot(self, title: str = "") -> "matplotlib.figure.Figure":
        """Where they are in the recording with the most, how long all are, dimensions, writers."""
        from hooked_whisper.figures import plot_massive_activations

        return plot_massive_activations(
            *self.example,
            self.norm_counts,
            self.norm_edges,
            self.dimensions,
            self.writers,
            times=self.times,
            title=title or f"{self.hook_name}, {self.example_name}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Every number, in values that JSON has."""
        plain = ("hook_name", "times", "n_recordings", "n_positions", "median_norm", "max_ratio")
        found: dict[str, Any] = {name: getattr(self, name) for name in plain}
        found |= {"share": self.share, "massive_variance": self.massive_variance}
        found |= {"quiet_share": self.quiet_share, "top_dimensions": self.top_dimensions}
        found |= {"writers": dict(self.writers), "neurons": dict(self.neurons)}
        found["removals"] = {name: asdict(each) for name, each in self.removals.items()}
        found["dimensions"] = self.dimensions.tolist()
        found["usual_dimensions"] = self.usual_dimensions.tolist()
        found["positions"] = [asdict(position) for position in self.positions]
        plain_values: dict[str, Any] = json_value(found)
        return plain_values

    def save(self, path: str | PathLike[str]) -> None:
        """Write every number as JSON, whole or not at all.

        Raises:
            InputError: `path` is no path.
            StoreWriteError: The file cannot be written; one that was there stays.
        """
        write_json(as_path(path, InputError), self.to_dict())

    def to_dataframe(self) -> "pandas.DataFrame":
        """A row for each massive position."""
        import pandas

        return pandas.DataFrame([asdict(position) for position in self.positions])


@torch.no_grad()
def massive_activations(
    model: HookedWhisper,
    recordings: Any,
    hook_name: str,
    *,
    times: float | int = MASSIVE_TIMES,
    removals: bool = True,
    transcripts: bool = True,
    batch_size: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> MassiveActivations:
    """Find massive activations at a hook of the encoder, who writes them, and what they do.

    Runs over the recordings once, and again over those that have any: for their writers, and
    for each way of removing them.

    Args:
        model: The model.
        recordings: What `as_recordings` takes; long ones are looked at window by window.
        hook_name: A hook of the encoder with one vector a position.
        times: Over so many times the median length a vector is massive.
        removals: Also run without them: zeroed, clipped, or put to the mean of all others.
        transcripts: Let these runs also write the text, which takes the most time.
        batch_size: Windows side by side.
        seed: Of the positions that are zeroed for comparison.
        progress: Show a bar.

    Raises:
        HookNameError: No such hook, or one without a vector for each encoder position.
        InputError: `times` that is 1 or less; a batch size that is none.
        RecordingsError: No recordings that can be used.

    Source: Sun et al. 2024, "Massive Activations in Large Language Models".
    """
    check_times(times)
    check_batch_size(batch_size)
    name = _vector_hook(model, hook_name)
    windows = load_windows(model, recordings)
    found = _Found(times)
    with progress_bar(total=len(windows), desc="looking", unit="window", show=progress) as bar:
        for batch in window_batches(model, windows, batch_size):
            _, cache = model.run_with_cache(batch.mel, names_filter=name)
            energy = frame_energy(batch.mel.values)
            for window, x, loud in zip(batch.windows, cache[name], energy, strict=True):
                found.add(window, x[: window.n_positions], loud[: window.n_positions])
            bar.update(len(batch))
    limit = times * found.median
    massive = [window for window, norms in found.norms if bool((norms > limit).any())]
    writers = Writers(model, name)
    if massive and writers.is_stream:
        for batch in window_batches(model, massive, batch_size):
            writers.add(batch.mel, limit)
    removed: dict[str, MassiveRemoval] = {}
    if removals and massive:
        mean = found.usual_mean(limit)
        chosen = found.sizes(limit)[0].topk(min(N_DIMENSIONS, len(mean))).indices
        options: dict[str, Any] = {"transcripts": transcripts, "batch_size": batch_size}
        options |= {"seed": seed, "progress": progress}
        removed = removals_of(model, massive, name, limit, mean, chosen, **options)
    return found.result(name, writers, removed)


def _vector_hook(model: HookedWhisper, name: str) -> str:
    """The one hook that a name means, with a vector for each encoder position."""
    names = model.hook_names([name])
    axes = model.hook_dict[names[0]].axes
    is_vector = names[0].startswith("encoder.") and axes[:2] == ("batch", "pos") and len(axes) == 3
    if len(names) > 1 or not is_vector:
        raise HookNameError(
            f"{name!r} is {names[0]} with the axes [{' '.join(axes)}]; massive activations are "
            "looked for at one hook of the encoder with a vector for each position, such as "
            "'encoder.blocks.0.hook_resid_post'."
        )
    return names[0]


class _Found:
    """Lengths of all vectors, window by window, and the long vectors themselves."""

    def __init__(self, times: float) -> None:
        self.times = times
        self.norms: list[tuple[AudioWindow, Tensor]] = []
        self._energy: list[Tensor] = []
        self._long: list[Tensor] = []
        self._sums = SumsByNorm()
        self._total = self._sizes = torch.zeros(0)

    def add(self, window: AudioWindow, x: Tensor, energy: Tensor) -> None:
        """Take in the vectors of a window, and how loud its positions are."""
        x = x.float().cpu()
        norms = x.norm(dim=-1)
        self.norms.append((window, norms))
        self._energy.append(energy.cpu())
        # Vectors that may turn out massive: a window's own median is near that of all.
        self._long.append(x[norms > min(norms.median(), self.median) * self.times / 2])
        self._sums.add(x, torch.zeros(len(x)))
        total, sizes = x.double().sum(dim=0), x.double().abs().sum(dim=0)
        self._total = total if not len(self._total) else self._total + total
        self._sizes = sizes if not len(self._sizes) else self._sizes + sizes

    @property
    def all_norms(self) -> Tensor:
        """The lengths of all vectors."""
        return torch.cat([norms for _, norms in self.norms])

    @property
    def median(self) -> float:
        """Their median."""
        return float(self.all_norms.median())

    def massive(self, limit: float) -> Float[Tensor, "vector d_model"]:
        """The vectors over a length."""
        long = torch.cat(self._long)
        return long[long.norm(dim=-1) > limit].double()

    def usual_mean(self, limit: float) -> Float[Tensor, " d_model"]:
        """The mean of all others."""
        massive = self.massive(limit)
        n = len(self.all_norms) - len(massive)
        return ((self._total - massive.sum(dim=0)) / n).float()

    def sizes(self, limit: float) -> tuple[Tensor, Tensor]:
        """The mean size of each dimension at massive positions and at all others."""
        massive = self.massive(limit)
        sizes = massive.abs().sum(dim=0)
        n_usual = len(self.all_norms) - len(massive)
        return (sizes / max(1, len(massive))).float(), ((self._sizes - sizes) / n_usual).float()

    def result(
        self, name: str, writers: Writers, removed: Mapping[str, MassiveRemoval]
    ) -> MassiveActivations:
        """Everything in one."""
        median, norms = self.median, self.all_norms
        limit = self.times * median
        usual, every = self._sums.parted(self.times)
        positions: list[MassivePosition] = []
        most = 0
        for number, ((window, own), energy) in enumerate(
            zip(self.norms, self._energy, strict=True)
        ):
            there = (own > limit).nonzero()[:, 0].tolist()
            positions += [_position(window, own / median, energy, pos) for pos in there]
            fewest = int((self.norms[most][1] > limit).sum())
            most = number if len(there) > fewest else most
        ratios = norms / median
        high = max(2 * self.times, 1.05 * float(ratios.max()))
        edges = torch.logspace(-1, float(torch.tensor(high).log10()), 61)
        sizes, usual_sizes = self.sizes(limit)
        window, own = self.norms[most]
        part = (every.spread - usual.spread_about(every)) / every.spread if every.spread else 0.0
        return MassiveActivations(
            hook_name=name,
            times=float(self.times),
            n_recordings=len({window.recording for window, _ in self.norms}),
            n_positions=len(norms),
            median_norm=median,
            max_ratio=float(ratios.max()),
            massive_variance=part if positions else 0.0,
            positions=tuple(positions),
            dimensions=sizes,
            usual_dimensions=usual_sizes,
            writers=writers.shares(),
            neurons=writers.neurons(),
            removals=dict(removed),
            norm_counts=torch.histogram(ratios, edges).hist,
            norm_edges=edges,
            example=(own / median, self._energy[most]),
            example_name=window.name,
        )


def _position(window: AudioWindow, ratio: Tensor, energy: Tensor, pos: int) -> MassivePosition:
    """What is known of one position."""
    n_quieter = int((energy < energy[pos]).sum())
    start_s = pos * POSITION_S
    word = None
    if window.words is not None:
        word = _said(window.words, start_s + POSITION_S / 2)
    return MassivePosition(
        recording=window.name,
        start_s=round(window.start_s + start_s, 3),
        norm_ratio=float(ratio[pos]),
        loudness=n_quieter / max(1, len(energy) - 1),
        seconds_left=round(len(ratio) * POSITION_S - start_s, 3),
        word=word,
    )


def _said(words: Sequence[Any], at_s: float) -> str:
    """The word at a time; "" between words."""
    return next((str(value) for start, end, value in words if start <= at_s < end), "")
