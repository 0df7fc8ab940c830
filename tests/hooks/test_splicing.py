"""Autoencoders in the model's path: exact where nothing is edited, causal where something is."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hooked_whisper.errors import HookDisabledError, HookNameError, SpliceError
from hooked_whisper.speech.mel import Mel

SITE = "encoder.blocks.1.hook_resid_post"
TEXT_SITE = "decoder.blocks.1.hook_resid_mid"
INNER = ["input", "acts_post", "recons", "error", "output"]
FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")

Make = Callable[..., Any]


@pytest.fixture
def sae(plain_autoencoder: Make, tiny_model: Any) -> Any:
    return plain_autoencoder(tiny_model.cfg.d_model)


def inner(name: str, site: str = SITE) -> str:
    return f"{site}.hook_sae_{name}"


def run(model: Any, mel: Tensor, tokens: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model.run_with_saes(mel, tokens, **options)


# What it computes, at every hook


@pytest.mark.usefixtures("without_shape_checks")
def test_every_hook_takes_an_autoencoder(
    tiny_cfg: Any, make_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, plain_autoencoder: Make
) -> None:
    """At each site: the plain loop's logits without error term, the clean ones with it.

    Of one layer in either stack: every layer has the same points.
    """
    model = make_model(replace(tiny_cfg, n_audio_layers=1, n_text_layers=1))
    mel, tokens = tiny_mel[:1], tiny_tokens[:1]
    for flag in FLAGS:
        getattr(model, f"set_{flag}")(True)
    clean = run(model, mel, tokens)
    n_sites, n_acting = 0, 0
    for name in model.hook_names():
        width = model.axis_sizes(name)[-1]
        if width is None:
            continue  # self-attention over a text has no fixed width
        sae = plain_autoencoder(width)

        def substitute(value: Tensor, hook: Any, sae: Any = sae) -> Tensor:
            return sae.decode(sae.encode(value))

        with torch.no_grad():
            looped = model.run_with_hooks(mel, tokens, fwd_hooks=[(name, substitute)])
            spliced = run(model, mel, tokens, saes={name: sae})
            with_error = model.run_with_hooks_with_saes(
                mel,
                tokens,
                saes={name: sae},
                use_error_term=True,
                fwd_hooks=[(inner("acts_post", name), lambda value, hook: None)],
            )
        torch.testing.assert_close(spliced, looped, rtol=1e-5, atol=1e-5, msg=name)
        torch.testing.assert_close(with_error, clean, rtol=1e-5, atol=1e-5, msg=name)
        n_sites += 1
        n_acting += not torch.allclose(spliced, clean, atol=1e-4)
    assert n_acting > 0.9 * n_sites > 45


@pytest.mark.parametrize("edit_at", ["input", "acts_post", "recons", "error", "output"])
def test_what_an_edit_inside_comes_to(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, sae: Any, edit_at: str
) -> None:
    """Each of the hook points acts by its place in the formula recons + error."""

    def edit(value: Tensor, hook: Any) -> Tensor:
        return value * 0.5 + torch.linspace(-1, 1, value.shape[-1])

    def formula(x: Tensor, hook: Any) -> Tensor:
        read = edit(x, None) if edit_at == "input" else x
        latents = sae.encode(read)
        recons = sae.decode(edit(latents, None) if edit_at == "acts_post" else latents)
        recons = edit(recons, None) if edit_at == "recons" else recons
        error = x - sae.decode(sae.encode(x))
        output = recons + (edit(error, None) if edit_at == "error" else error)
        return edit(output, None) if edit_at == "output" else output

    with torch.no_grad():
        want = tiny_model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=[(SITE, formula)])
        got = tiny_model.run_with_hooks_with_saes(
            tiny_mel,
            tiny_tokens,
            saes={SITE: sae},
            use_error_term=True,
            fwd_hooks=[(inner(edit_at), edit)],
        )
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, run(tiny_model, tiny_mel, tiny_tokens), atol=1e-3)


def test_an_edit_in_place_acts_like_a_returned_one(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, sae: Any
) -> None:
    def in_place(value: Tensor, hook: Any) -> None:
        value[..., 3] += 2.0

    def returned(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[..., 3] += 2.0
        return value

    found = []
    for edit in (in_place, returned):
        for inference in (False, True):
            with torch.inference_mode(inference), torch.no_grad():
                found.append(
                    tiny_model.run_with_hooks_with_saes(
                        tiny_mel,
                        tiny_tokens,
                        saes={SITE: sae},
                        use_error_term=True,
                        fwd_hooks=[(inner("acts_post"), edit)],
                    ).clone()
                )
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    clean = run(tiny_model, tiny_mel, tiny_tokens)
    assert not torch.allclose(found[0], clean, atol=1e-3)


def test_an_edited_latent_moves_the_stream_along_its_decoder_row(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, sae: Any
) -> None:
    def stronger(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, 4:9, 7] += 1.5
        return value

    def row(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, 4:9] += 1.5 * sae.W_dec[7]
        return value

    with torch.no_grad():
        want = tiny_model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=[(SITE, row)])
        got = tiny_model.run_with_hooks_with_saes(
            tiny_mel,
            tiny_tokens,
            saes={SITE: sae},
            use_error_term=True,
            fwd_hooks=[(inner("acts_post"), stronger)],
        )
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_model(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, sae: Any
) -> None:
    """Of the site: as without a splice. Of a latent: the site's gradient along its decoder row."""
    before = "encoder.blocks.0.hook_resid_post"
    _, plain = tiny_model.run_with_cache(
        tiny_mel, tiny_tokens, "loss", incl_bwd=True, names_filter=[before, SITE]
    )
    _, cache = tiny_model.run_with_cache_with_saes(
        tiny_mel,
        tiny_tokens,
        "loss",
        saes={SITE: sae},
        use_error_term=True,
        incl_bwd=True,
        names_filter=[before, SITE, inner("acts_post"), inner("error"), inner("output")],
    )
    for name in (before, SITE):
        torch.testing.assert_close(
            cache[name + "_grad"], plain[name + "_grad"], atol=1e-6, rtol=1e-4
        )
    gradient = plain[SITE + "_grad"]
    torch.testing.assert_close(
        cache[inner("acts_post") + "_grad"], gradient @ sae.W_dec.T, atol=1e-6, rtol=1e-4
    )
    torch.testing.assert_close(cache[inner("error") + "_grad"], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_precisions(
    tiny_cfg: Any, make_model: Make, tiny_mel: Tensor, tiny_tokens: Tensor, dtype: Any, sae: Any
) -> None:
    """A float32 autoencoder in a half-precision model; the error term stays in float32."""
    model = make_model(tiny_cfg).to(dtype)
    mel = tiny_mel.to(dtype)
    sae = copy.deepcopy(sae).to(torch.promote_types(dtype, torch.float32))
    with torch.no_grad():
        clean = model(mel, tiny_tokens)
        logits, cache = model.run_with_cache_with_saes(
            mel,
            tiny_tokens,
            saes={SITE: sae},
            use_error_term=True,
            names_filter=[SITE, "*hook_sae*"],
        )
    torch.testing.assert_close(logits, clean, rtol=0, atol=0)
    assert cache[inner("error")].dtype == torch.promote_types(dtype, torch.float32)
    assert cache[inner("output")].dtype == dtype
    x = cache[SITE].to(sae.W_enc.dtype)
    torch.testing.assert_close(cache[inner("error")], x - sae.decode(sae.encode(x)))


# Names, caches, several autoencoders


def test_its_hook_points_are_like_any_other(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, sae: Any
) -> None:
    with tiny_model.saes({SITE: sae}, use_error_term=False):
        assert tiny_model.hook_names(f"{SITE}.*") == [inner(name) for name in INNER]
        names = tiny_model.hook_names("encoder.blocks.1.hook_resid_*")
        assert names.index(inner("input")) == names.index(SITE) + 1
        with torch.no_grad():
            logits, cache = tiny_model.run_with_cache(
                tiny_mel, tiny_tokens, names_filter=[SITE, "*hook_sae_acts*", inner("recons")]
            )
    assert cache.axes(inner("acts_post")) == ("batch", "pos", "latent")
    torch.testing.assert_close(cache[inner("acts_post")], sae.encode(cache[SITE]))
    torch.testing.assert_close(cache[inner("recons")], sae.decode(cache[inner("acts_post")]))
    torch.testing.assert_close(logits, run(tiny_model, tiny_mel, tiny_tokens, saes={SITE: sae}))
    shorthand = ("encoder", 1, "sae_acts_post", "hook_resid_post")
    torch.testing.assert_close(cache[shorthand], cache[inner("acts_post")])
    with pytest.raises(HookNameError, match="no SAE is spliced in there"):
        tiny_model.hook_names(inner("acts_post"))


def test_latents_before_their_activation_function(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    """Where a module passes them through `hook_sae_acts_pre`, they are read and edited."""

    class Telling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(tiny_model.cfg.d_model, 8)
            self.hook_sae_acts_pre = nn.Identity()

        def encode(self, x: Tensor) -> Tensor:
            return torch.relu(self.hook_sae_acts_pre(self.map(x)))

        def decode(self, latents: Tensor) -> Tensor:
            return latents @ self.map.weight

    sae = Telling()

    def by_hand(x: Tensor, hook: Any) -> Tensor:
        return sae.decode(torch.relu(sae.map(x) - 0.5))

    with torch.no_grad():
        want = tiny_model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=[(SITE, by_hand)])
        got = tiny_model.run_with_hooks_with_saes(
            tiny_mel,
            tiny_tokens,
            saes={SITE: sae},
            fwd_hooks=[(inner("acts_pre"), lambda value, hook: value - 0.5)],
        )
    torch.testing.assert_close(got, want)
    assert not sae.hook_sae_acts_pre._forward_hooks


def test_several_at_one_site_in_order_and_one_at_several(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, plain_autoencoder: Make
) -> None:
    width = tiny_model.cfg.d_model
    first, second = plain_autoencoder(width, seed=1), plain_autoencoder(width, 6, seed=2)

    def by_hand(x: Tensor, hook: Any) -> Tensor:
        x = first.decode(first.encode(x))
        return second.decode(second.encode(x))

    with torch.no_grad():
        want = tiny_model.run_with_hooks(
            tiny_mel, tiny_tokens, fwd_hooks=[("encoder.blocks.*.hook_resid_post", by_hand)]
        )
        tiny_model.add_sae(first, "encoder.blocks.*.hook_resid_post")
        tiny_model.add_sae(second, "encoder.blocks.*.hook_resid_post")
        got, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, names_filter="*acts_post")
        as_list = {f"encoder.blocks.{layer}.hook_resid_post": [first, second] for layer in (0, 1)}
        tiny_model.reset_saes()
        listed = run(tiny_model, tiny_mel, tiny_tokens, saes=as_list)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(listed, want)
    assert list(cache) == [
        f"encoder.blocks.{layer}.hook_resid_post.{number}hook_sae_acts_post"
        for layer in (0, 1)
        for number in ("", "sae2.")
    ]
    assert cache[f"{SITE}.sae2.hook_sae_acts_post"].shape[-1] == 6


