"""Arguments that make no sense are errors of ours, which quote them and say what can be given.

Without the shape checks of the tests, as users run it: `HookedWhisperError` alone would pass
for any of these calls, so that each case also says what the message must name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hooked_whisper import WhisperCache
from hooked_whisper import analysis as an
from hooked_whisper import interventions as iv
from hooked_whisper import lenses as le
from hooked_whisper import reports as re
from hooked_whisper import sae as sa
from hooked_whisper.data import load_windows, window_batches
from hooked_whisper.errors import HookedWhisperError, InputError
from hooked_whisper.patching import patch_sweep
from hooked_whisper.store import ActivationStore, harvest, verify_store

H = "encoder.blocks.0.hook_resid_post"
SITE = iv.Site(H)
NAN = float("nan")


class Own(nn.Module):
    """An autoencoder of somebody's own, whose reconstructions pass a function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(24, 30))
        self.function = function

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W)

    def decode(self, latents: Tensor) -> Any:
        return self.function(latents @ self.W.T)


class Given:
    """What calls are made of."""

    def __init__(self, model: Any, mel: Tensor, tokens: Tensor) -> None:
        self.model, self.mel, self.tokens = model, mel, tokens
        self.cache: WhisperCache = model.run_with_cache(mel, tokens)[1]
        self.resid, self.pattern = self.cache[H], self.cache["encoder", 0, "pattern"]
        cfg = sa.TopKConfig(d_in=24, d_sae=30, k=4, hook_name=H)
        self.sae = sa.make_sae(cfg)

    def edited(self, edit: Any) -> Any:
        with iv.Interventions(self.model, edit):
            return self.model(self.mel, self.tokens)

    def spliced(self, sae: Any) -> Any:
        return self.model.run_with_saes(self.mel, saes={H: sae})

    def sweep(self, numbers: Tensor) -> Any:
        example = iv.Example(self.model.to_mel((torch.ones(9000) / 9, 16000)), self.tokens[:1])
        return patch_sweep(
            self.model, example, example, H, metric=lambda logits: numbers, progress=False
        )


RESULTS: dict[str, tuple[Callable[[Given], Any], str]] = {
    # A hook, a splice or a metric that gives what is no plain tensor of numbers
    "hook: sparse": (
        lambda g: g.model.run_with_hooks(g.mel, fwd_hooks=[(H, lambda v, hook: v.to_sparse())]),
        "layout torch.sparse_coo",
    ),
    "hook: no function": (lambda g: g.model.add_hook(H, "x"), "'x' is no hook"),
    "splice: sparse": (lambda g: g.spliced(Own(Tensor.to_sparse)), "must be dense tensors"),
    "splice: meta": (lambda g: g.spliced(Own(lambda v: v.to("meta"))), "must be dense tensors"),
    "splice: on meta": (lambda g: g.spliced(Own(Tensor.clone).to("meta")), "on meta"),
    "metric: sparse": (lambda g: g.sweep(torch.ones(1).to_sparse()), "no plain real numbers"),
    "metric: meta": (lambda g: g.sweep(torch.ones(1, device="meta")), "a meta tensor"),
    # Activations from elsewhere
    "patch: a list": (lambda g: g.edited(iv.Patch(SITE, [1.0])), "no source of activations"),
    "patch: meta": (lambda g: g.edited(iv.Patch(SITE, g.resid.to("meta"))), "on the meta device"),
    "patch: float8": (
        lambda g: g.edited(iv.Patch(SITE, g.resid.to(torch.float8_e4m3fn))),
        "torch.float8_e4m3fn",
    ),
    "mean: sparse": (
        lambda g: g.edited(iv.MeanAblation(SITE, g.resid.mean(0).to_sparse())),
        "torch.sparse_coo",
    ),
    "steer: sparse": (
        lambda g: g.edited(iv.Steer(SITE, torch.ones(24).to_sparse())),
        "torch.sparse_coo",
    ),
    "audio features: NaN": (
        lambda g: g.model.logits(g.tokens, torch.full((2, 30, 24), NAN)),
        "audio_features has 1440 values",
    ),
    "pattern: sparse": (lambda g: an.attention_entropy(g.pattern.to_sparse()), "torch.sparse_coo"),
    "pattern: a list": (lambda g: an.attention_entropy([[1.0]]), "the pattern is list"),
    "stream: meta": (lambda g: an.kurtosis(g.resid.to("meta")), "on meta"),
    "save: meta": (lambda g: g.sae.to("meta").save("nowhere"), "meta device"),
}
NUMBERS: dict[str, tuple[Callable[[Given], Any], str]] = {
    "clamp": (lambda g: g.edited(iv.Clamp(SITE, "x")), "'x'; it must be a finite number"),
    "scale": (lambda g: g.edited(iv.Scale(SITE, 10**400)), "finite number"),
    "steer": (lambda g: g.edited(iv.Steer(SITE, torch.ones(24), [1])), r"strength is \[1\]"),
    "no site": (lambda g: g.edited(iv.Clamp(H, 1.0)), "no place to edit"),
    "seed": (lambda g: g.edited(iv.ResampleAblation(SITE, g.cache, -1)), "seed is -1"),
    "layer": (lambda g: g.edited(iv.SkipLayer("encoder", 0.5)), "no encoder layer 0.5"),
    "half width": (lambda g: g.edited(iv.RestrictAttention("encoder", 1.5)), "half_width is 1.5"),
    "window": (lambda g: g.edited(iv.ZeroAblation(iv.Site(H, window_s=5))), "5 is no window"),
    "window of texts": (
        lambda g: g.edited(iv.ZeroAblation(iv.Site(H, window_s="ab"))),
        "start of a window is 'a'",
    ),
    "place": (lambda g: g.edited(iv.ZeroAblation(iv.Site(H, pos=1.5))), "position is 1.5"),
    "top_k": (lambda g: le.logit_lens(g.model, g.cache, top_k=1.5), "top_k is 1.5"),
    "step": (lambda g: le.logit_lens(g.model, g.cache, pos=slice(0, 1, 0)), "pos is slice"),
    "sites": (lambda g: le.logit_lens(g.model, g.cache, sites=5), "sites are 5"),
    "n_top": (lambda g: an.top_activations(g.resid, [30, 30], 1.5), "n_top is 1.5"),
    "apart": (
        lambda g: an.top_activations(g.resid, [30, 30], least_apart_s=NAN),
        "least_apart_s is nan",
    ),
    "bins": (lambda g: an.residual_histogram(g.resid, n_bins=10**30), "n_bins is 1000"),
    "edge": (lambda g: an.residual_histogram(g.resid, low="x"), "low is 'x'"),
    "order": (lambda g: an.RunningMoments(3), "order is 3; it can be 2 or 4"),
    "batch size": (
        lambda g: list(
            window_batches(g.model, load_windows(g.model, [(torch.ones(9000) / 9, 16000)]), 1.5)
        ),
        "batch_size is 1.5",
    ),
    "width": (lambda g: sa.TopKConfig(d_in=10**30, d_sae=4, k=2), "d_in is 1000"),
    "hook name": (lambda g: sa.TopKConfig(d_in=4, d_sae=8, k=2, hook_name=5), "hook_name is 5"),
    "dtype": (lambda g: g.model.to(torch.int8), "dtype is torch.int8"),
    "device": (lambda g: g.cache.to(device=2**63), "device is '9223372036854775808'"),
}


