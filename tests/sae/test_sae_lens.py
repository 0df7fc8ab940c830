"""With sae-lens itself: it reads what is saved here, its files are read, its objects are spliced.

`make test-tl3` runs this in an environment of its own: sae-lens needs transformer-lens 3.
"""

import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_whisper.errors import SAEFileError
from hooked_whisper.sae import load_sae, save_sae
from hooked_whisper.sae.architectures import ARCHITECTURES, config_from_dict, make_sae
from hooked_whisper.sae.base import SAE

EXPECTED = os.environ.get("EXPECT_SAE_LENS")

pytestmark = pytest.mark.skipif(
    find_spec("sae_lens") is None and EXPECTED is None,
    reason="needs sae-lens, which `make test-tl3` installs",
)

D_IN, D_SAE, D_OUT, K = 24, 40, 10, 5
HOOK = "encoder.blocks.1.hook_resid_post"

OURS = {
    "topk": {"k": K},
    "batchtopk": {"k": K, "rescale_acts_by_decoder_norm": True},
    "matryoshka_batchtopk": {"k": K, "matryoshka_widths": (10, 40)},
    "transcoder": {"d_out": D_OUT, "hook_name_out": "encoder.blocks.1.hook_mlp_out"},
    "skip_transcoder": {"d_out": D_OUT},
}
"""What an architecture needs, or is worth trying with."""

THEIRS = {
    "standard": {},
    "standard-layer-norm": {"normalize_activations": "layer_norm"},
    "standard-rescaled": {"normalize_activations": "constant_norm_rescale"},
    "standard-no-b-dec": {"apply_b_dec_to_input": False},
    "topk": {"k": K},
    "topk-rescaled": {"k": K, "rescale_acts_by_decoder_norm": True},
    "jumprelu": {},
    "jumprelu-double": {"dtype": "float64"},
    "gated": {},
    "transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "skip_transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
}
"""SAELens's architectures, each maybe with a word on what is special."""

TRAINED = {
    "standard": {"l1_coefficient": 0.5},
    "topk": {"k": K},
    "jumprelu": {},
    "gated": {},
    "batchtopk": {"k": float(K)},
    "matryoshka_batchtopk": {"k": float(K), "matryoshka_widths": [10, 40]},
}
"""SAELens's architectures in training."""


