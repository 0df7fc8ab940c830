"""The logit lens, against the last LayerNorm and the unembedding written out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import InputError, TokenError
from hooked_whisper.lenses.logit_lens import STREAMS, logit_lens

LENGTHS = pytest.mark.parametrize(("n_rows", "n_pos"), [(1, 1), (2, 7), (3, 20)], ids=str)


def logits_by_hand(model: Any, resid: Tensor) -> Tensor:
    norm = model.decoder.ln_final
    centred = resid - resid.mean(dim=-1, keepdim=True)
    scale = (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return (centred / scale * norm.weight + norm.bias) @ model.W_U + model.b_U


@LENGTHS
@torch.no_grad()
def test_every_site_by_hand(any_model: Any, make_inputs: Any, n_rows: int, n_pos: int) -> None:
    mel, tokens = make_inputs(n_rows, n_pos)
    lens = logit_lens(any_model, mel, tokens, sites=STREAMS, targets=17, top_k=3)
    logits, cache = any_model.run_with_cache(mel, tokens, names_filter="*.hook_resid_*")
    assert len(lens.sites) == 12
    for place, site in enumerate(lens.sites):
        expected = logits_by_hand(any_model, cache["decoder", site.layer, site.stream])
        torch.testing.assert_close(lens.logits(place), expected, atol=1e-4, rtol=1e-4)
        logprobs = expected.log_softmax(dim=-1)
        torch.testing.assert_close(
            lens.target_logprobs[place], logprobs[..., 17], atol=1e-4, rtol=1e-4
        )
        rank = (expected > expected[..., 17:18]).sum(dim=-1)
        assert torch.equal(lens.target_ranks[place], rank)
        top = logprobs.exp().topk(3)
        torch.testing.assert_close(lens.top_probs[place], top.values, atol=1e-5, rtol=1e-4)
        assert torch.equal(lens.top_tokens[place, ..., 0], top.indices[..., 0])
    assert torch.equal(lens.logits(-1), logits)


def test_the_last_site_is_the_model(tiny_model: Any, make_inputs: Any) -> None:
    mel, tokens = make_inputs(2, 7)
    logits = tiny_model(mel, tokens)
    lens = logit_lens(tiny_model, mel, tokens)
    assert torch.equal(lens.logits("2_post"), logits)
    assert torch.equal(lens.logits((2, "resid_post")), logits)
    assert torch.equal(lens.top_tokens[-1, ..., 0], logits.argmax(dim=-1))


class TestChoices:
    def test_each_stream_once(self, tiny_model: Any, make_inputs: Any) -> None:
        lens = logit_lens(tiny_model, *make_inputs(1, 3))
        assert lens.labels == [
            "0_pre",
            *(f"{layer}_{name}" for layer in range(3) for name in ("mid", "mid_cross", "post")),
        ]

    def test_some_streams_of_every_layer(self, tiny_model: Any, make_inputs: Any) -> None:
        lens = logit_lens(tiny_model, *make_inputs(1, 3), sites=["resid_post", "resid_mid"])
        assert lens.labels == ["0_mid", "0_post", "1_mid", "1_post", "2_mid", "2_post"]

    def test_targets_are_the_models_own_choice(self, tiny_model: Any, make_inputs: Any) -> None:
        mel, tokens = make_inputs(2, 7)
        choice = tiny_model(mel, tokens).argmax(dim=-1)
        for sites in (None, ["resid_mid"]):
            lens = logit_lens(tiny_model, mel, tokens, sites=sites)
            assert torch.equal(lens.targets, choice)
        assert not logit_lens(tiny_model, mel, tokens).target_ranks[-1].any()

    def test_next_tokens_as_targets_give_the_loss(self, tiny_model: Any, make_inputs: Any) -> None:
        mel, tokens = make_inputs(2, 7)
        lens = logit_lens(tiny_model, mel, tokens, targets=tokens[:, 1:], pos=slice(0, -1))
        loss = tiny_model(mel, tokens, return_type="loss", loss_per_token=True)
        torch.testing.assert_close(-lens.target_logprobs[-1], loss, atol=1e-4, rtol=1e-4)

    def test_positions(self, tiny_model: Any, make_inputs: Any) -> None:
        mel, tokens = make_inputs(2, 7)
        whole = logit_lens(tiny_model, mel, tokens)
        some = logit_lens(tiny_model, mel, tokens, pos=[-1, 2])
        assert some.positions == (6, 2)
        torch.testing.assert_close(some.target_logprobs, whole.target_logprobs[..., [6, 2]])

    def test_an_edit_of_the_run_shows_and_one_of_the_reading_does_not(
        self, tiny_model: Any, make_inputs: Any
    ) -> None:
        inputs = make_inputs(1, 4)
        before = logit_lens(tiny_model, *inputs, targets=1).target_logprobs
        with tiny_model.hooks([("decoder.blocks.1.mlp.hook_post", lambda x, hook: 0 * x)]):
            edited = logit_lens(tiny_model, *inputs, targets=1).target_logprobs
        differs = (edited - before).abs().amax(dim=(1, 2)) > 0
        assert differs.tolist() == [False] * 6 + [True] * 4
        with tiny_model.hooks([("decoder.ln_final.hook_normalized", lambda x, hook: 0 * x)]):
            torch.testing.assert_close(
                logit_lens(tiny_model, *inputs, targets=1).target_logprobs, before
            )

    def test_a_decoding(self, speaking_model: Any, tiny_mel: Any) -> None:
        """The steps' cache reads as one pass over the same tokens."""
        decoding = speaking_model.generate(tiny_mel, 4, return_cache=True)
        lens = logit_lens(speaking_model, decoding)
        text = decoding.tokens[:, :-1]
        start = decoding.n_prompt - 1
        one_pass = logit_lens(
            speaking_model,
            tiny_mel,
            text,
            pos=slice(start, None),
            targets=decoding.tokens[:, start + 1 :],
        )
        assert lens.positions == one_pass.positions
        torch.testing.assert_close(
            lens.target_logprobs, one_pass.target_logprobs, atol=1e-3, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sites": ["resid_pst"]}, InputError, "they can be some of resid_pre, resid_mid"),
        ({"sites": []}, InputError, r"sites are \[\]"),
        ({"top_k": 0}, InputError, "top_k is 0; it can be 1 to 101"),
        ({"top_k": 102}, InputError, "top_k is 102"),
        ({"pos": 7}, InputError, "decoder positions 0 to 6"),
        ({"targets": 101}, TokenError, "out of the vocabulary"),
        ({"targets": torch.zeros(2, 6, dtype=torch.int64)}, TokenError, r"shape \(2, 6\)"),
    ],
    ids=["site", "no site", "top 0", "top 102", "pos", "target", "targets' shape"],
)
def test_refuses_before_running(
    options: Any, error: Any, message: str, tiny_model: Any, make_inputs: Any, never_runs: Any
) -> None:
    with never_runs(tiny_model), pytest.raises(error, match=message):
        logit_lens(tiny_model, *make_inputs(2, 7), **options)


