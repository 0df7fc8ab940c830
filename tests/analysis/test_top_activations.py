"""The moments at which neurons are most active, against a plain search."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper import HookedWhisper, Mel
from hooked_whisper.analysis import top_activations
from hooked_whisper.analysis.top_activations import greatest
from hooked_whisper.digits import recordings
from hooked_whisper.errors import InputError


def plain(values: Tensor, lengths: list[int], neuron: int, n: int, around: int) -> list[Any]:
    """Sort every frame, and take those far enough from the ones taken before."""
    frames = sorted(
        (
            (float(values[r, p, neuron]), r, p)
            for r, length in enumerate(lengths)
            for p in range(length)
        ),
        reverse=True,
    )
    taken: list[Any] = []
    for value, r, p in frames:
        if all(r != other or abs(p - q) >= around for _, other, q in taken):
            taken.append((value, r, p))
    return taken[:n]


@pytest.mark.parametrize("apart_s", [0, 0.06, 0.5], ids=["neighbours", "near", "far"])
@pytest.mark.parametrize("n_top", [1, 4, 1000])
def test_they_are_those_of_a_plain_search(apart_s: float, n_top: int) -> None:
    values = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0))
    lengths = [40, 7, 25]
    got = top_activations(values, lengths, n_top, least_apart_s=apart_s)
    for neuron in range(5):
        wanted = plain(values, lengths, neuron, n_top, max(1, round(apart_s / 0.02)))
        mine = [each for each in got if each.neuron == neuron]
        assert [(m.value, m.recording, round(m.start_s / 0.02)) for m in mine] == wanted


@pytest.mark.parametrize("n", [2, 3, 6, 100])
def test_sources_of_their_own_come_first(n: int) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 9, (60,), generator=generator).float()  # with ties
    rows, positions = torch.arange(60) // 12, torch.arange(60) % 12
    sources = rows // 2  # rows 0 and 1 are of one recording
    order = sorted(range(60), key=lambda i: (-values[i], i))
    firsts = [next(i for i in order if sources[i] == source) for source in range(3)]
    wanted = sorted(firsts, key=order.index)[:n]
    for i in order:
        near = [j for j in wanted if rows[i] == rows[j] and abs(positions[i] - positions[j]) < 4]
        if len(wanted) < n and not near:
            wanted.append(i)
    found = greatest(values, rows, positions, n, 4, sources)
    assert found == sorted(wanted, key=order.index)


def test_padding_counts_only_on_request() -> None:
    values = torch.zeros(1, 30, 1)
    values[0, 20], values[0, 3] = 5.0, 1.0
    assert top_activations(values, [10], 1)[0].start_s == pytest.approx(0.06)
    assert top_activations(values, [10], 1, all_frames=True)[0].start_s == pytest.approx(0.4)


def test_what_is_given_stays_as_it_was() -> None:
    values = torch.randn(1, 30, 2).half()
    before = values.clone()
    top_activations(values, [30], 3)
    assert torch.equal(values, before)


def test_a_neuron_of_the_digits_model_answers_to_speech() -> None:
    model = HookedWhisper.from_pretrained("digits")
    heard = recordings()[:2]
    mel = Mel.cat([model.to_mel(each.path) for each in heard])
    name = "encoder.blocks.3.mlp.hook_post"
    _, cache = model.run_with_cache(mel, names_filter=name)
    moments = top_activations(cache[name], mel.n_positions, 1)
    spans = [[(w.start_s - 0.1, w.end_s + 0.1) for w in each.words] for each in heard]
    during = [any(a <= m.start_s <= b for a, b in spans[m.recording]) for m in moments]
    # Words, with a tenth of a second on either side, fill six tenths of these recordings.
    assert sum(during) / len(during) > 0.7


@pytest.mark.parametrize(
    ("lengths", "options", "match"),
    [
        ([5], {}, "one number from 1 to 30 for each of the 2"),
        ([5, 31], {}, r"\[5, 31\]"),
        ([5, 30], {"n_top": 0}, "n_top is 0"),
        ([5, 30], {"least_apart_s": -1}, "least_apart_s is -1"),
    ],
    ids=["too-few", "too-long", "none", "negative"],
)
def test_what_it_refuses(lengths: list[int], options: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        top_activations(torch.zeros(2, 30, 1), lengths, **options)
