"""Edges into cross-attention by the time that they read: which seconds a head carries on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.circuits.exact import edge_runs
from hooked_whisper.circuits.find import baselines, cut_text, refuse_hooks, runs_of
from hooked_whisper.circuits.graph import Edge, EdgeGraph
from hooked_whisper.config import FRAMES_PER_SECOND
from hooked_whisper.display import progress_bar
from hooked_whisper.errors import InterventionError, check_count
from hooked_whisper.interventions.examples import Example
from hooked_whisper.interventions.sites import check_window, window_to_places
from hooked_whisper.metrics.base import metric_name
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.grid import Direction, metric_for_each
from hooked_whisper.patching.partial_forward import DEFAULT_MAX_BYTES
from hooked_whisper.patching.partial_result import fingerprints
from hooked_whisper.patching.results import EffectTable
from hooked_whisper.patching.saved import FilePath, going_on

if TYPE_CHECKING:
    import matplotlib.figure

REST, ALL = "rest", "all"


@dataclass(eq=False, repr=False)
class EdgeTimes(EffectTable):
    """The metric with edges into cross-attention patched at some of the times that they read.

    `axes` names the axes of `values`, and gives their labels:

        pair       pairs of a clean and a corrupted run, 0, 1, ...
        edge       "encoder.3.mlp->decoder.2.cross_attn.0.v", ...
        window_s   start and end in seconds; then "rest", all other times, and "all"

    The others are `EffectTable`'s.
    """

    values: Float[Tensor, "pair edge window"]

    _kind: ClassVar[str] = "edge_times"

    @property
    def windows(self) -> list[tuple[float, float]]:
        """The times, in seconds."""
        return [each for each in self.axes["window_s"] if not isinstance(each, str)]

    def interplay(self) -> Float[Tensor, "pair edge"]:
        """The effect of whole edges less that of their parts, one by one.

        0 if times act by themselves: always nearly so for values, whose mean is a sum; keys of
        one time can take attention from another.
        """
        effect = self.effect()
        return effect[:, :, -1] - effect[:, :, :-1].sum(dim=2)

    def _place(self, *place: int) -> dict[str, Any]:
        edge, window = place
        label = self.axes["window_s"][window]
        start_s, end_s = (None, None) if isinstance(label, str) else label
        name = label if isinstance(label, str) else f"{start_s:.2f}-{end_s:.2f}"
        found = {"edge": self.axes["edge"][edge], "time": name}
        return {**found, "start_s": start_s, "end_s": end_s}

    def plot(self, effect: bool = True, title: str = "") -> "matplotlib.figure.Figure":
        """A heatmap: edges upwards, times to the right, mean over pairs."""
        from hooked_whisper.figures import plot_patching

        names = [self._place(0, i)["time"] for i in range(self.values.shape[2])]
        return plot_patching(
            self.mean(effect),
            self.axes["edge"],
            names,
            label=f"effect on {self.metric}" if effect else self.metric,
            row_label="edge",
            column_label="seconds that are read",
            title=title,
            diverging=effect,
        )


@torch.no_grad()
def edge_times(
    model: HookedWhisper,
    pairs: Any,
    metric: Any,
    edges: Sequence[Edge | str],
    windows: float | Sequence[tuple[float, float]] = 0.5,
    *,
    direction: Direction = "noising",
    max_bytes: int = DEFAULT_MAX_BYTES,
    progress: bool = True,
    resume: EdgeTimes | None = None,
    save_to: FilePath | None = None,
) -> EdgeTimes:
    """What edges into cross-attention's keys and values do, by the time of the sound they read.

    In each run the receiver reads the other run's output of the sender at the encoder's positions
    of one window only.

    Args:
        model: The model, without hooks.
        pairs: Clean and corrupted runs, as for `find_circuit`.
        metric: Of logits; a list has one for each pair.
        edges: Edges of the kind `"cross"`, or their names.
        windows: Times in seconds, such as those of words; or the length of windows that are laid
            over all that holds sound.

    The others are `find_circuit`'s.

    Raises:
        InterventionError: No such edges.
        SiteError: A window outside of the recording.
    """
    refuse_hooks(model)
    check_count("max_bytes", max_bytes, 1, InterventionError)
    graph = EdgeGraph.of(model.cfg)
    numbers = graph.numbers_of(edges)
    wrong = [graph.edges[i] for i in numbers if graph.edges[i].kind != "cross"]
    if wrong or not numbers:
        raise InterventionError(
            f"{wrong[0] if wrong else 'nothing'} is given; by time there are edges from the "
            "encoder into the k and v of cross-attention: [e for e in circuit if e.kind == "
            '"cross"].'
        )
    runs = runs_of(model, pairs, direction)
    metrics = metric_for_each(metric, len(runs))
    labels = _windows(model, runs, windows)
    masks = _masks(model, labels)
    nan = torch.full((len(runs),), torch.nan)
    put_in = [each if isinstance(each, Example) else dict(each.items()) for _, each in runs]
    result = EdgeTimes(
        torch.full((len(runs), len(numbers), len(masks)), torch.nan),
        {
            "pair": list(range(len(runs))),
            "edge": [str(graph.edges[i]) for i in numbers],
            "window_s": [*labels, REST, ALL],
        },
        nan,
        nan.clone(),
        direction,
        ", ".join(sorted({metric_name(each) for each in metrics})),
        conditions=fingerprints(
            model, metrics, patched_runs=[run for run, _ in runs], runs_put_in=put_in
        ),
    )
    for number, (each, (base, source)) in enumerate(zip(metrics, runs, strict=True)):
        each.check(1, base.n_pos, model.cfg.d_vocab)
        result.set_baselines(number, *baselines(model, base, source, each, number))
    with (
        going_on(
            result,
            save_to,
            resume,
            "times of edges",
            lambda: f"{result.n_done} of {result.n_cells} times",
        ) as keep,
        progress_bar(
            total=result.n_cells, initial=result.n_done, desc="times", show=progress
        ) as bar,
    ):
        for number, (each, run) in enumerate(zip(metrics, runs, strict=True)):
            if not result.values[number].isnan().any():
                continue
            base, source, read = cut_text(*run, each)
            patched, differences = edge_runs(model, base, source, read, max_bytes)
            for place, edge in enumerate(numbers):
                if result.values[number, place].isnan().any():
                    values = patched.patched_at(differences, edge, masks)
                    result.values[number, place] = values.float().cpu()
                    bar.update(len(masks))
                    keep()
    return result


def _windows(model: HookedWhisper, runs: Any, windows: Any) -> list[tuple[float, float]]:
    """The times as windows."""
    if isinstance(windows, (int, float)) and not isinstance(windows, bool):
        check_window((0, windows), model.cfg.window_s)
        lengths = [run.mel.n_frames for pair in runs for run in pair if isinstance(run, Example)]
        end_s = max(int(n_frames.max()) for n_frames in lengths) / FRAMES_PER_SECOND
        n = max(1, -int(-end_s // windows))
        last = model.cfg.window_s
        return [(i * float(windows), min((i + 1) * float(windows), last)) for i in range(n)]
    found = [(float(start_s), float(end_s)) for start_s, end_s in windows]
    for window in found:
        check_window(window, model.cfg.window_s)
    if not found:
        raise InterventionError("no windows; give a length in seconds, or times of words.")
    return found


def _masks(model: HookedWhisper, windows: list[tuple[float, float]]) -> Tensor:
    """Which positions of the encoder each window has, the rest, and all."""
    masks = torch.zeros(len(windows) + 2, model.cfg.n_audio_ctx, device=model.device)
    for mask, window in zip(masks, windows, strict=False):
        start, end = window_to_places(window)
        mask[start:end] = 1
    masks[-2] = 1 - masks[:-2].amax(dim=0)
    masks[-1] = 1
    return masks
