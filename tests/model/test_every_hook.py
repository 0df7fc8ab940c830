"""Every hook name: it fires once, fits its axes, can be edited, and has a gradient (traps 1, 3)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.config import FLAGS

FLAG_SETS = {"flags off": (), "every flag": FLAGS, **{flag: (flag,) for flag in FLAGS}}
flag_sets = pytest.mark.parametrize("flags", FLAG_SETS.values(), ids=FLAG_SETS)
pytestmark = pytest.mark.usefixtures("without_shape_checks")

EXPLICIT = ("hook_attn_scores", "hook_pattern", "hook_scale")
"""Hooks that make their layer compute something itself that is fused otherwise."""


@pytest.fixture(scope="module")
def mel(small_cfg: Any) -> Tensor:
    return torch.randn(2, small_cfg.n_mels, small_cfg.n_frames).clamp(-1, 1)


@pytest.fixture(scope="module")
def tokens(small_cfg: Any) -> Tensor:
    return torch.randint(0, small_cfg.d_vocab, (2, 5))


def names_of(model: Any) -> list[str]:
    names = model.hook_names()
    assert len(names) > 50
    return names


def noise_like(value: Tensor, seed: int = 3) -> Tensor:
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    return (0.1 * noise).to(value.dtype)


class Seen:
    """A hook that keeps what it sees."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def __call__(self, value: Tensor, *, hook: Any) -> None:
        self.values.append(value)


class Runs:
    """Logits of a model with a hook; decoder hooks are tried without running the encoder."""

    def __init__(self, model: Any, mel: Tensor, tokens: Tensor) -> None:
        self.model, self.mel, self.tokens = model, mel, tokens
        self.encoder_output = model(mel)

    def __call__(self, name: str, function: Callable[..., Any]) -> Tensor:
        if name.startswith("encoder"):
            inputs: dict[str, Any] = {"mel": self.mel}
        else:
            inputs = {"encoder_output": self.encoder_output}
        return self.model.run_with_hooks(tokens=self.tokens, fwd_hooks=[(name, function)], **inputs)


def size_of(axis: str, name: str, cfg: Any) -> int:
    """How long an axis of a hook must be."""
    stack = name.split(".")[0]
    n_pos = {"encoder": cfg.n_audio_ctx, "decoder": 5}
    of_stack = n_pos["encoder"] if ".cross" in name or "hook_cross" in name else n_pos[stack]
    sizes = {
        "batch": 2,
        "mel": cfg.n_mels,
        "frame": cfg.n_frames,
        "pos": n_pos[stack],
        "query": n_pos[stack],
        "key": of_stack,
        "head": cfg.n_heads(stack),
        "d_head": cfg.d_head(stack),
        "d_model": 1 if name.endswith("hook_scale") else cfg.d_model,
        "d_mlp": cfg.d_mlp,
        "vocab": cfg.d_vocab,
    }
    if axis == "head" and ".ln1." in name and cfg.use_split_qkv_input:
        return 3 * sizes["head"]  # queries, keys and values pass one LayerNorm side by side
    return sizes[axis]


@flag_sets
@torch.no_grad()
def test_fires_exactly_once_with_the_axes_that_it_declares(
    flags: tuple[str, ...], with_flags: Any, mel: Tensor, tokens: Tensor
) -> None:
    model = with_flags(*flags)
    seen: list[str] = []

    def look(value: Tensor, *, hook: Any) -> None:
        seen.append(hook.name)
        expected = tuple(size_of(axis, hook.name, model.cfg) for axis in hook.axes)
        assert tuple(value.shape) == expected, (hook.name, hook.axes)

    model.run_with_hooks(mel, tokens, fwd_hooks=[(None, look)])
    assert sorted(seen) == sorted(names_of(model))


@flag_sets
def test_flags_decide_which_hooks_there_are(flags: tuple[str, ...], with_flags: Any) -> None:
    behind = {
        "use_attn_result": {"hook_result"},
        "use_split_qkv_input": {f"hook_{c}{x}_input" for c in ("", "cross_") for x in "qkv"},
        "use_attn_in": {"hook_attn_in", "hook_cross_attn_in"},
        "use_hook_mlp_in": {"hook_mlp_in"},
    }
    kinds = {name.split(".")[-1] for name in names_of(with_flags(*flags))}
    for flag, names in behind.items():
        assert names & kinds == (names if flag in flags else set()), flag


@flag_sets
@torch.no_grad()
def test_flags_leave_the_logits(
    flags: tuple[str, ...], with_flags: Any, make_model: Any, mel: Tensor, tokens: Tensor
) -> None:
    model = with_flags(*flags)
    plain = make_model(replace(model.cfg, **dict.fromkeys(FLAGS, False)))
    torch.testing.assert_close(model(mel, tokens), plain(mel, tokens), atol=1e-5, rtol=1e-5)


@flag_sets
@torch.no_grad()
def test_identity_edit_leaves_the_logits(
    flags: tuple[str, ...], with_flags: Any, mel: Tensor, tokens: Tensor
) -> None:
    runs = Runs(with_flags(*flags), mel, tokens)
    expected = runs.model(mel, tokens)
    for name in names_of(runs.model):
        logits = runs(name, lambda value, hook: value.clone())
        if name.endswith(EXPLICIT):
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5, msg=name)
        else:
            assert torch.equal(logits, expected), name


def edit_in_place(value: Tensor, hook: Any) -> None:
    value.add_(noise_like(value))


