"""Calling the model: what it returns, where it stops, what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_whisper.config import FLAGS
from hooked_whisper.errors import (
    AudioLengthError,
    ConfigError,
    InputError,
    MelError,
    TokenError,
)
from hooked_whisper.speech.mel import Mel


class TestOutputs:
    def test_logits_are_openai_whispers_bit_for_bit(
        self, tiny_model: Any, reference_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with torch.no_grad():
            expected = reference_model(tiny_mel, tiny_tokens)
            assert torch.equal(tiny_model(tiny_mel, tiny_tokens), expected)

    def test_loss_is_the_cross_entropy_of_the_next_token(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        logits = tiny_model(tiny_mel, tiny_tokens)
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tiny_tokens[:, 1:].flatten())
        torch.testing.assert_close(tiny_model(tiny_mel, tiny_tokens, "loss"), expected)
        both = tiny_model(tiny_mel, tiny_tokens, return_type="both")
        assert torch.equal(both.logits, logits)
        torch.testing.assert_close(both.loss, expected)
        per_token = tiny_model(tiny_mel, tiny_tokens, "loss", loss_per_token=True)
        assert per_token.shape == (2, 6)
        torch.testing.assert_close(per_token.mean(), expected)

    def test_none_returns_nothing_but_runs(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        output, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, return_type=None)
        assert output is None and "decoder.hook_logits" in cache

    @pytest.mark.usefixtures("without_shape_checks")
    @torch.no_grad()
    def test_encoder_alone_and_its_output_passed_in(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        encoder_output = tiny_model(tiny_mel)
        assert encoder_output.shape == (2, 30, 24)
        logits, cache = tiny_model.run_with_cache(tokens=tiny_tokens, encoder_output=encoder_output)
        torch.testing.assert_close(logits, tiny_model(tiny_mel, tiny_tokens), atol=1e-5, rtol=1e-5)
        assert not any(name.startswith("encoder") for name in cache)

    @torch.no_grad()
    def test_a_mel_with_lengths_is_the_same_as_its_values(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        mel = Mel(tiny_mel, torch.tensor([60, 20]))
        assert torch.equal(tiny_model(mel, tiny_tokens), tiny_model(tiny_mel, tiny_tokens))
        assert torch.equal(tiny_model.embed_audio(mel), tiny_model(tiny_mel))

    @torch.no_grad()
    def test_several_rows_of_tokens_for_each_recording(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        heard, rows = tiny_model(tiny_mel), torch.cat([tiny_tokens, tiny_tokens.flip(1)])
        each = tiny_model.decoder(rows, heard.repeat_interleave(2, dim=0))
        torch.testing.assert_close(tiny_model.decoder(rows, heard), each, atol=1e-5, rtol=1e-5)

    def test_what_needs_no_weights_is_openai_whispers(self, tiny_model: Any) -> None:
        from whisper.model import sinusoids

        assert torch.equal(tiny_model.encoder.W_pos, sinusoids(30, 24))
        assert tiny_model.alignment_heads.to_dense().sum(dim=1).tolist() == [0, 3, 3]


class TestStopAtLayer:
    @pytest.mark.parametrize(
        ("stop", "last", "next_name"),
        [
            (("encoder", 0), None, "encoder.blocks.0.hook_resid_pre"),
            (("encoder", 1), "encoder.blocks.0.hook_resid_post", "encoder.blocks.1.ln1.hook_scale"),
            (
                ("encoder", -1),
                "encoder.blocks.0.hook_resid_post",
                "encoder.blocks.1.hook_resid_pre",
            ),
            (("encoder", 2), "encoder.blocks.1.hook_resid_post", "encoder.ln_final.hook_scale"),
            (("decoder", 0), None, "decoder.blocks.0.hook_resid_pre"),
            (("decoder", 2), "decoder.blocks.1.hook_resid_post", "decoder.blocks.2.hook_resid_pre"),
            (("decoder", -3), None, "decoder.blocks.0.hook_resid_pre"),
            (("decoder", 3), "decoder.blocks.2.hook_resid_post", "decoder.ln_final.hook_scale"),
        ],
        ids=str,
    )
    @torch.no_grad()
    def test_returns_the_stream_there_and_runs_no_further(
        self,
        stop: Any,
        last: str | None,
        next_name: str,
        tiny_model: Any,
        tiny_mel: Tensor,
        tiny_tokens: Tensor,
    ) -> None:
        _, whole = tiny_model.run_with_cache(tiny_mel, tiny_tokens)
        resid, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, stop_at_layer=stop)
        stack = stop[0]
        if last is None:
            expected = whole[stack, "embed"] + whole[stack, "pos_embed"]
        else:
            expected = whole[last]
        torch.testing.assert_close(resid, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(resid, tiny_model(tiny_mel, tiny_tokens, stop_at_layer=stop)) or last
        assert next_name not in cache
        names = list(whole)
        block = "blocks" if last is None else ".".join(last.split(".")[:3])
        fired = {name for name in names if name in cache}
        if last is not None:
            assert last in fired and f"{block}.mlp.hook_post" in fired
        later = (
            {"encoder.ln_final.hook_normalized", "decoder.hook_embed"}
            if stack == "encoder"
            else {"decoder.ln_final.hook_normalized", "decoder.hook_logits"}
        )
        assert not later & fired

    @torch.no_grad()
    def test_broken_blocks_behind_it_are_never_reached(
        self, fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        def fail(*_: Any) -> None:
            pytest.fail("a block behind the stop ran")

        for block in (fresh_model.encoder.blocks[1], *fresh_model.decoder.blocks):
            block.register_forward_pre_hook(fail)
        fresh_model(tiny_mel, tiny_tokens, stop_at_layer=("encoder", 1))
        fresh_model(tiny_mel, stop_at_layer=("encoder", 1))

    @pytest.mark.parametrize(
        ("stop", "message"),
        [
            (("encoder", 3), "the encoder has 2 layers, so that it can be -2 to 2"),
            (("encoder", -3), "the encoder has 2 layers"),
            (("decoder", 4), "the decoder has 3 layers"),
            (("middle", 1), r"it can be \(stack, layer\)"),
            (("encoder",), r"it can be \(stack, layer\)"),
            (("encoder", "1"), r"it can be \(stack, layer\)"),
            (2, r"stop_at_layer is 2; it can be \(stack, layer\)"),
            ("encoder", r"it can be \(stack, layer\)"),
        ],
        ids=str,
    )
    @pytest.mark.usefixtures("without_shape_checks")
    def test_refuses_what_is_no_layer(
        self, stop: Any, message: str, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with pytest.raises(InputError, match=message):
            tiny_model(tiny_mel, tiny_tokens, stop_at_layer=stop)

    def test_in_the_decoder_needs_tokens(self, tiny_model: Any, tiny_mel: Tensor) -> None:
        with pytest.raises(InputError, match="needs tokens for the decoder"):
            tiny_model(tiny_mel, stop_at_layer=("decoder", 1))


class TestRunFrom:
    @pytest.mark.parametrize("layer", [0, 1, 2, -1])
    @torch.no_grad()
    def test_the_encoders_stream_gives_what_a_whole_pass_gives(
        self, layer: int, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        place = ("encoder", layer)
        resid = tiny_model(tiny_mel, stop_at_layer=place)
        assert torch.equal(tiny_model.run_from(place, resid), tiny_model(tiny_mel))
        logits = tiny_model.run_from(place, resid, tiny_tokens)
        assert torch.equal(logits, tiny_model(tiny_mel, tiny_tokens))

    @pytest.mark.parametrize("layer", [0, 1, 3, -1])
    @torch.no_grad()
    def test_the_decoders_stream_too_and_rows_may_share_a_recording(
        self, layer: int, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        place, output = ("decoder", layer), tiny_model(tiny_mel)
        resid = tiny_model(tiny_mel, tiny_tokens, stop_at_layer=place)
        got = tiny_model.run_from(place, resid, encoder_output=output)
        assert torch.equal(got, tiny_model(tiny_mel, tiny_tokens))
        got = tiny_model.run_from(place, resid.repeat(3, 1, 1), encoder_output=output[:1])
        one = tiny_model.run_from(place, resid[1:], encoder_output=output[:1])
        torch.testing.assert_close(got[[1, 3, 5]], one.expand(3, -1, -1), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_hooks_from_there_on_act(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        seen = []
        resid = tiny_model(tiny_mel, stop_at_layer=("encoder", 1))
        with tiny_model.hooks([("*.hook_resid_pre", lambda value, hook: seen.append(hook.name))]):
            tiny_model.run_from(("encoder", 1), resid, tiny_tokens)
        assert seen == [
            "encoder.blocks.1.hook_resid_pre",
            *(f"decoder.blocks.{layer}.hook_resid_pre" for layer in range(3)),
        ]

    @pytest.mark.usefixtures("without_shape_checks")
    @pytest.mark.parametrize(
        ("call", "match"),
        [
            (lambda m, x, t, e: m.run_from(("encoder", 5), x), "layer is .*it can be -2 to 2"),
            (lambda m, x, t, e: m.run_from(("encoder", 1), x[0]), r"resid is \(30, 24\)"),
            (lambda m, x, t, e: m.run_from(("encoder", 1), x[:, :9]), r"\[batch, 30, 24\]"),
            (lambda m, x, t, e: m.run_from(("encoder", 1), None), "resid is NoneType"),
            (lambda m, x, t, e: m.run_from(("encoder", 1), x.to("meta")), "resid is on meta"),
            (lambda m, x, t, e: m.run_from(("encoder", 1), x, encoder_output=e), "leave it out"),
            (lambda m, x, t, e: m.run_from(("encoder", 1), x, t + 999), "token"),
            (lambda m, x, t, e: m.run_from(("decoder", 1), x[:, :9]), "pass encoder_output"),
            (
                lambda m, x, t, e: m.run_from(("decoder", 1), x[:, :9], t, encoder_output=e),
                "the stream already holds them",
            ),
            (
                lambda m, x, t, e: m.run_from(("decoder", 1), x, encoder_output=e),
                r"\[batch, up to 20, 24\]",
            ),
            (
                lambda m, x, t, e: m.run_from(("decoder", 1), x[:, :9], encoder_output=e[:, :9]),
                r"the encoder output is \(2, 9, 24\)",
            ),
        ],
    )
    def test_refuses(
        self, call: Any, match: str, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        resid, output = tiny_model(tiny_mel, stop_at_layer=("encoder", 1)), tiny_model(tiny_mel)
        with pytest.raises((InputError, TokenError), match=match):
            call(tiny_model, resid, tiny_tokens, output)


@pytest.fixture(scope="module")
def speaking_model(tiny_cfg: Any, make_model: Any) -> Any:
    """A small random model with Whisper's vocabulary."""
    return make_model(replace(tiny_cfg, d_vocab=51865))


