import pytest
import torch

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.training.sources import (
    ActivationSource,
    Batches,
    MemoryActivations,
    Position,
    check_batch,
)

A, B = torch.arange(10.0)[:, None], torch.arange(10.0)[:, None] + 100
SOURCE = MemoryActivations({"a": A, "b": B, "c": torch.arange(4.0)[:, None]}, n_epochs=2)


def test_every_vector_comes_once_an_epoch_in_another_order() -> None:
    batches = [each["a"] for each in SOURCE.stream(["a"], 3)]
    assert sorted(map(len, batches)) == [1, 1, 3, 3, 3, 3, 3, 3]
    first, second = torch.cat(batches[:4]), torch.cat(batches[4:])
    assert torch.equal(first.sort(dim=0).values, A) and torch.equal(second.sort(dim=0).values, A)
    assert not torch.equal(first, second)


def test_hooks_with_the_same_positions_keep_them_together() -> None:
    for batch in SOURCE.stream(["a", "b", "c"], 3):
        assert set(batch) in ({"a", "b"}, {"c"})
        if "a" in batch:
            assert torch.equal(batch["b"], batch["a"] + 100)


@pytest.mark.parametrize("skip", range(0, 14, 3))
def test_skipping_leaves_out_the_first_batches(skip: int) -> None:
    whole = list(SOURCE.stream(["a", "b", "c"], 3, seed=4))
    rest = list(SOURCE.stream(["a", "b", "c"], 3, seed=4, skip=skip))
    assert len(rest) == len(whole) - skip
    for one, other in zip(rest, whole[skip:], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_seed_decides_the_order() -> None:
    orders = [torch.cat([b["a"] for b in SOURCE.stream(["a"], 3, seed=s)]) for s in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_it_is_a_source() -> None:
    assert isinstance(SOURCE, ActivationSource)
    assert not isinstance([A], ActivationSource)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no tensors were given"),
        ({"a": torch.ones(0, 3)}, r"'a' are \(0, 3\)"),
        ({"a": torch.ones(2, 5, 3)}, r"'a' are \(2, 5, 3\)"),
    ],
    ids=["none", "empty", "axes"],
)
def test_what_holds_no_vectors_is_refused(
    tensors: dict[str, torch.Tensor], message: str, without_shape_checks: None
) -> None:
    with pytest.raises(TrainingError, match=message):
        MemoryActivations(tensors)


def test_a_hook_that_is_not_held_is_refused() -> None:
    with pytest.raises(TrainingError, match="no activations of 'd' are held; there are a, b, c"):
        SOURCE.stream(["a", "d"], 3)


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
