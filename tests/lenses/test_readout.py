"""Reading tokens off a stream: the model's own bits, and statistics in little memory."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.lenses.readout import Readout, TokenStatistics


def test_logits_are_the_models_bit_for_bit(any_model: Any, make_inputs: Any) -> None:
    logits, cache = any_model.run_with_cache(*make_inputs(2, 7), names_filter="*_post")
    assert torch.equal(Readout.of(any_model).logits(cache["decoder", -1, "resid_post"]), logits)


def test_half_precision_is_the_models_too(tiny_model: Any, make_inputs: Any) -> None:
    mel, tokens = make_inputs(1, 5)
    logits, cache = tiny_model.run_with_cache(mel.bfloat16(), tokens, names_filter="*_post")
    assert torch.equal(Readout.of(tiny_model).logits(cache["decoder", -1, "resid_post"]), logits)


def test_the_logit_of_one_token_is_among_all_of_them(any_model: Any) -> None:
    readout, resid = Readout.of(any_model), torch.randn(2, 3, 24)
    tokens = torch.randint(0, 101, (2, 3))
    wanted = readout.logits(resid).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(readout.logit_of(resid, tokens), wanted, atol=1e-5, rtol=1e-5)


def by_hand(logits: Tensor, tokens: Tensor, top_k: int) -> TokenStatistics:
    logprobs = logits.log_softmax(dim=-1)
    top = logits.sort(dim=-1, descending=True)
    asked = logprobs.gather(-1, tokens)
    ranks = (logprobs[..., None, :] > asked[..., None]).sum(dim=-1)
    return TokenStatistics(
        top.indices[..., :top_k],
        logprobs.exp().gather(-1, top.indices[..., :top_k]),
        asked,
        ranks,
    )


@pytest.mark.parametrize("max_bytes", [1, 101 * 4 * 5, 2**26], ids=["row", "5 rows", "all"])
@pytest.mark.parametrize(("n_rows", "n_pos"), [(1, 1), (3, 7)], ids=str)
def test_statistics_are_those_of_all_logits(
    max_bytes: int, n_rows: int, n_pos: int, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    readout = Readout.of(tiny_model)
    resid, tokens = torch.randn(n_rows, n_pos, 24), torch.randint(0, 101, (n_rows, n_pos, 4))
    wanted = by_hand(readout.logits(resid), tokens, 3)
    seen: list[int] = []
    real = Readout.logits

    def logits(self: Readout, resid: Tensor) -> Tensor:
        seen.append(resid.shape[:-1].numel())
        return real(self, resid)

    monkeypatch.setattr(Readout, "logits", logits)
    found = readout.statistics(resid, tokens, 3, max_bytes)
    assert torch.equal(readout.likeliest(resid, max_bytes), wanted.top_tokens[..., 0])
    assert max(seen) <= max(1, max_bytes // (4 * 101))
    assert torch.equal(found.top_tokens, wanted.top_tokens)
    assert torch.equal(found.ranks, wanted.ranks)
    torch.testing.assert_close(found.top_probs, wanted.top_probs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.logprobs, wanted.logprobs, atol=1e-5, rtol=1e-5)


def test_a_tied_token_shares_its_rank(fresh_model: Any) -> None:
    """The digits model has one and the same embedding for all tokens that it never uses."""
    with torch.no_grad():
        fresh_model.decoder.W_E[10:20] = fresh_model.decoder.W_E[10]
    tokens = torch.arange(10, 20).view(1, 1, 10)
    ranks = Readout.of(fresh_model).statistics(torch.randn(1, 1, 24), tokens, 1).ranks
    assert len(set(ranks.flatten().tolist())) == 1