class TestLossOfUnequalTexts:
    TEXTS: ClassVar = [" three one four", " six", " eight five"]

    @pytest.mark.parametrize("append_eot", [True, False])
    def test_is_that_of_each_text_by_itself(
        self, speaking_model: Any, tiny_mel: Tensor, append_eot: bool
    ) -> None:
        model, mel = speaking_model, tiny_mel[[0, 1, 0]]
        tokens = model.to_tokens(self.TEXTS, append_eot=append_eot)
        apart = model(mel, tokens, return_type="loss", loss_per_token=True)
        total, n = 0.0, 0
        for row, text in enumerate(self.TEXTS):
            alone = model.to_tokens(text, append_eot=append_eot)
            one = model(mel[row : row + 1], alone, return_type="loss", loss_per_token=True)[0]
            torch.testing.assert_close(apart[row, : len(one)], one, atol=1e-5, rtol=1e-5)
            assert not apart[row, len(one) :].any()
            total, n = total + one.sum().item(), n + len(one)
        loss = model(mel, tokens, return_type="loss")
        assert loss.item() == pytest.approx(total / n, rel=1e-5)

    def test_gradients_come_from_text_alone(self, speaking_model: Any, tiny_mel: Tensor) -> None:
        model = speaking_model
        tokens = model.to_tokens(self.TEXTS[:2])
        _, cache = model.run_with_cache(
            tiny_mel,
            tokens,
            return_type="loss",
            incl_bwd=True,
            names_filter="decoder.hook_logits",
        )
        gradient = cache["decoder.hook_logits_grad"].abs().sum(dim=-1) > 0
        assert gradient.sum(dim=1).tolist() == [
            tokens.shape[1] - 1,
            model.to_tokens(" six").shape[1] - 1,
        ]