def test_heads_one_by_one_or_together(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, plain_autoencoder: Make
) -> None:
    name, cfg = "decoder.blocks.0.attn.hook_z", tiny_model.cfg
    for width, lead in ((cfg.d_head("decoder"), 3), (cfg.d_model, 2)):
        sae = plain_autoencoder(width)

        def by_hand(z: Tensor, hook: Any, sae: Any = sae, width: int = width) -> Tensor:
            flat = z.reshape(*z.shape[:2], -1, width)
            return sae.decode(sae.encode(flat)).reshape(z.shape)

        with torch.no_grad():
            want = tiny_model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=[(name, by_hand)])
            got, cache = tiny_model.run_with_cache_with_saes(
                tiny_mel, tiny_tokens, saes={name: sae}, names_filter=f"{name}.*"
            )
        torch.testing.assert_close(got, want)
        assert cache[inner("acts_post", name)].ndim == lead + 1


def test_a_transcoder_reads_one_hook_and_writes_another(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, plain_autoencoder: Make
) -> None:
    reads, writes = "decoder.blocks.1.ln3.hook_normalized", "decoder.blocks.1.hook_mlp_out"
    transcoder = plain_autoencoder(tiny_model.cfg.d_model)
    held = {}

    def read(value: Tensor, hook: Any) -> None:
        held["x"] = value.clone()

    def write(value: Tensor, hook: Any) -> Tensor:
        return transcoder.decode(transcoder.encode(held["x"]))

    with torch.no_grad():
        clean = tiny_model(tiny_mel, tiny_tokens)
        want = tiny_model.run_with_hooks(
            tiny_mel, tiny_tokens, fwd_hooks=[(reads, read), (writes, write)]
        )
        tiny_model.add_sae(transcoder, reads, hook_name_out=writes)
        got = tiny_model(tiny_mel, tiny_tokens)
        assert tiny_model.hook_names("*acts_post") == [inner("acts_post", writes)]
        tiny_model.reset_saes(writes)
        torch.testing.assert_close(tiny_model(tiny_mel, tiny_tokens), clean)
    torch.testing.assert_close(got, want)
    with pytest.raises(SpliceError, match="one stack"):
        tiny_model.add_sae(transcoder, reads, hook_name_out=SITE)
    tiny_model.add_sae(transcoder, "decoder.blocks.2.hook_resid_pre", hook_name_out=writes)
    with pytest.raises(SpliceError, match="did not run before"):
        tiny_model(tiny_mel, tiny_tokens)
    tiny_model.reset_saes()