@flag_sets
@torch.no_grad()
def test_trap_1_an_edit_reaches_the_logits(
    flags: tuple[str, ...], with_flags: Any, mel: Tensor, tokens: Tensor
) -> None:
    """Also that an edit in place is the edit that is returned.

    Were an activation another's memory, an edit in place would reach that one too.
    """
    runs = Runs(with_flags(*flags), mel, tokens)
    expected = runs.model(mel, tokens)
    held = [
        mel,
        tokens,
        runs.encoder_output,
        *runs.model.parameters(),
        *runs.model.encoder.buffers(),
    ]
    before = [each.clone() for each in held]
    for name in names_of(runs.model):
        logits = runs(name, lambda value, hook: value + noise_like(value))
        assert logits.isfinite().all(), name
        assert (logits - expected).abs().max() > 1e-3, f"an edit at {name} does nothing"
        assert torch.equal(runs(name, edit_in_place), logits), f"another edit in place at {name}"
    for old, now in zip(before, held, strict=True):
        assert torch.equal(old, now), "an edit wrote into the model or its input"


class TestGradients:
    @flag_sets
    def test_backward_hook_sees_the_gradient_once(
        self, flags: tuple[str, ...], with_flags: Any, mel: Tensor, tokens: Tensor
    ) -> None:
        model = with_flags(*flags)
        expected: dict[str, Tensor] = {}

        def watch(value: Tensor, hook: Any) -> Tensor:
            # The reference: an alias of the activation, and autograd's own gradient of it.
            watched = value.view_as(value) if value.requires_grad else value.requires_grad_()
            watched.retain_grad()
            expected[hook.name] = watched
            return watched

        model.run_with_hooks(mel, tokens, "loss", fwd_hooks=[(None, watch)]).backward()
        model.zero_grad()
        seen: dict[str, Tensor] = {}

        def keep(gradient: Tensor, hook: Any) -> None:
            assert hook.name not in seen, f"{hook.name} fired twice"
            seen[hook.name] = gradient.clone()

        model.run_with_hooks(mel, tokens, "loss", bwd_hooks=[(None, keep)]).backward()
        model.zero_grad()
        assert set(seen) == set(names_of(model))
        for name, gradient in seen.items():
            assert gradient.isfinite().all(), name
            assert gradient.count_nonzero() > 0, name
            torch.testing.assert_close(
                gradient, expected[name].grad, atol=1e-6, rtol=1e-4, msg=name
            )

    @pytest.mark.parametrize(
        "name",
        [
            "encoder.hook_mel",
            "encoder.blocks.0.attn.hook_pattern",
            "encoder.blocks.1.ln2.hook_scale",
            "encoder.ln_final.hook_normalized",
            "decoder.hook_embed",
            "decoder.blocks.0.attn.hook_q",
            "decoder.blocks.1.cross_attn.hook_attn_scores",
            "decoder.blocks.1.mlp.hook_post",
            "decoder.hook_logits",
        ],
    )
    def test_equals_finite_differences(
        self, name: str, with_flags: Any, mel: Tensor, tokens: Tensor
    ) -> None:
        model = with_flags()
        look = Seen()
        model.run_with_hooks(mel, tokens, "loss", bwd_hooks=[(name, look)]).backward()
        model.zero_grad()
        gradient = look.values[0]
        size = gradient.norm().item()
        direction = gradient / size

        @torch.no_grad()
        def loss_at(step: float) -> float:
            hook = (name, lambda value, hook: value + step * direction)
            return model.run_with_hooks(mel, tokens, "loss", fwd_hooks=[hook]).item()

        step = 2e-2 / max(1.0, size)
        slope = (loss_at(step) - loss_at(-step)) / (2 * step)
        assert slope == pytest.approx(size, rel=0.03)

    def test_every_hook_has_one_with_all_parameters_frozen(
        self, small_cfg: Any, make_model: Any, mel: Tensor, tokens: Tensor
    ) -> None:
        model = make_model(small_cfg).requires_grad_(False)
        for name in names_of(model):
            look = Seen()
            model.run_with_hooks(mel, tokens, "loss", bwd_hooks=[(name, look)]).backward()
            assert len(look.values) == 1 and look.values[0].count_nonzero() > 0, name

    def test_backward_hook_replaces_the_gradient(
        self, with_flags: Any, mel: Tensor, tokens: Tensor
    ) -> None:
        model = with_flags()
        stop = ("decoder.blocks.1.hook_resid_pre", lambda value, hook: torch.zeros_like(value))
        model.run_with_hooks(mel, tokens, "loss", bwd_hooks=[stop]).backward()
        block_0, block_1 = (block.mlp.fc_in.weight.grad for block in model.decoder.blocks)
        assert block_0.count_nonzero() == 0 and block_1.count_nonzero() > 0
        model.zero_grad()

    @flag_sets
    def test_cache_holds_all_and_parameters_get_none(
        self, flags: tuple[str, ...], with_flags: Any, mel: Tensor, tokens: Tensor
    ) -> None:
        model, seen = with_flags(*flags), {}
        bwd_hooks = [(None, lambda value, hook: seen.update({hook.name: value.clone()}))]
        model.run_with_hooks(mel, tokens, "loss", bwd_hooks=bwd_hooks).backward()
        model.zero_grad()
        loss, cache = model.run_with_cache(mel, tokens, "loss", incl_bwd=True)
        assert not loss.requires_grad
        assert all(each.grad is None and each.requires_grad for each in model.parameters())
        assert set(cache) == {n + end for n in names_of(model) for end in ("", "_grad")}
        for name, gradient in seen.items():
            torch.testing.assert_close(cache[name + "_grad"], gradient, atol=1e-6, rtol=1e-4)
            assert cache.axes(name + "_grad") == cache.axes(name)