BAD_MELS: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "bands": (lambda mel: mel[:, :79], MelError, "79 bands; this model takes 80"),
    "too short": (lambda mel: mel[..., :59], AudioLengthError, "59 frames; .* exactly 60 .*to_mel"),
    "too long": (lambda mel: F.pad(mel, (0, 1)), AudioLengthError, "61 frames"),
    "no batch axis": (lambda mel: mel[0], MelError, r"Add the batch axis: mel\[None\]"),
    "transposed": (lambda mel: mel.transpose(1, 2), MelError, "Swap the last two"),
    "integers": (lambda mel: mel.long(), MelError, "dtype torch.int64"),
    "NaN": (lambda mel: mel.clone().fill_(float("nan")), MelError, "NaN or infinite"),
    "infinite": (lambda mel: mel / 0, MelError, "NaN or infinite, the first in recording 0"),
    "array": (lambda mel: mel.numpy(), MelError, "must be a tensor"),
    "another device": (lambda mel: mel.to("meta"), MelError, r"on meta and the model on cpu"),
}
BAD_TOKENS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "out of vocabulary": (
        lambda tokens: tokens.index_fill(1, torch.tensor([3]), 101),
        "token 101 at row 0, position 3 .* 0 to 100",
    ),
    "negative": (lambda tokens: tokens - 101, "token -.* is out of the vocabulary"),
    "too many": (lambda tokens: tokens.repeat(1, 3), "21 tokens are too many; .* 20 positions"),
    "floats": (lambda tokens: tokens.float(), "dtype torch.float32"),
    "booleans": (lambda tokens: tokens > 3, "dtype torch.bool"),
    "no batch axis": (lambda tokens: tokens[0], r"Add the batch axis: tokens\[None\]"),
    "none": (lambda tokens: tokens[:, :0], "there are none"),
    "list": (lambda tokens: tokens.tolist(), "tokens are list; they must be a tensor"),
    "text": (lambda tokens: "one", "tokens are 'one'"),
}


