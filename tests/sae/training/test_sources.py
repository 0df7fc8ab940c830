import pytest
import torch

from hooked_whisper.errors import TrainingError
from hooked_whisper.sae.training.sources import ActivationSource, MemoryActivations

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