@pytest.fixture(scope="module")
def sae_lens() -> Any:
    """The package; what it warns of on import is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
    return sae_lens


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def randomise(sae: Any) -> Any:
    """Every parameter and buffer random; thresholds such that some latents lie between."""
    for name, value in sae.state_dict().items():
        noise = torch.randn(value.shape) / 3
        value.copy_(noise.abs() if "threshold" in name else noise)
    return sae


def ours(architecture: str) -> SAE:
    values = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "hook_name": HOOK}
    values |= {"metadata": {"trained": {"steps": 3}}, **OURS.get(architecture, {})}
    return randomise(make_sae(config_from_dict(values))).eval()


def theirs(sae_lens: Any, name: str, training: bool = False, **changes: Any) -> Any:
    kind = "get_sae_training_class" if training else "get_sae_class"
    cls, config = getattr(sae_lens.registry, kind)(name.split("-")[0])
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name=HOOK, context_size=9)
    changes = {**(TRAINED if training else THEIRS)[name], **changes}
    return randomise(cls(config(d_in=D_IN, d_sae=D_SAE, metadata=metadata, **changes))).eval()


def assert_same(first: Any, second: Any, x: Tensor) -> None:
    """The same latents and reconstructions, some latents active and some not."""
    latents = second.encode(x)
    assert 0 < int((latents > 0).sum()) < latents.numel()
    torch.testing.assert_close(first.encode(x), latents, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(first(x), second(x), atol=1e-6, rtol=1e-6)


@pytest.mark.skipif(EXPECTED is None, reason="`make test-tl3` sets the version that it means")
def test_the_version_is_the_expected_one(sae_lens: Any) -> None:
    assert sae_lens.__version__ == EXPECTED


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sae_lens_reads_what_is_saved_here(
    sae_lens: Any, architecture: str, tmp_path: Path
) -> None:
    sae = ours(architecture)
    loaded = sae_lens.SAE.load_from_disk(sae.save(tmp_path / "sae"))
    assert_same(loaded, sae.inference(), torch.randn(3, 11, D_IN))
    assert loaded.cfg.metadata.hook_name == HOOK
    assert loaded.cfg.metadata.trained == {"steps": 3}
    if "hook_name_out" in OURS.get(architecture, {}):
        assert loaded.cfg.metadata.hook_name_out == "encoder.blocks.1.hook_mlp_out"


@pytest.mark.parametrize("architecture", TRAINED)
def test_sae_lens_trains_on_what_is_saved_here(
    sae_lens: Any, architecture: str, tmp_path: Path
) -> None:
    sae = ours(architecture)
    folder = save_sae(sae, tmp_path / "sae", inference=False)
    loaded = sae_lens.TrainingSAE.load_from_disk(folder)
    assert type(loaded) is sae_lens.registry.get_sae_training_class(architecture)[0]
    for name, value in sae.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, check_dtype=False)
    for name in OURS.get(architecture, {}):
        value = getattr(loaded.cfg, name)
        assert (tuple(value) if isinstance(value, list) else value) == getattr(sae.cfg, name)


def test_sae_lens_refuses_what_it_would_misread(sae_lens: Any, tmp_path: Path) -> None:
    """It has no transcoder with k, and would keep every positive latent."""
    values = {"architecture": "transcoder", "d_in": D_IN, "d_sae": D_SAE, "d_out": D_OUT, "k": K}
    folder = make_sae(config_from_dict(values)).save(tmp_path / "sae")
    with pytest.raises(Exception, match="topk_transcoder"):
        sae_lens.SAE.load_from_disk(folder)


@pytest.mark.parametrize("name", THEIRS)
def test_what_sae_lens_saves_is_read(sae_lens: Any, name: str, tmp_path: Path) -> None:
    live = theirs(sae_lens, name)
    live.save_model(tmp_path / "sae")
    sae = load_sae(tmp_path / "sae")
    assert_same(sae, live, torch.randn(3, 11, D_IN))
    assert (sae.cfg.hook_name, sae.dtype) == (HOOK, live.dtype)
    assert sae.cfg.metadata["context_size"] == 9
    # And back: a folder from here is the same to sae-lens, metadata included.
    again = sae_lens.SAE.load_from_disk(sae.save(tmp_path / "again"))
    assert again.cfg == live.cfg
    assert_same(again, live, torch.randn(3, 11, D_IN))


@pytest.mark.parametrize("name", TRAINED)
def test_what_sae_lens_trains_is_read(sae_lens: Any, name: str, tmp_path: Path) -> None:
    """After training (BatchTopK is a JumpReLU then) and as a checkpoint of it."""
    live = theirs(sae_lens, name, training=True)
    live.save_inference_model(tmp_path / "sae")
    sae = load_sae(tmp_path / "sae")
    assert_same(sae, sae_lens.SAE.load_from_disk(tmp_path / "sae"), torch.randn(33, D_IN))
    assert sae.cfg.metadata["training_architecture"] == name

    live.save_model(tmp_path / "checkpoint")
    checkpoint = load_sae(tmp_path / "checkpoint")
    assert checkpoint.cfg.architecture == name
    for key, value in checkpoint.state_dict().items():
        torch.testing.assert_close(value, live.state_dict()[key])
    for key, value in TRAINED[name].items():
        own = getattr(checkpoint.cfg, key)
        assert (list(own) if isinstance(own, tuple) else own) == value


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("abstopk", {"k": K}, id="abstopk"),
        pytest.param("matching_pursuit", {}, id="matching-pursuit"),
        pytest.param(
            "jumprelu_transcoder", {"d_out": 3, "apply_b_dec_to_input": False}, id="transcoder"
        ),
    ],
)
def test_an_architecture_of_theirs_that_is_not_known(
    sae_lens: Any, name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    cls, config = sae_lens.registry.get_sae_class(name)
    cls(config(d_in=D_IN, d_sae=D_SAE, **changes)).save_model(tmp_path / "sae")
    with pytest.raises(SAEFileError, match=f"architecture is '{name}'; known are standard, topk"):
        load_sae(tmp_path / "sae")


@pytest.mark.parametrize(
    "name", ["standard-layer-norm", "topk-rescaled", "jumprelu-double", "gated", "transcoder"]
)
def test_live_objects_are_spliced(
    sae_lens: Any, name: str, tiny_model: Any, tiny_mel: Tensor, tiny_tokens: Tensor
) -> None:
    """As they are: nothing is copied or converted, and they say themselves where they belong."""
    live = theirs(sae_lens, name, **({"d_out": D_IN} if name == "transcoder" else {}))
    points = [HOOK, f"{HOOK}.hook_sae_*"]
    clean = tiny_model(tiny_mel, tiny_tokens)
    with tiny_model.saes([live]):
        logits, cache = tiny_model.run_with_cache(tiny_mel, tiny_tokens, names_filter=points)
    raw = cache[HOOK].to(live.dtype)
    assert_equal(cache[f"{HOOK}.hook_sae_acts_post"], live.encode(raw))
    assert_equal(cache[f"{HOOK}.hook_sae_recons"], live(raw))
    assert_equal(cache[f"{HOOK}.hook_sae_output"], live(raw).to(clean.dtype))
    assert not torch.allclose(logits, clean, atol=1e-3)

    args = (tiny_mel, tiny_tokens)
    kept = tiny_model.run_with_saes(*args, saes=[live], use_error_term=True)
    assert_equal(kept, clean)
    tiny_model.add_sae(live, use_error_term=True)
    try:
        cut = [(f"{HOOK}.hook_sae_acts_post", lambda acts, hook: torch.zeros_like(acts))]
        edited = tiny_model.run_with_hooks(*args, fwd_hooks=cut)
    finally:
        tiny_model.reset_saes()
    assert not torch.allclose(edited, clean, atol=1e-3)
    assert_equal(tiny_model(*args), clean)


def assert_equal(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