@pytest.mark.usefixtures("without_shape_checks")
class TestBadInput:
    """Refused with the value and the remedy, and the model left as it was."""

    @pytest.mark.parametrize(("change", "error", "message"), BAD_MELS.values(), ids=BAD_MELS)
    def test_mel(
        self,
        change: Any,
        error: type[Exception],
        message: str,
        tiny_model: Any,
        tiny_mel: Tensor,
        tiny_tokens: Tensor,
    ) -> None:
        bad = change(tiny_mel)
        with pytest.raises(error, match=message):
            tiny_model(bad)
        with pytest.raises(error, match=message):
            tiny_model.run_with_cache(bad)
        assert not any(point.is_hooked for point in tiny_model.hook_dict.values())

    @pytest.mark.parametrize(("change", "message"), BAD_TOKENS.values(), ids=BAD_TOKENS)
    def test_tokens(
        self, change: Any, message: str, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        bad = change(tiny_tokens)
        with pytest.raises(TokenError, match=message):
            tiny_model(tiny_mel, bad)
        with pytest.raises(TokenError, match=message):
            tiny_model(tokens=bad, encoder_output=torch.zeros(2, 30, 24))

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda m, mel, t: m(), "neither of mel and encoder_output"),
            (lambda m, mel, t: m(tokens=t), "neither of mel and encoder_output"),
            (lambda m, mel, t: m(mel, t, encoder_output=m(mel)), "both of mel and encoder_output"),
            (lambda m, mel, t: m(mel, t, "probs"), "return_type is 'probs'; it can be \"logits\""),
            (lambda m, mel, t: m(mel, return_type="loss"), "'loss' needs tokens"),
            (lambda m, mel, t: m(mel, t[:1]), "2 recordings and 1 rows of tokens do not match"),
            (lambda m, mel, t: m(mel[:1], t), "1 recordings and 2 rows of tokens do not match"),
            (
                lambda m, mel, t: m(tokens=t, encoder_output=torch.zeros(2, 29, 24)),
                r"the encoder output is \(2, 29, 24\); this model's is \(batch, 30, 24\)",
            ),
            (
                lambda m, mel, t: m(tokens=t, encoder_output=torch.zeros(30, 24)),
                r"the encoder output is \(30, 24\)",
            ),
            (
                lambda m, mel, t: m(tokens=t, encoder_output=torch.zeros(3, 30, 24)),
                "3 recordings and 2 rows of tokens do not match",
            ),
            (
                lambda m, mel, t: m(tokens=t, encoder_output=torch.zeros(2, 30, 24, device="meta")),
                "encoder output on meta",
            ),
            (lambda m, mel, t: m(mel, t.to("meta")), "tokens are on meta"),
        ],
    )
    def test_call(
        self, call: Any, message: str, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with pytest.raises(InputError, match=message):
            call(tiny_model, tiny_mel, tiny_tokens)

    def test_loss_of_one_token(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        with pytest.raises(TokenError, match="loss of 1 token"):
            tiny_model(tiny_mel, tiny_tokens[:, :1], "loss")

    def test_tokens_and_an_encoder_output_alone(
        self, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        encoder_output = tiny_model(tiny_mel)
        logits = tiny_model(tokens=tiny_tokens, encoder_output=encoder_output)
        assert torch.equal(logits, tiny_model(tiny_mel, tiny_tokens))


class TestFlags:
    @torch.no_grad()
    def test_with_one_head_an_edit_in_place_reaches_nothing_else(
        self, tiny_cfg: Any, make_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        model = make_model(replace(tiny_cfg, n_text_heads=1, use_attn_in=True))
        name = "decoder.blocks.0.hook_attn_in"
        in_place = [(name, lambda value, hook: value.mul_(2))]
        returned = [(name, lambda value, hook: value * 2)]
        torch.testing.assert_close(
            model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=in_place),
            model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=returned),
        )

    @pytest.mark.parametrize("flag", FLAGS)
    def test_go_on_and_off(
        self, flag: str, fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        before = fresh_model.hook_names()
        switch = getattr(fresh_model, f"set_{flag}")
        switch(True)
        assert getattr(fresh_model.cfg, flag) is True
        _, cache = fresh_model.run_with_cache(tiny_mel, tiny_tokens)
        assert list(cache) == fresh_model.hook_names() != before
        switch(False)
        assert getattr(fresh_model.cfg, flag) is False
        _, cache = fresh_model.run_with_cache(tiny_mel, tiny_tokens)
        assert list(cache) == fresh_model.hook_names() == before

    @pytest.mark.parametrize("flag", FLAGS)
    def test_trap_3_does_not_go_off_under_a_hook(self, flag: str, fresh_model: Any) -> None:
        switch = getattr(fresh_model, f"set_{flag}")
        before = set(fresh_model.hook_names())
        switch(True)
        name = next(each for each in fresh_model.hook_names() if each not in before)
        fresh_model.add_hook(name, lambda value, hook: None)
        with pytest.raises(ConfigError, match=f"{flag} cannot go off while '{name}' has hooks"):
            switch(False)
        assert getattr(fresh_model.cfg, flag) is True
        fresh_model.reset_hooks()
        switch(False)

    @torch.no_grad()
    def test_a_heads_input_reaches_that_head_only(
        self, fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        fresh_model.set_use_split_qkv_input(True)

        def edit(value: Tensor, hook: Any) -> None:
            value[:, :, 1] += torch.randn(value.shape[-1])

        _, before = fresh_model.run_with_cache(tiny_mel, tiny_tokens)
        for x in "qkv":
            hooks = [(f"decoder.blocks.0.hook_{x}_input", edit)]
            _, after = fresh_model.run_with_cache(tiny_mel, tiny_tokens, fwd_hooks=hooks)
            for y in "qkv":
                changed = after["decoder", 0, y] - before["decoder", 0, y]
                heads = changed.abs().amax(dim=(0, 1, 3)) > 1e-4
                assert heads.tolist() == [False, x == y, False], (x, y)
            assert torch.equal(after["decoder", 0, "resid_pre"], before["decoder", 0, "resid_pre"])

    @torch.no_grad()
    def test_mlp_in_reaches_the_mlp_but_not_the_stream(
        self, fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
    ) -> None:
        fresh_model.set_use_hook_mlp_in(True)
        hooks = [("encoder.blocks.0.hook_mlp_in", lambda value, hook: value.zero_())]
        _, cache = fresh_model.run_with_cache(tiny_mel, tiny_tokens, fwd_hooks=hooks)
        resid = cache["encoder", 0, "resid_mid"] + cache["encoder", 0, "mlp_out"]
        assert torch.equal(cache["encoder", 0, "resid_post"], resid)
        assert cache["encoder", 0, "resid_mid"].abs().max() > 0.1
        bias_only = cache["encoder", 0, "normalized", "ln2"]
        expected = fresh_model.encoder.blocks[0].ln2.bias.expand_as(bias_only)
        torch.testing.assert_close(bias_only, expected)


class TestRepr:
    def test_it_fits_on_a_screen_and_tells_sizes_hooks_and_autoencoders(
        self, fresh_model: Any
    ) -> None:
        shown = repr(fresh_model)
        assert len(shown.splitlines()) < 10
        n_parameters = sum(each.numel() for each in fresh_model.parameters())
        assert f"{n_parameters:,} parameters, torch.float32 on cpu" in shown
        assert f"{fresh_model.cfg.n_audio_layers} layers x {fresh_model.cfg.n_audio_heads}" in shown
        assert "hooked: none" in shown
        assert "SAEs     none" in shown
        assert "Encoder(" in str(fresh_model.encoder)  # the tree of modules, as it says

    def test_it_names_what_is_hooked_and_spliced_now(
        self, fresh_model: Any, plain_autoencoder: Callable[..., Any]
    ) -> None:
        site = "encoder.hook_embed"
        fresh_model.add_hook("decoder.hook_logits", lambda value, hook: None)
        sae = plain_autoencoder(fresh_model.cfg.d_model)
        with fresh_model.saes({site: sae}):
            shown = repr(fresh_model)
        assert "hooked: decoder.hook_logits\n" in shown
        assert f"SAEs     {site}\n" in shown
        assert "SAEs     none" in repr(fresh_model)


def test_it_shows_in_a_notebook_what_its_repr_says(
    fresh_model: Any, shown: Callable[[Any], Any]
) -> None:
    fresh_model.add_hook("encoder.hook_mel", lambda value, hook: None)
    found = shown(fresh_model)
    lines = repr(fresh_model).splitlines()
    assert found.text.startswith(lines[0])
    assert found.rows == [line.split(maxsplit=1) for line in lines[1:]]
    assert any("hooked: encoder.hook_mel" in row[1] for row in found.rows)