@pytest.mark.parametrize(
    ("call", "message"), [*RESULTS.values(), *NUMBERS.values()], ids=[*RESULTS, *NUMBERS]
)
def test_it_is_refused_by_name(
    call: Callable[[Given], Any],
    message: str,
    tiny_model: Any,
    tiny_mel: Tensor,
    tiny_tokens: Tensor,
    without_shape_checks: None,
) -> None:
    with torch.no_grad():
        given = Given(tiny_model, tiny_mel, tiny_tokens)
        with pytest.raises(HookedWhisperError, match=message) as caught:
            call(given)
    assert len(str(caught.value)) <= 600
    assert not any(point.is_hooked for point in tiny_model.hook_dict.values())


CALLS_WITH_PATHS = """attention_page feature_page harvest ActivationStore verify_store cache.load
    cache.save save_pretrained from_pretrained sae.save load_suite""".split()
PATHS = ["a\0b", "x" * 5000, "~nosuchuser/x", 5, None, [], object()]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: repr(path)[:10])
@pytest.mark.parametrize(
    "call",
    [
        lambda g, path: re.attention_page(g.model, (torch.ones(9000) / 9, 16000), path),
        lambda g, path: re.feature_page(g.model, g.sae, [(torch.ones(9000) / 9, 16000)], path),
        lambda g, path: harvest(g.model, [(torch.ones(9000) / 9, 16000)], H, path, n_workers=0),
        lambda g, path: ActivationStore(path),
        lambda g, path: verify_store(path),
        lambda g, path: WhisperCache.load(path),
        lambda g, path: g.cache.save(path),
        lambda g, path: g.model.save_pretrained(path),
        lambda g, path: type(g.model).from_pretrained(path),
        lambda g, path: g.sae.save(path),
        lambda g, path: sa.load_suite(path),
    ],
    ids=CALLS_WITH_PATHS,
)
def test_what_is_no_path(
    call: Callable[[Given, Any], Any],
    path: Any,
    tiny_model: Any,
    tiny_mel: Tensor,
    tiny_tokens: Tensor,
    without_shape_checks: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        given = Given(tiny_model, tiny_mel, tiny_tokens)
        with pytest.raises(HookedWhisperError) as caught:
            call(given, path)
    assert len(str(caught.value)) <= 600
    assert [*tmp_path.iterdir()] == []


def test_a_message_that_quotes_much_keeps_its_beginning_and_its_end() -> None:
    error = InputError(f"it is {'x' * 5000}; name another.")
    assert len(str(error)) <= 600
    assert str(error).startswith("it is xxx") and str(error).endswith("x; name another.")
    assert len(error.args[0]) > 5000
