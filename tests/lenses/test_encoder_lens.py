"""The encoder lens, against the model run anew for each number of layers."""

from typing import Any

import pytest
import torch

from hooked_whisper.errors import InputError, TokenError
from hooked_whisper.lenses.encoder_lens import (
    EncoderLens,
    counted_tokens,
    encoder_lens,
    encoder_outputs,
)
from hooked_whisper.model.generate import Generation

N_LAYERS = 2


@pytest.fixture
def reference(speaking_model: Any) -> torch.Tensor:
    """Two transcripts of different lengths."""
    return speaking_model.to_tokens([" three one four", " two"], append_eot=True)


class TestOutputs:
    @pytest.mark.parametrize("final_ln", [True, False], ids=["with final_ln", "without"])
    def test_are_those_of_the_plain_loop(
        self, final_ln: bool, tiny_model: Any, tiny_mel: Any
    ) -> None:
        found = dict(encoder_outputs(tiny_model, tiny_mel, final_ln=final_ln))
        assert list(found) == [0, 1, 2]
        for layer, heard in found.items():
            stream = tiny_model(tiny_mel, stop_at_layer=("encoder", layer))
            expected = tiny_model.encoder.ln_final(stream) if final_ln else stream
            assert torch.equal(heard, expected)

    def test_the_last_is_whispers(self, tiny_model: Any, tiny_mel: Any) -> None:
        ((layer, heard),) = encoder_outputs(tiny_model, tiny_mel, [-1])
        assert layer == 2 and torch.equal(heard, tiny_model(tiny_mel))

    def test_the_encoder_runs_once(self, tiny_model: Any, tiny_mel: Any) -> None:
        fired: list[str] = []
        names = ["encoder.hook_mel", "encoder.blocks.*.hook_resid_post"]
        with tiny_model.hooks([(names, lambda value, hook: fired.append(hook.name))]):
            for _ in encoder_outputs(tiny_model, tiny_mel):
                pass
        assert sorted(fired) == sorted(tiny_model.hook_names(names))

    def test_no_layer_beyond_the_deepest_runs(self, tiny_model: Any, tiny_mel: Any) -> None:
        fired: list[str] = []
        with tiny_model.hooks([("encoder.*", lambda value, hook: fired.append(hook.name))]):
            assert [layer for layer, _ in encoder_outputs(tiny_model, tiny_mel, [1, 0, 1])] == [
                0,
                1,
            ]
        assert not any("blocks.1" in name for name in fired)