# Hooks beside it, and what is left behind


def test_hooks_on_the_site_see_the_raw_activation_and_survive(
    fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, sae: Any
) -> None:
    model, seen = fresh_model, []
    with torch.no_grad():
        _, clean = model.run_with_cache(tiny_mel, tiny_tokens, names_filter=SITE)
        model.add_perma_hook(SITE, lambda value, hook: seen.append(value.clone()))
        model.add_sae(sae, SITE)
        model.add_hook(SITE, lambda value, hook: seen.append(value.clone()))
        model(tiny_mel, tiny_tokens)
        assert len(seen) == 2
        for value in seen:
            torch.testing.assert_close(value, clean[SITE])
        model.reset_saes()
        model.reset_hooks()
        model(tiny_mel, tiny_tokens)
    assert len(seen) == 3


@pytest.mark.parametrize("saes_first", [True, False], ids=["saes-first", "hooks-first"])
def test_any_order_of_resetting_leaves_the_model_as_it_was(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, sae: Any, saes_first: bool
) -> None:
    names, modules = tiny_model.hook_names(), list(tiny_model.mod_dict)
    with torch.no_grad():
        clean = tiny_model(tiny_mel, tiny_tokens)
        tiny_model.add_sae(sae, SITE)
        tiny_model.add_hook(inner("acts_post"), lambda value, hook: value * 0)
        tiny_model.add_hook(SITE, lambda value, hook: value * 0)
        for reset in (
            (tiny_model.reset_saes, tiny_model.reset_hooks)
            if saes_first
            else (tiny_model.reset_hooks, tiny_model.reset_saes)
        ):
            reset()
        torch.testing.assert_close(tiny_model(tiny_mel, tiny_tokens), clean, rtol=0, atol=0)
    assert tiny_model.hook_names() == names
    assert list(tiny_model.mod_dict) == modules
    assert tiny_model.acts_to_saes == {}
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


