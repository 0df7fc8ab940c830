"""From which seconds of a recording an edge's estimated score comes."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.circuits.contributions import WRITTEN, Differences, read_by
from hooked_whisper.circuits.find import _KEPT, Pair, baselines, runs_of
from hooked_whisper.circuits.gradients import EMBEDDED, EdgeGradients
from hooked_whisper.circuits.graph import Edge, EdgeGraph
from hooked_whisper.config import POSITION_S
from hooked_whisper.errors import InterventionError, check_count, check_number, describe
from hooked_whisper.metrics.base import Metric
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.patching.partial_forward import DEFAULT_MAX_BYTES
from hooked_whisper.speech.mel import Mel


@torch.no_grad()
def carried_seconds(
    model: HookedWhisper,
    pair: Pair,
    metric: Metric,
    edges: Iterable[Edge | str],
    *,
    window_s: float = 0.1,
    n_steps: int = 5,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> dict[str, list[tuple[float, float, float]]]:
    """How much of what edges that read the encoder's stream carry comes from which seconds.

    The estimate of `"eap-ig-inputs"` is a sum over the positions of the stream, 0.02 s each. Here
    it is summed window by window, for edges within the encoder too. `edge_times` measures the
    edges into cross-attention exactly.

    Args:
        model: The model, without hooks and spliced autoencoders.
        pair: A clean and a corrupted run of one recording each.
        metric: From logits to one number for each row, with gradients.
        edges: Edges by name or as such; those of the decoder's own stream are passed over.
        window_s: A window's length.
        n_steps: Points on the way between the runs.
        max_bytes: About how much memory what nodes write may take.

    Returns:
        By the names of edges `(start_s, end_s, part)` of each window that holds sound. With those
        of the padding, which are left out, the parts sum to the edge's score.

    Raises:
        InterventionError: Several recordings side by side, or no such edge.
        MetricError: A metric without gradients, or that is the same in both runs.
    """
    runs = runs_of(model, pair, "noising")
    if len(runs) != 1:
        raise InterventionError(f"{describe(pair)} holds {len(runs)} recordings; pass one of them.")
    check_count("n_steps", n_steps, 1, InterventionError)
    check_number("window_s", window_s, InterventionError, 0)
    base, source = runs[0]
    per_window = max(1, round(window_s / POSITION_S))
    numbers = EdgeGraph.of(model.cfg).numbers_of(edges)
    value, other = baselines(model, base, source, metric, 0)
    of_base = read_by(model, base, _KEPT)
    differences = Differences(model, read_by(model, source, WRITTEN), of_base, max_bytes)
    gradients = _ByPosition(model, base, metric, of_base, differences)
    sums: dict[Edge, Tensor] = {}
    for step in range(n_steps):
        for edge, found in gradients.parts(numbers, (step + 0.5) / n_steps):
            sums[edge] = sums.get(edge, torch.zeros(())) + found / (n_steps * (other - value))
    return {str(edge): _windows(found, per_window, base.mel) for edge, found in sums.items()}


class _ByPosition(EdgeGradients):
    """Estimates whose positions are not summed."""

    def parts(
        self, numbers: Sequence[int], share: float
    ) -> Iterator[tuple[Edge, Float[Tensor, " pos"]]]:
        """The change of the metric by some edges, position by position, at a point on the way."""
        tensors = self._run(EMBEDDED, share, ("encoder", 0))
        for site in self.graph.sites:
            mine = [number for number in numbers if site.first <= number < site.edges.stop]
            if site.reads != "encoder" or not mine:
                continue
            if (gradient := self._gradient(site, tensors)) is None:
                continue
            for number in mine:
                sender, receiver = divmod(number - site.first, len(site.receivers))
                change = self.differences.of(site.senders[sender])
                yield self.graph.edges[number], (gradient[receiver] * change).sum(dim=-1).cpu()


def _windows(
    parts: Float[Tensor, " pos"], per_window: int, mel: Mel
) -> list[tuple[float, float, float]]:
    """Sums over windows of positions, as far as there is sound."""
    n_windows = max(1, math.ceil(int(mel.n_positions[0]) / per_window))
    sums = [float(part.sum()) for part in parts.split(per_window)[:n_windows]]
    edges = [round(i * per_window * POSITION_S, 6) for i in range(n_windows + 1)]
    return list(zip(edges[:-1], edges[1:], sums, strict=True))
