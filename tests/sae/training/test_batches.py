import pytest
import torch

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.training.batches import Batches, Position, check_batch


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 1, 5], [0, 7, 0]], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_vectors_come_in_order_in_batches_of_one_size(sizes: list[int], size: int) -> None:
    everything = torch.arange(7.0)[:, None]
    batches = Batches()
    for number, part in enumerate(everything.split(sizes)):
        batches.add(number, part, 10 * part)
    taken = [batches.take(size) for _ in range(7 // size)]
    assert torch.equal(torch.cat([x for x, _ in taken]), everything[: 7 // size * size])
    assert all(target is not None and torch.equal(target, 10 * x) for x, target in taken)
    assert {len(x) for x, _ in taken} == {size}
    assert batches.n_waiting == 7 % size


def test_from_a_position_on_the_same_vectors_come() -> None:
    parts = torch.arange(30.0)[:, None].split(4)
    for n_taken in range(0, 28, 3):
        whole, rest = Batches(), None
        for number, part in enumerate(parts):
            whole.add(number, part)
        if n_taken:
            whole.take(n_taken)
        rest = Batches(whole.position)
        for number, part in enumerate(parts):
            rest.add(number, part)
        assert rest.position == whole.position == Position(*divmod(n_taken, 4))
        assert torch.equal(rest.take(2)[0], whole.take(2)[0])


BAD = torch.ones(5, 3)
BAD[3, 1] = float("nan")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (BAD, "batch 7 .* holds NaN or infinity in 1 of 5 vectors, the first in row 3"),
        (BAD.nan_to_num(float("inf")), "holds NaN or infinity in 1 of 5"),
        (torch.ones(5, 4), r"batch 7 of the activations is \(5, 4\); .* takes \[n, 3\]"),
        (torch.ones(2, 5, 3), r"is \(2, 5, 3\).*x.flatten\(0, -2\)"),
        (torch.ones(3), r"is \(3,\)"),
        (torch.ones(5, 3).long(), "has dtype torch.int64"),
        ([1.0], "is a list, not a tensor"),
        ({"encoder": 1}, "is a dict of 'encoder', not a tensor"),
    ],
    ids=["nan", "infinity", "width", "axes", "no axes", "integers", "list", "dict"],
)
def test_what_is_no_batch_is_refused(item: object, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        check_batch(item, 7, 3, 3, paired=False)


def test_a_transcoder_needs_pairs() -> None:
    x, target = torch.ones(5, 3), torch.ones(5, 4)
    assert check_batch((x, target), 0, 3, 4, paired=True)[1] is not None
    with pytest.raises(TrainingError, match="learns from pairs"):
        check_batch(x, 0, 3, 4, paired=True)
    with pytest.raises(TrainingError, match="second half of batch 0"):
        check_batch((x, x), 0, 3, 4, paired=True)
    with pytest.raises(TrainingError, match="5 vectors to read and 4 to write"):
        check_batch((x, target[:4]), 0, 3, 4, paired=True)


def test_large_activations_whose_sum_overflows_are_fine() -> None:
    assert check_batch(torch.full((400, 3), 3e38), 0, 3, 3, paired=False)[0].shape == (400, 3)