class TestLens:
    @pytest.mark.parametrize("final_ln", [True, False], ids=["with final_ln", "without"])
    def test_is_the_plain_loop(
        self, final_ln: bool, speaking_model: Any, tiny_mel: Any, reference: Any
    ) -> None:
        model = speaking_model
        lens = encoder_lens(model, tiny_mel, reference, final_ln=final_ln, max_new_tokens=5)
        assert lens.layers == (0, 1, 2)
        for place, layer in enumerate(lens.layers):
            heard = model(tiny_mel, stop_at_layer=("encoder", layer))
            heard = model.encoder.ln_final(heard) if final_ln else heard
            spoken = model.generate(tiny_mel, 1).languages
            generation = model.generate(None, 5, encoder_output=heard, language=spoken)
            assert torch.equal(lens.generations[place].tokens, generation.tokens)
            assert lens.texts[place] == generation.texts
            logits = model(None, reference, encoder_output=heard).log_softmax(dim=-1)
            wanted = logits[:, :-1].gather(-1, reference[:, 1:, None])[..., 0]
            torch.testing.assert_close(lens.logprobs[place], wanted, atol=1e-4, rtol=1e-4)

    def test_the_last_is_whispers(self, speaking_model: Any, tiny_mel: Any, reference: Any) -> None:
        lens = encoder_lens(speaking_model, tiny_mel, reference, layers=[-1], max_new_tokens=5)
        generation = speaking_model.generate(tiny_mel, 5)
        assert torch.equal(lens.generations[0].tokens, generation.tokens)
        assert lens.texts == [generation.texts]
        loss = speaking_model(tiny_mel, reference, return_type="loss", loss_per_token=True)
        assert torch.equal(lens.logprobs[0][loss > 0], -loss[loss > 0])

    def test_hooks_act_throughout(self, speaking_model: Any, tiny_mel: Any, reference: Any) -> None:
        hooks = [
            ("encoder.blocks.0.attn.hook_z", lambda x, hook: 0 * x),
            ("encoder.ln_final.hook_normalized", lambda x, hook: 2 * x),
            ("decoder.blocks.0.cross_attn.hook_z", lambda x, hook: 0 * x),
        ]
        with speaking_model.hooks(hooks):
            lens = encoder_lens(speaking_model, tiny_mel, reference, max_new_tokens=3)
            loss = speaking_model(tiny_mel, reference, return_type="loss", loss_per_token=True)
            generation = speaking_model.generate(tiny_mel, 3)
        assert torch.equal(lens.logprobs[-1][loss > 0], -loss[loss > 0])
        assert lens.texts[-1] == generation.texts

    def test_a_reference_alone_needs_no_tokenizer(self, tiny_model: Any, make_inputs: Any) -> None:
        mel, tokens = make_inputs(2, 6)
        lens = encoder_lens(tiny_model, mel, tokens, transcribe=False)
        assert lens.generations is None
        loss = tiny_model(mel, tokens, return_type="loss", loss_per_token=True)
        torch.testing.assert_close(lens.mean_logprobs[-1], -loss.mean(dim=1))
        with pytest.raises(InputError, match=r"encoder_lens\(..., transcribe=True\)"):
            _ = lens.texts

    def test_transcripts_alone(self, speaking_model: Any, tiny_mel: Any) -> None:
        lens = encoder_lens(speaking_model, tiny_mel, layers=[1], max_new_tokens=2)
        assert lens.layers == (1,) and lens.logprobs is None
        with pytest.raises(InputError, match="there is no reference"):
            _ = lens.mean_logprobs

    def test_options_reach_the_decoding(self, speaking_model: Any, tiny_mel: Any) -> None:
        lens = encoder_lens(speaking_model, tiny_mel, max_new_tokens=2, language="de")
        assert lens.generations[0].languages == ["de", "de"]

    @pytest.mark.parametrize(
        ("kind", "error", "message"),
        [
            ("deep", InputError, r"layers are \[3\]; the encoder can run 0 to 2 layers"),
            ("negative", InputError, r"layers are \[-4\]"),
            ("empty", InputError, "layers are empty"),
            ("nothing", InputError, "neither transcripts nor a reference"),
            ("vocabulary", TokenError, "d_vocab is 101"),
            ("token", TokenError, "out of the vocabulary"),
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
        mel, tokens = make_inputs(2, 4)
        options: dict[str, Any] = {
            "deep": {"layers": [3]},
            "negative": {"layers": [-4]},
            "empty": {"layers": []},
            "nothing": {"transcribe": False},
            "vocabulary": {},
            "token": {"tokens": tokens + 101, "transcribe": False},
        }[kind]
        with never_runs(tiny_model), pytest.raises(error, match=message):
            encoder_lens(tiny_model, mel, **options)

    def test_refuses_rows_that_do_not_match(
        self, tiny_model: Any, make_inputs: Any, never_runs: Any, without_shape_checks: None
    ) -> None:
        mel, tokens = make_inputs(2, 4)
        message = "2 recordings and 1 rows of tokens do not match"
        with never_runs(tiny_model), pytest.raises(InputError, match=message):
            encoder_lens(tiny_model, mel, tokens[:1], transcribe=False)


def test_an_early_transcript_that_does_not_last_has_not_emerged() -> None:
    wrong, right = ["one", "two"], ["one six", "two"]

    def lens_of(*texts: list[str]) -> EncoderLens:
        none = torch.zeros(2)
        generations = tuple(
            Generation(torch.zeros(2, 1, dtype=torch.int64), 0, each, none, none, ["en"] * 2)
            for each in texts
        )
        return EncoderLens(tuple(range(len(texts))), True, generations, None, None, None)

    lens = lens_of(right, wrong, right, right)
    assert lens.emerges_at() == [2, 0]
    assert lens.emerges_at([" one six", "nine"]) == [2, None]
    with pytest.raises(InputError, match="1 texts for 2 recordings"):
        lens.emerges_at(["one"])


@pytest.mark.parametrize(
    ("text", "options", "counted"),
    [
        (" three one", {}, [0, 0, 0, 1, 1, 1]),
        ([" three one", " two"], {}, [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]),
        (" three", {"timestamps": True}, [0, 0, 1, 1]),
        ("<|0.00|> three<|1.00|>", {"timestamps": True}, [0, 0, 1, 1, 1, 1]),
        ("", {}, [0, 0, 0, 1]),
        (
            "<|startofprev|> two<|startoftranscript|><|en|><|transcribe|> one",
            {"prepend_sot": False},
            [0, 0, 0, 0, 1, 1],
        ),
    ],
    ids=["plain", "padded", "with timestamps", "timestamps", "nothing said", "prompt"],
)
def test_the_tokens_that_count(text: Any, options: Any, counted: Any, speaking_model: Any) -> None:
    tokens = speaking_model.to_tokens(text, append_eot=True, **options)
    wanted = torch.tensor(counted, dtype=torch.bool).reshape(len(tokens), -1)
    assert torch.equal(counted_tokens(speaking_model, tokens), wanted)


def test_what_rows_were_filled_up_with_does_not_count(speaking_model: Any) -> None:
    """Without an end of their own, also the first of what was filled in."""
    tokens = speaking_model.to_tokens([" three one", " two"])
    counted = counted_tokens(speaking_model, tokens)
    assert counted.tolist() == [[False] * 3 + [True, True], [False] * 3 + [True, False]]


def test_the_mean_is_over_the_tokens_that_count(speaking_model: Any, tiny_mel: Any) -> None:
    tokens = speaking_model.to_tokens([" three one", " two"], append_eot=True)
    lens = encoder_lens(speaking_model, tiny_mel, tokens, transcribe=False)
    counted = counted_tokens(speaking_model, tokens)
    by_hand = [
        [float(row[counts].mean()) for row, counts in zip(layer, counted, strict=True)]
        for layer in lens.logprobs
    ]
    torch.testing.assert_close(lens.mean_logprobs, torch.tensor(by_hand))


def test_the_table_has_the_numbers(speaking_model: Any, tiny_mel: Any, reference: Any) -> None:
    lens = encoder_lens(speaking_model, tiny_mel, reference, max_new_tokens=2)
    frame = lens.to_dataframe()
    assert len(frame) == 3 * 2
    line = frame[(frame.layer == 1) & (frame.batch == 1)].iloc[0]
    assert line.text == lens.texts[1][1]
    assert line.avg_logprob == pytest.approx(float(lens.generations[1].avg_logprob[1]))
    assert line.reference_logprob == pytest.approx(float(lens.mean_logprobs[1, 1]))
    assert line.no_speech_prob == pytest.approx(float(lens.generations[1].no_speech_prob[1]))
