"""The KV cache holds what plain concatenation would."""

import pytest
import torch
from torch import Tensor, nn

from hooked_whisper.model.kv_cache import KVCache


@pytest.fixture
def key() -> nn.Module:
    return nn.Linear(1, 1)


def piece(n_pos: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, n_pos, 3, 4)


@torch.no_grad()
@pytest.mark.parametrize(
    "steps", [[4, *[1] * 200], [70, 1, 1], [1, 63, 1], [3, 5, 100, 2], [3, 200]], ids=len
)
def test_append_is_concatenation(steps: list[int], key: nn.Module) -> None:
    cache, expected = KVCache(), torch.empty(2, 0, 3, 4)
    for n_pos in steps:
        new = piece(n_pos)
        expected = torch.cat([expected, new], dim=1)
        assert torch.equal(cache.append(key, new), expected)
        assert torch.equal(cache[key], expected)


@torch.no_grad()
def test_append_leaves_what_it_was_given(key: nn.Module) -> None:
    cache, first = KVCache(), piece(4)
    before = first.clone()
    cache.append(key, first)
    for _ in range(3):
        cache.append(key, piece(1))
    assert torch.equal(first, before) and first.shape == (2, 4, 3, 4)


@torch.no_grad()
@pytest.mark.parametrize("order", [[1, 0], [0, 0], [1, 1], [1, 0, 1]], ids=str)
def test_reordered_as_beam_search_does(order: list[int], key: nn.Module) -> None:
    cache, expected = KVCache(), torch.empty(2, 0, 3, 4)
    for n_pos in (4, 1, 1):
        new = piece(n_pos)
        cache.append(key, new)
        expected = torch.cat([expected, new], dim=1)
    cache[key] = cache[key][order].detach()  # openai-whisper's rearrange_kv_cache
    expected = expected[order]
    for _ in range(70):
        new = piece(1, batch=len(order))
        cache.append(key, new)
        expected = torch.cat([expected, new], dim=1)
    assert torch.equal(cache[key], expected)


def test_gradients_flow_through_it(key: nn.Module) -> None:
    cache, first, second = KVCache(), piece(2).requires_grad_(), piece(1).requires_grad_()
    cache.append(key, first)
    cache.append(key, second)
    (cache[key] ** 2).sum().backward()
    assert torch.equal(first.grad, 2 * first) and torch.equal(second.grad, 2 * second)


def test_is_a_mapping_by_module(key: nn.Module) -> None:
    cache, other = KVCache(), nn.Linear(1, 1)
    assert cache and len(cache) == 0  # openai-whisper asks for another one while it is falsy
    cache[key] = piece(3)
    assert key in cache and other not in cache
    assert list(cache) == [key] and len(cache) == 1
    assert cache[key].shape[1] == 3
    del cache[key]
    assert key not in cache
    with pytest.raises(KeyError, match="Linear"):
        cache[other]