def test_a_with_block_takes_out_only_its_own(
    tiny_model: Any, plain_autoencoder: Make, sae: Any
) -> None:
    other = plain_autoencoder(tiny_model.cfg.d_model, seed=5)
    tiny_model.add_sae(sae, SITE)
    with pytest.raises(RuntimeError, match="in the middle"):
        with tiny_model.saes({SITE: other, TEXT_SITE: [sae, other]}):
            assert tiny_model.acts_to_saes == {SITE: [sae, other], TEXT_SITE: [sae, other]}
            raise RuntimeError("in the middle")
    assert tiny_model.acts_to_saes == {SITE: [sae]}
    with tiny_model.saes({TEXT_SITE: other}):
        tiny_model.reset_saes()
    assert tiny_model.acts_to_saes == {}


def test_it_is_no_part_of_the_models_weights(tiny_model: Any, sae: Any) -> None:
    before = list(tiny_model.state_dict()), sum(1 for _ in tiny_model.parameters())
    with tiny_model.saes({SITE: sae}):
        assert (list(tiny_model.state_dict()), sum(1 for _ in tiny_model.parameters())) == before


# Speech only


def test_padding_can_be_left_alone(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, sae: Any
) -> None:
    """From the first position that is padding on, what flows on is the activation itself."""
    mel = tiny_mel.clone()
    mel[0, :, 24:] = -0.5  # what ends at frame 23 is heard in frame 24 too: 12 positions
    with torch.no_grad():
        _, cache = tiny_model.run_with_cache_with_saes(
            mel, tiny_tokens, saes={SITE: sae}, speech_only=True, names_filter=[SITE, f"{SITE}.*"]
        )
    raw, output, recons = cache[SITE], cache[inner("output")], cache[inner("recons")]
    torch.testing.assert_close(output[0, :12], recons[0, :12], rtol=0, atol=0)
    torch.testing.assert_close(output[0, 12:], raw[0, 12:], rtol=0, atol=0)
    torch.testing.assert_close(output[1], recons[1], rtol=0, atol=0)
    with pytest.raises(SpliceError, match="speech_only is for activations of encoder positions"):
        tiny_model.add_sae(sae, TEXT_SITE, speech_only=True)


