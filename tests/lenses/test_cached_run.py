"""What a lens looks at: where its activations come from, which positions, which tokens."""

from typing import Any

import pytest
import torch

from hooked_whisper.errors import CacheError, HookNameError, InputError, TokenError
from hooked_whisper.lenses.cached_run import (
    choose_positions,
    open_run,
    token_grid,
    token_id,
    token_texts,
)

STREAM = "decoder.blocks.2.hook_resid_post"


@pytest.mark.parametrize(
    ("pos", "chosen"),
    [
        (None, (0, 1, 2, 3)),
        (2, (2,)),
        (-1, (3,)),
        ([3, -4], (3, 0)),
        (slice(1, -1), (1, 2)),
        (slice(None, None, 2), (0, 2)),
    ],
    ids=str,
)
def test_positions_count_from_the_start(pos: Any, chosen: Any) -> None:
    assert choose_positions(pos, 4) == chosen


@pytest.mark.parametrize(
    ("pos", "message"),
    [
        (4, r"pos is 4; the run has decoder positions 0 to 3"),
        ([0, -5], r"pos is \[0, -5\]; the run has decoder positions 0 to 3"),
        ([], r"pos is \[\]"),
        (slice(4, None), r"chooses none of the 4 decoder positions"),
    ],
    ids=["beyond", "before", "empty", "empty slice"],
)
def test_refuses_positions(pos: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_positions(pos, 4)


class TestSources:
    def test_a_cache_and_a_recording_give_the_same(self, tiny_model: Any, make_inputs: Any) -> None:
        mel, tokens = make_inputs(2, 5)
        _, cache = tiny_model.run_with_cache(mel, tokens, names_filter="*.hook_resid_*")
        fresh = open_run(tiny_model, mel, tokens, [STREAM], [1, 3])
        cached = open_run(tiny_model, cache, None, [STREAM], [1, 3])
        assert fresh.n_rows == cached.n_rows == 2
        assert fresh.positions == cached.positions == (1, 3)
        assert torch.equal(fresh.read(STREAM), cached.read(STREAM))
        assert torch.equal(fresh.read(STREAM), cache[STREAM][:, [1, 3]])

    def test_a_cache_without_a_batch_axis(self, tiny_model: Any, make_inputs: Any) -> None:
        mel, tokens = make_inputs(1, 5)
        _, cache = tiny_model.run_with_cache(mel, tokens, remove_batch_dim=True)
        run = open_run(tiny_model, cache, None, [STREAM], None)
        assert torch.equal(run.read(STREAM), cache[STREAM][None])

    def test_a_decodings_positions_are_its_steps(self, speaking_model: Any, tiny_mel: Any) -> None:
        decoding = speaking_model.generate(tiny_mel, 4, return_cache=True)
        name = "decoder.blocks.1.hook_resid_post"
        run = open_run(speaking_model, decoding, None, [name], None)
        start = decoding.n_prompt
        assert run.positions == tuple(range(start - 1, decoding.tokens.shape[1] - 1))
        assert torch.equal(run.targets, decoding.tokens[:, start:])

    def test_hooks_act_on_the_run(self, tiny_model: Any, make_inputs: Any) -> None:
        mel, tokens = make_inputs(1, 5)
        with tiny_model.hooks([(STREAM, lambda value, hook: value * 0)]):
            assert not open_run(tiny_model, mel, tokens, [STREAM], None).read(STREAM).any()

    @pytest.mark.parametrize(
        ("kind", "error", "message"),
        [
            ("no tokens", InputError, "a recording needs the decoder's tokens"),
            ("cache and tokens", InputError, "tokens are given with a cached run"),
            ("other cache", HookNameError, "the cache lacks 'decoder.blocks.2.hook_resid_post'"),
            ("one position", CacheError, r"cached at one position.*pos_slice=\[3\]"),
            ("bad tokens", TokenError, "token 101 at row 0, position 0 is out of the vocabulary"),
            ("bad pos", InputError, "decoder positions 0 to 4"),
        ],
    )
    def test_refuses_before_running(
        self,
        kind: str,
        error: Any,
        message: str,
        tiny_model: Any,
        make_inputs: Any,
        never_runs: Any,
    ) -> None:
        mel, tokens = make_inputs(1, 5)
        _, cache = tiny_model.run_with_cache(mel, tokens, pos_slice=2)
        _, other = tiny_model.run_with_cache(mel, tokens, names_filter="*.hook_z")
        source, given, pos = {
            "no tokens": (mel, None, None),
            "cache and tokens": (cache, tokens, None),
            "other cache": (other, None, None),
            "one position": (cache, None, None),
            "bad tokens": (mel, tokens * 0 + 101, None),
            "bad pos": (mel, tokens, 5),
        }[kind]
        with never_runs(tiny_model), pytest.raises(error, match=message):
            open_run(tiny_model, source, given, [STREAM], pos)

    def test_refuses_a_decoding_without_a_cache(self, speaking_model: Any, tiny_mel: Any) -> None:
        decoding = speaking_model.generate(tiny_mel, 1)
        with pytest.raises(CacheError, match=r"generate\(..., return_cache=True\)"):
            open_run(speaking_model, decoding, None, [STREAM], None)


class TestTokens:
    def test_ids_and_texts(self, speaking_model: Any) -> None:
        assert token_id(speaking_model, 5) == 5
        assert token_id(speaking_model, " three") == 1045
        assert token_id(speaking_model, "<|endoftext|>") == 50257
        assert token_texts(speaking_model.cfg, torch.tensor([1045, 50257, 1045])) == [
            " three",
            "<|endoftext|>",
            " three",
        ]

    def test_texts_are_ids_without_a_tokenizer(self, tiny_model: Any) -> None:
        assert token_texts(tiny_model.cfg, torch.tensor([[7, 3]])) == ["7", "3"]

    @pytest.mark.parametrize(
        ("token", "message"),
        [
            (" three one", r"' three one' is 2 tokens \[' three', ' one'\]"),
            ("", "'' is 0 tokens"),
            (51865, "token 51865 is out of the vocabulary: ids go from 0 to 51864"),
            (-1, "token -1 is out of the vocabulary"),
            (2.5, "2.5 is no token"),
            (True, "True is no token"),
        ],
        ids=str,
    )
    def test_refuses(self, token: Any, message: str, speaking_model: Any) -> None:
        with pytest.raises(TokenError, match=message):
            token_id(speaking_model, token)

    @pytest.mark.parametrize(
        "tokens", [5, torch.tensor(5), torch.full((3,), 5), torch.full((2, 1), 5)], ids=str
    )
    def test_a_grid_is_broadcast(self, tokens: Any, tiny_model: Any) -> None:
        assert token_grid(tiny_model, tokens, (2, 3), "targets").tolist() == [[5] * 3] * 2

    @pytest.mark.parametrize(
        ("tokens", "message"),
        [
            (torch.zeros(2, 4, dtype=torch.int64), r"shape \(2, 4\); the run has 2 rows and 3 pos"),
            (torch.zeros(2, 3), "targets have dtype torch.float32"),
            (torch.full((2, 3), 101), "token 101 is out of the vocabulary"),
            (torch.full((2, 3), -1), "token -1 is out of the vocabulary"),
        ],
        ids=["shape", "dtype", "high", "low"],
    )
    def test_refuses_a_grid(self, tokens: Any, message: str, tiny_model: Any) -> None:
        with pytest.raises(TokenError, match=message):
            token_grid(tiny_model, tokens, (2, 3), "targets")
