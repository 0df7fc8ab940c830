"""Decoding: what hooks see in a step, and that the joined cache is one pass's (trap 7)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.config import FLAGS
from hooked_whisper.digits import recordings
from hooked_whisper.errors import HookNameError, InputError
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.model.attention import Attention
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import get_tokenizer

N_PROMPT = 4
"""Start, language, task, no timestamps."""
EOT = 50257


@pytest.fixture(scope="module")
def model(tiny_cfg: Any, make_model: Any) -> Any:
    cfg = replace(tiny_cfg, d_vocab=51865, n_text_layers=2, n_text_ctx=16)
    get_tokenizer(cfg)  # openai-whisper leaves its vocabulary file open
    return make_model(cfg)


@pytest.fixture(autouse=True)
def no_hooks_left(model: Any) -> Iterator[None]:
    yield
    assert not any(point.is_hooked for point in model.hook_dict.values())


def assert_same_cache(joined: WhisperCache, one_pass: WhisperCache) -> None:
    assert list(joined) == list(one_pass)
    for name in one_pass:
        assert joined.axes(name) == one_pass.axes(name), name
        torch.testing.assert_close(
            joined[name], one_pass[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


class TestResult:
    def test_is_openai_whispers_greedy_decoding(
        self, model: Any, make_reference: Any, tiny_mel: Tensor
    ) -> None:
        from whisper.decoding import DecodingOptions, DecodingTask

        options = DecodingOptions(
            language="en", without_timestamps=True, suppress_blank=False, fp16=False, sample_len=8
        )
        task = DecodingTask(make_reference(model), options)
        expected = task.run(tiny_mel)
        generation = model.generate(tiny_mel, 8, language="en")
        assert generation.n_prompt == N_PROMPT
        for row, text, result in zip(generation.tokens, generation.texts, expected, strict=True):
            decoded = row[N_PROMPT:].tolist()
            assert [token for token in decoded if token != EOT] == result.tokens
            assert text == result.text
        logprobs = torch.tensor([each.avg_logprob for each in expected])
        torch.testing.assert_close(generation.avg_logprob, logprobs, atol=1e-4, rtol=1e-4)
        assert generation.languages == ["en", "en"]
        assert generation.cache is None

    def test_sampling_follows_the_seed(self, model: Any, tiny_mel: Tensor) -> None:
        rows = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            rows.append(model.generate(tiny_mel, 6, temperature=1.0).tokens.tolist())
        assert rows[0] == rows[1] != rows[2]

    @pytest.mark.parametrize(("n", "length"), [(1, 5), (5, 9), (None, 12), (16, 17)], ids=str)
    def test_decodes_as_many_tokens_as_asked_for(
        self, n: int | None, length: int, model: Any, tiny_mel: Tensor
    ) -> None:
        never_end = (
            "decoder.hook_logits",
            lambda value, hook: value.index_fill(2, torch.tensor([EOT]), -1e9),
        )
        with model.hooks([never_end]):
            assert model.generate(tiny_mel, n).tokens.shape == (2, length)

    def test_rows_that_ended_leave_the_batch(
        self, digits_model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a hook looks at the decoder, they stay."""
        clips = sorted(recordings(), key=lambda each: -len(each.words))
        sound = digits_model(digits_model.to_mel([clips[number].path for number in (-1, 0, -2)]))
        sound = sound[[0, 1, 2, 0, 0]]
        n_rows: list[list[int]] = []
        watched, attend = [], Attention._attend_fused

        def count(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self.cross:
                n_rows[-1].append(len(q))
            return attend(self, q, k, v)

        monkeypatch.setattr(Attention, "_attend_fused", count)
        watch = ("decoder.hook_logits", lambda value, hook: watched.append(len(value)))
        for options in ({}, {"temperature": 0.7}, {"without_timestamps": False}):
            found = []
            for hooks in ([], [watch]):
                torch.manual_seed(0)
                n_rows.append([])
                with digits_model.hooks(hooks):
                    found.append(digits_model.generate(encoder_output=sound, **options))
            (fewer, whole), (some, every) = found, n_rows[-2:]
            assert torch.equal(fewer.tokens, whole.tokens)
            assert fewer.texts == whole.texts
            torch.testing.assert_close(fewer.avg_logprob, whole.avg_logprob, atol=1e-4, rtol=1e-4)
            assert set(every) == {5} == set(watched)
            assert len(some) == len(every)
            assert some[0] == 5 and some[-1] < 5 and some == sorted(some)[::-1]
        name = "decoder.hook_embed"
        cached = digits_model.generate(encoder_output=sound, return_cache=True, names_filter=name)
        assert cached.texts == digits_model.generate(encoder_output=sound).texts
        assert cached.cache[name].shape[:2] == (5, cached.tokens.shape[1] - 1)

    def test_nothing_at_all_may_be_said(self, model: Any, tiny_mel: Tensor) -> None:
        end = (
            "decoder.hook_logits",
            lambda value, hook: value.index_fill(2, torch.tensor([EOT]), 1e9),
        )
        with model.hooks([end]):
            assert (model.generate(tiny_mel, 2).tokens[:, N_PROMPT:] == EOT).all()
            blank = model.generate(tiny_mel, 2, suppress_blank=True)
        assert (blank.tokens[:, N_PROMPT] != EOT).all()

    def test_from_an_encoder_output_is_that_of_its_mel(self, model: Any, tiny_mel: Tensor) -> None:
        from_mel = model.generate(tiny_mel, 6, return_cache=True)
        encoder_output = model(tiny_mel)
        fired: list[str] = []
        with model.hooks([("encoder.*", lambda value, hook: fired.append(hook.name))]):
            result = model.generate(None, 6, encoder_output=encoder_output, return_cache=True)
        assert fired == []
        assert torch.equal(result.tokens, from_mel.tokens)
        assert result.texts == from_mel.texts
        assert list(result.cache) == [name for name in from_mel.cache if name[:7] == "decoder"]
        name = "decoder.blocks.1.hook_resid_post"
        torch.testing.assert_close(result.cache[name], from_mel.cache[name], atol=1e-4, rtol=1e-4)

    def test_refuses_neither_or_both_of_mel_and_encoder_output(
        self, model: Any, tiny_mel: Tensor
    ) -> None:
        with pytest.raises(InputError, match="neither of mel and encoder_output given"):
            model.generate()
        with pytest.raises(InputError, match="both of mel and encoder_output given"):
            model.generate(tiny_mel, 3, encoder_output=model(tiny_mel))

    def test_trap_3_refuses_hooks_that_an_encoder_output_skips(
        self, model: Any, tiny_mel: Tensor
    ) -> None:
        with pytest.raises(HookNameError, match=r"'encoder\.\*' fires with encoder_output="):
            model.generate(
                None,
                3,
                encoder_output=model(tiny_mel),
                return_cache=True,
                names_filter="encoder.*",
            )

    @pytest.mark.parametrize(
        ("max_new_tokens", "options", "message"),
        [
            (3, {"beam_size": 5}, "one hypothesis; beam_size is an option of model.decode"),
            (3, {"best_of": 5}, "best_of is an option of model.decode"),
            (3, {"temprature": 1.0}, "no option 'temprature'; it has .*'temperature'"),
            (3, {"sample_len": 5}, "no option 'sample_len'"),
            (0, {}, "max_new_tokens is 0; it can be 1 to 16"),
            (17, {}, "max_new_tokens is 17; it can be 1 to 16"),
        ],
    )
    def test_refuses(
        self, max_new_tokens: int, options: Any, message: str, model: Any, tiny_mel: Tensor
    ) -> None:
        with pytest.raises(InputError, match=message):
            model.generate(tiny_mel, max_new_tokens, **options)

    def test_trap_2_refuses_a_misspelt_name(self, model: Any, tiny_mel: Tensor) -> None:
        with pytest.raises(HookNameError, match=r"Nearest: decoder\.hook_logits"):
            model.generate(tiny_mel, 3, return_cache=True, names_filter="decoder.hook_logit")

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_trap_6_a_hook_that_raises_in_a_later_step(
        self, error: Any, model: Any, tiny_mel: Tensor
    ) -> None:
        calls = []

        def late(value: Tensor, hook: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise error("in step 3")

        before = model.generate(tiny_mel, 5).tokens
        with pytest.raises(error, match="in step 3"), model.hooks([("decoder.hook_embed", late)]):
            model.generate(tiny_mel, 5, return_cache=True)
        assert torch.equal(model.generate(tiny_mel, 5).tokens, before)


class TestTrap7WhatHooksSee:
    """The docstring of `HookedWhisper.generate`, as tests."""

    def test_shapes_and_counts_of_every_hook(self, model: Any, tiny_mel: Tensor) -> None:
        seen: dict[str, list[tuple[int, ...]]] = {}

        def look(value: Tensor, hook: Any) -> None:
            seen.setdefault(hook.name, []).append(tuple(value.shape))

        with model.hooks([(None, look)]):
            n_steps = model.generate(tiny_mel, 5).tokens.shape[1] - N_PROMPT
        assert n_steps > 2
        for name in model.hook_names():
            once = name.startswith("encoder") or name.endswith(
                ("cross_attn.hook_k", "cross_attn.hook_v")
            )
            assert len(seen[name]) == (1 if once else n_steps), name
            axes = model.hook_dict[name].axes
            if once:
                continue
            for step, shape in enumerate(seen[name]):
                sizes = dict(zip(axes, shape, strict=True))
                n_new = N_PROMPT if step == 0 else 1
                assert sizes.get("pos", n_new) == sizes.get("query", n_new) == n_new, name
                if "key" in sizes:
                    n_keys = 30 if "cross" in name else N_PROMPT + step
                    assert sizes["key"] == n_keys, name

    @pytest.mark.parametrize("flags", [(), FLAGS], ids=["flags off", "every flag"])
    @pytest.mark.usefixtures("without_shape_checks")
    @torch.no_grad()
    def test_joined_cache_is_that_of_one_pass(
        self, flags: Any, model: Any, make_model: Any, tiny_mel: Tensor
    ) -> None:
        if flags:
            model = make_model(replace(model.cfg, **dict.fromkeys(flags, True)))
        generation = model.generate(tiny_mel, 7, return_cache=True)
        _, one_pass = model.run_with_cache(tiny_mel, generation.tokens[:, :-1])
        assert_same_cache(generation.cache, one_pass)

    @torch.no_grad()
    def test_also_where_rows_end_at_different_lengths(self, model: Any, tiny_mel: Tensor) -> None:
        steps = []

        def end_first_row(value: Tensor, hook: Any) -> None:
            steps.append(1)
            value[0, -1, EOT] += 1e4 if len(steps) >= 3 else -1e4
            value[1, -1, EOT] -= 1e4

        with model.hooks([("decoder.hook_logits", end_first_row)]):
            generation = model.generate(tiny_mel, 6, return_cache=True, names_filter="*blocks*")
        assert (generation.tokens[0] == EOT).sum() == 4
        assert (generation.tokens[1] != EOT).all()
        _, one_pass = model.run_with_cache(
            tiny_mel, generation.tokens[:, :-1], names_filter="*blocks*"
        )
        assert_same_cache(generation.cache, one_pass)

    @pytest.mark.parametrize("n", [1, 16], ids=["one step", "to the end"])
    @torch.no_grad()
    def test_also_at_the_shortest_and_the_longest(
        self, n: int, model: Any, tiny_mel: Tensor
    ) -> None:
        generation = model.generate(tiny_mel, n, return_cache=True)
        _, one_pass = model.run_with_cache(tiny_mel, generation.tokens[:, :-1])
        assert_same_cache(generation.cache, one_pass)

    @pytest.mark.parametrize("name", ["hook_k", "hook_v"])
    @torch.no_grad()
    def test_an_edit_of_keys_or_values_stays_for_later_steps(
        self, name: str, model: Any, tiny_mel: Tensor
    ) -> None:
        full_name, noise, steps = f"decoder.blocks.0.attn.{name}", torch.randn(2, 3, 8), []

        def edit_step_1(value: Tensor, hook: Any) -> Tensor | None:
            steps.append(1)
            return value + noise[:, None] if len(steps) == 2 else None

        def edit_its_position(value: Tensor, hook: Any) -> None:
            value[:, N_PROMPT] += noise

        plain = model.generate(tiny_mel, 5, return_cache=True)
        with model.hooks([(full_name, edit_step_1)]):
            edited = model.generate(tiny_mel, 5, return_cache=True)
        _, one_pass = model.run_with_cache(
            tiny_mel, edited.tokens[:, :-1], fwd_hooks=[(full_name, edit_its_position)]
        )
        assert_same_cache(edited.cache, one_pass)
        last = edited.cache["decoder", 0, "z"][:, -1] - plain.cache["decoder", 0, "z"][:, -1]
        assert last.abs().max() > 1e-3

    def test_an_edit_changes_what_is_decoded(self, model: Any, tiny_mel: Tensor) -> None:
        def say_42(value: Tensor, hook: Any) -> Tensor:
            return value.index_fill(2, torch.tensor([42]), 1e4)

        with model.hooks([("decoder.hook_logits", say_42)]):
            tokens = model.generate(tiny_mel, 4).tokens
        assert tokens[:, N_PROMPT:].eq(42).all()

    @pytest.mark.usefixtures("without_shape_checks")
    def test_trap_1_an_edit_in_a_later_step_reaches_its_logits(
        self, model: Any, tiny_mel: Tensor
    ) -> None:
        def logits(*hooks: Any) -> Tensor:
            with model.hooks(hooks):
                generation = model.generate(
                    tiny_mel[:1], 2, return_cache=True, names_filter="decoder.hook_logits"
                )
            return generation.cache["decoder", "logits"]

        class Later:
            """Noise, but not in the first step, so that the first token stays."""

            def __init__(self) -> None:
                self.fired = 0

            def __call__(self, value: Tensor, *, hook: Any) -> Tensor | None:
                self.fired += 1
                return value + 0.1 * torch.randn(value.shape) if self.fired == 2 else None

        plain = logits()
        for name in model.hook_names(
            ["decoder.blocks.1.*", "decoder.hook_*", "decoder.ln_final.*"]
        ):
            if name.endswith(("cross_attn.hook_k", "cross_attn.hook_v")):
                continue  # these fire in the first step only
            change = (logits((name, Later())) - plain).abs().amax(dim=(0, 2))
            assert change[:-1].max() < 1e-5 and change[-1] > 1e-4, name


class TestCache:
    def test_filter_and_lengths(self, model: Any, tiny_mel: Tensor) -> None:
        mel = Mel(tiny_mel, torch.tensor([60, 13]))
        names_filter = ["*.cross_attn.hook_pattern", ("encoder", 1, "resid_post")]
        cache = model.generate(mel, 4, return_cache=True, names_filter=names_filter).cache
        assert list(cache) == model.hook_names(names_filter)
        assert cache.n_frames.tolist() == [60, 13]

    def test_trap_5_holds_copies(self, model: Any, tiny_mel: Tensor) -> None:
        """openai-whisper's token rules write -inf into the logits; the cache keeps the model's."""
        mel, kept = tiny_mel.clone(), []
        with model.hooks([("decoder.*", lambda value, hook: kept.append(value))]):
            cache = model.generate(mel, 4, return_cache=True).cache
        assert cache["decoder", "logits"].isfinite().all()
        before = {name: value.clone() for name, value in cache.items()}
        for value in [mel, *kept]:
            value.zero_()
        assert all(torch.equal(cache[name], before[name]) for name in cache)
        owners = [value.untyped_storage().data_ptr() for value in cache.values()]
        assert len(set(owners)) == len(owners)

    def test_hooks_see_logits_before_the_token_rules(self, model: Any, tiny_mel: Tensor) -> None:
        kept: list[Tensor] = []
        with model.hooks([("decoder.hook_logits", lambda value, hook: kept.append(value))]):
            model.generate(tiny_mel, 4)
        assert all(value.isfinite().all() for value in kept)


class TestShown:
    def test_texts_and_numbers_of_each_recording(
        self, model: Any, tiny_mel: Tensor, shown: Callable[[Any], Any]
    ) -> None:
        options = {"return_cache": True, "names_filter": "*.hook_z", "language": "en"}
        generation = model.generate(tiny_mel, 5, **options)
        generation = replace(generation, texts=["<b>one</b>", "two"])
        found = shown(generation)
        assert [row[:3] for row in found.rows[1:3]] == [
            ["0", "<b>one</b>", "en"],
            ["1", "two", "en"],
        ]
        for row, logprob, silence in zip(
            found.rows[1:3], generation.avg_logprob, generation.no_speech_prob, strict=True
        ):
            assert float(row[3]) == pytest.approx(float(logprob), rel=1e-3)
            assert float(row[4]) == pytest.approx(float(silence), rel=1e-3)
        written = [" ".join(map(str, row[N_PROMPT:])) for row in generation.tokens.tolist()]
        assert found.rows[3:5] == [["0", written[0]], ["1", written[1]]]
        assert "behind the prompt 50258 50259 50359 50363" in found.text
        assert sorted(row[0] for row in found.rows if ".hook_z" in row[0]) == sorted(
            generation.cache
        )

    def test_many_recordings_are_cut_and_counted(
        self, model: Any, tiny_mel: Tensor, shown: Callable[[Any], Any]
    ) -> None:
        one = model.generate(tiny_mel[:1], 2)
        many = replace(
            one,
            tokens=one.tokens.repeat(60, 1),
            texts=one.texts * 60,
            languages=one.languages * 60,
            avg_logprob=one.avg_logprob.repeat(60),
            no_speech_prob=one.no_speech_prob.repeat(60),
        )
        found = shown(many)
        assert "60 recordings" in found.text and found.text.count("… and 10 more") == 2
        assert repr(many).count(repr(one.texts[0])) == 8 and "and 52 more, cache" in repr(many)