def test_rows_of_several_recordings_each_have_their_own_padding(
    tiny_model: Any, tiny_mel: Tensor, sae: Any
) -> None:
    """A stream goes on in groups of rows, three for each recording."""
    mel, place = Mel(tiny_mel, torch.tensor([52, 20])), ("encoder", 1)
    with torch.no_grad(), tiny_model.saes({SITE: sae}, speech_only=True):
        whole = tiny_model(mel)
        rows = tiny_model(mel, stop_at_layer=place).repeat_interleave(3, dim=0)
        got = tiny_model.run_from(place, rows, n_positions=mel.n_positions)
        torch.testing.assert_close(got, whole.repeat_interleave(3, dim=0), atol=1e-5, rtol=1e-5)
        with pytest.raises(SpliceError, match="this pass does not say where that is"):
            tiny_model.run_from(place, rows)
    with torch.no_grad(), tiny_model.saes({SITE: sae}):
        assert not torch.allclose(tiny_model(mel), whole, atol=1e-2)


def test_a_copy_of_the_model_has_splices_of_its_own(
    fresh_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, sae: Any
) -> None:
    """Also where they ask the encoder how much of the pass is speech."""
    mel = tiny_mel.clone()
    mel[:, :, 23:] = -0.5
    fresh_model.add_sae(sae, SITE, speech_only=True)
    twin = copy.deepcopy(fresh_model)
    with torch.no_grad():
        fresh_model(tiny_mel, tiny_tokens)  # another number of positions
        got = twin(mel, tiny_tokens)
        torch.testing.assert_close(got, fresh_model(mel, tiny_tokens))
        twin.reset_saes()
        fresh_model.reset_saes()
        assert not torch.allclose(twin(mel, tiny_tokens), got, atol=1e-4)
        torch.testing.assert_close(fresh_model(mel, tiny_tokens), twin(mel, tiny_tokens))


# What does not fit


class _Odd(nn.Module):
    """An autoencoder with something wrong."""

    def __init__(self, width: int, wrong: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))
        self.wrong = wrong

    def encode(self, x: Tensor) -> Any:
        return x @ self.weight

    def decode(self, latents: Tensor) -> Any:
        if self.wrong == "shape":
            return latents[..., :-1]
        if self.wrong == "dtype":
            return latents.double()
        if self.wrong == "type":
            return (latents,)
        return latents / 0 if self.wrong == "finite" else latents


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("shape", r"a reconstruction \(2, 3, 23\) of a value \(2, 3, 24\)"),
        ("dtype", "gives a reconstruction in torch.float64"),
        ("type", "gives a? ?reconstruction of type tuple"),
        ("finite", "reconstruction .* has NaN or infinity in 144 values"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_model: Any, wrong: str, match: str) -> None:
    with pytest.raises(SpliceError, match=match):
        tiny_model.add_sae(_Odd(tiny_model.cfg.d_model, wrong), SITE)
    assert tiny_model.acts_to_saes == {}


@pytest.mark.usefixtures("without_shape_checks")
def test_refusals_attach_nothing(tiny_model: Any, plain_autoencoder: Make, sae: Any) -> None:
    with pytest.raises(SpliceError, match=r"d_model=24\].*mat1 and mat2"):
        with tiny_model.saes({SITE: sae, TEXT_SITE: plain_autoencoder(25)}):
            pass
    with pytest.raises(HookNameError, match=r"no hook 'encoder\.blocks\.7"):
        tiny_model.add_sae(sae, "encoder.blocks.7.hook_resid_post")
    with pytest.raises(HookDisabledError, match="set_use_hook_mlp_in"):
        tiny_model.add_sae(sae, "encoder.blocks.0.hook_mlp_in")
    with pytest.raises(SpliceError, match="does not say where it belongs"):
        tiny_model.add_sae(sae)
    with pytest.raises(SpliceError, match="Linear is no autoencoder"):
        tiny_model.add_sae(nn.Linear(24, 24), SITE)
    with pytest.raises(SpliceError, match=r"pass \{hook_name: sae\}"):
        with tiny_model.saes(sae):
            pass
    with pytest.raises(SpliceError, match=r"torch\.float16, which does not hold"):
        tiny_model.add_sae(copy.deepcopy(sae).half(), SITE)
    tiny_model.add_sae(sae, SITE)
    with pytest.raises(SpliceError, match="belongs to an autoencoder"):
        tiny_model.add_sae(sae, inner("recons"))
    tiny_model.reset_saes()
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