def test_refuses_a_site_that_it_does_not_have(tiny_model: Any, make_inputs: Any) -> None:
    lens = logit_lens(tiny_model, *make_inputs(1, 2), sites="resid_post")
    for site in ("0_mid", 3, (0, "resid_mid")):
        with pytest.raises(InputError, match=r"this lens has \['0_post', '1_post', '2_post'\]"):
            lens.logits(site)


def test_the_table_has_the_numbers(tiny_model: Any, make_inputs: Any) -> None:
    lens = logit_lens(tiny_model, *make_inputs(2, 5), pos=[1, 4])
    frame = lens.to_dataframe()
    assert len(frame) == 10 * 2 * 2
    line = frame[(frame.site == "1_mid_cross") & (frame.batch == 1) & (frame.pos == 4)].iloc[0]
    assert (line.layer, line.stream) == (1, "resid_mid_cross")
    place = lens.labels.index("1_mid_cross")
    assert line.top_id == int(lens.top_tokens[place, 1, 1, 0])
    assert line.top == str(line.top_id)
    assert line.target_id == int(lens.targets[1, 1])
    assert line.target_rank == int(lens.target_ranks[place, 1, 1])
    assert line.target_prob == pytest.approx(float(lens.target_probs[place, 1, 1]))
    assert line.target_logprob == pytest.approx(float(lens.target_logprobs[place, 1, 1]))