def test_a_path_around_the_latents_is_not_lost_in_silence(
    tiny_model: Any, plain_autoencoder: Make
) -> None:
    """SAELens's skip transcoders add it in `forward`, which a splice does not call."""

    class Skipping(plain_autoencoder):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(tiny_model.cfg.d_model)
            self.W_skip = nn.Parameter(torch.eye(tiny_model.cfg.d_model))

        def forward(self, x: Tensor) -> Tensor:
            return self.decode(self.encode(x)) + x @ self.W_skip.T

    with pytest.raises(SpliceError, match="adds its W_skip outside of encode"):
        tiny_model.add_sae(Skipping(), SITE)


def test_values_that_become_infinite_are_named(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, sae: Any
) -> None:
    def infinite(value: Tensor, hook: Any) -> Tensor:
        return value + torch.inf

    with pytest.raises(SpliceError, match=f"at '{SITE}' has NaN or infinity"):
        tiny_model.run_with_hooks_with_saes(
            tiny_mel, tiny_tokens, saes={SITE: sae}, fwd_hooks=[(inner("acts_post"), infinite)]
        )
    assert tiny_model.acts_to_saes == {}


def test_a_site_with_an_autoencoder_keeps_its_flag(
    fresh_model: Any, plain_autoencoder: Make
) -> None:
    fresh_model.set_use_hook_mlp_in(True)
    fresh_model.add_sae(plain_autoencoder(24), "encoder.blocks.0.hook_mlp_in")
    with pytest.raises(ValueError, match="has hooks or an SAE"):
        fresh_model.set_use_hook_mlp_in(False)


# Where it goes


class _Trained:
    """A configuration that remembers where its autoencoder was trained."""

    def __init__(self, hook_name: str, hook_name_out: str | None = None) -> None:
        self.hook_name, self.hook_name_out = hook_name, hook_name_out


@pytest.mark.parametrize("out", [None, SITE], ids=["one hook", "named twice"])
def test_the_site_that_is_named_wins_over_the_one_that_it_was_trained_at(
    tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor, sae: Any, out: str | None
) -> None:
    sae.cfg = _Trained(SITE, out)
    for name in ("encoder.blocks.1.hook_mlp_out", "decoder.blocks.0.hook_attn_out"):
        replaced = [(name, lambda value, hook: sae.decode(sae.encode(value)))]
        with torch.no_grad():
            tiny_model.add_sae(sae, name)
            got = tiny_model(tiny_mel, tiny_tokens)
            assert list(tiny_model.acts_to_saes) == [name]
            tiny_model.reset_saes()
            wanted = tiny_model.run_with_hooks(tiny_mel, tiny_tokens, fwd_hooks=replaced)
        torch.testing.assert_close(got, wanted)
    with tiny_model.saes([sae]):
        assert list(tiny_model.acts_to_saes) == [SITE]
    with tiny_model.saes({"encoder.blocks.*.hook_mlp_out": sae}):
        assert list(tiny_model.acts_to_saes) == [f"encoder.blocks.{i}.hook_mlp_out" for i in (0, 1)]


def test_a_transcoder_away_from_home_is_told_where_to_write(tiny_model: Any, sae: Any) -> None:
    reads, writes = "encoder.blocks.0.ln2.hook_normalized", "encoder.blocks.0.hook_mlp_out"
    sae.cfg = _Trained(reads, writes)
    with pytest.raises(SpliceError, match=r"At 'encoder\.blocks\.1\..*', say hook_name_out= too"):
        tiny_model.add_sae(sae, reads.replace("0", "1"))
    assert tiny_model.acts_to_saes == {}
    tiny_model.add_sae(sae, reads)
    tiny_model.add_sae(sae, reads.replace("0", "1"), hook_name_out=writes.replace("0", "1"))
    assert list(tiny_model.acts_to_saes) == [writes, writes.replace("0", "1")]
    tiny_model.reset_saes()
