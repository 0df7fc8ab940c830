"""Saving in SAELens's format, and what comes back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hooked_whisper.errors import SAEFileError
from hooked_whisper.io import write_tensors
from hooked_whisper.sae import load_sae, save_sae
from hooked_whisper.sae.architectures import ARCHITECTURES, config_from_dict, make_sae
from hooked_whisper.sae.base import SAE

D_IN, D_SAE = 6, 20

METADATA = {"model_name": "tiny", "trained": {"steps": 100, "by": ["me", None]}, "lr": 1e-3}

EXTRA = {
    "topk": {"k": 3, "aux_loss_coefficient": 0.25},
    "batchtopk": {"k": 3},
    "matryoshka_batchtopk": {"k": 3},
    "standard": {"l1_coefficient": 0.125},
    "transcoder": {"d_out": 5, "hook_name_out": "encoder.blocks.1.hook_mlp_out"},
    "skip_transcoder": {"d_out": 5, "hook_name_out": "encoder.blocks.1.hook_mlp_out"},
}
"""Fields by architecture that are not left at their default."""


def random_sae(architecture: str, **changes: Any) -> SAE:
    """One with every parameter and buffer random, thresholds and decoder lengths included."""
    values = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "metadata": METADATA}
    values |= {"hook_name": "encoder.blocks.1.hook_resid_post", **EXTRA.get(architecture, {})}
    sae = make_sae(config_from_dict({**values, **changes}))
    generator = torch.Generator().manual_seed(5)
    for name, value in sae.state_dict().items():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
        value.copy_(noise.abs() / 2 if "threshold" in name else noise)
    return sae.eval()


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The folder after a change of its cfg.json."""
    values = json.loads((folder / "cfg.json").read_text())
    change(values)
    (folder / "cfg.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_lost_in_the_training_form(architecture: str, tmp_path: Path) -> None:
    sae = random_sae(architecture)
    again = load_sae(save_sae(sae, tmp_path / "sae", inference=False))
    assert again.cfg == sae.cfg
    state = sae.state_dict()
    assert again.state_dict().keys() == state.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name]) and value.dtype == state[name].dtype, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_saved_is_what_is_used(architecture: str, tmp_path: Path) -> None:
    """By default the inference form: the same latents for one vector as for many."""
    x = torch.randn(40, D_IN)
    sae = random_sae(architecture)
    used = sae.inference()
    assert sae.save(tmp_path / "sae") == tmp_path / "sae"
    state = torch.random.get_rng_state()
    again = load_sae(tmp_path / "sae")
    assert torch.equal(torch.random.get_rng_state(), state), "loading drew random numbers"
    assert again.cfg == used.cfg
    assert torch.equal(again.encode(x), used.encode(x))
    assert torch.equal(again(x), used(x))
    torch.testing.assert_close(again.encode(x[:1]), used.encode(x)[:1])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"tied": True, "apply_b_dec_to_input": False}, id="tied"),
        pytest.param({"normalize_activations": "layer_norm"}, id="layer-norm"),
        pytest.param({"hook_name": None, "metadata": {}}, id="no-metadata"),
    ],
)
def test_switches_come_back(changes: dict[str, Any], tmp_path: Path) -> None:
    x = torch.randn(7, D_IN)
    sae = random_sae("standard", **changes)
    again = load_sae(save_sae(sae, tmp_path / "sae"))
    assert again.cfg == sae.cfg
    assert torch.equal(again(x), sae(x))


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_a_transcoder_with_k_is_none_of_saelens(architecture: str, tmp_path: Path) -> None:
    """SAELens would pass over the k and give other latents: it gets a name that it refuses."""
    x = torch.randn(7, D_IN)
    sae = random_sae(architecture, k=2)
    folder = save_sae(sae, tmp_path / "sae")
    assert json.loads((folder / "cfg.json").read_text())["architecture"] == f"topk_{architecture}"
    again = load_sae(folder)
    assert again.cfg == sae.cfg
    assert int((again.encode(x) > 0).sum(dim=-1).max()) == 2
    assert torch.equal(again(x), sae(x))


def test_dtypes(tmp_path: Path) -> None:
    sae = random_sae("topk").bfloat16()
    folder = save_sae(sae, tmp_path / "sae")
    assert json.loads((folder / "cfg.json").read_text())["dtype"] == "bfloat16"
    assert load_sae(folder).dtype == torch.bfloat16
    assert load_sae(folder, dtype=torch.float32).dtype == torch.float32
    assert load_sae(folder / "sae_weights.safetensors").cfg == sae.cfg


def test_a_hand_edited_cfg_counts(tmp_path: Path) -> None:
    """SAELens's fields win over what stands beside them for this package."""
    folder = save_sae(random_sae("topk"), tmp_path / "sae")

    def edit(values: dict[str, Any]) -> None:
        values["k"] = 7
        values["metadata"]["hook_name"] = "decoder.blocks.0.hook_mlp_out"

    sae = load_sae(changed(folder, edit))
    assert sae.cfg.k == 7
    assert sae.cfg.hook_name == "decoder.blocks.0.hook_mlp_out"
    given = load_sae(folder, hook_name="encoder.blocks.0.hook_resid_pre")
    assert given.cfg.hook_name == "encoder.blocks.0.hook_resid_pre"


def old_folder(folder: Path, values: dict[str, Any], **tensors: torch.Tensor) -> Path:
    """A folder as SAELens wrote it before version 6: everything at the top."""
    folder.mkdir()
    weights = {"W_enc": torch.randn(D_IN, D_SAE), "b_enc": torch.randn(D_SAE)}
    weights |= {"W_dec": torch.randn(D_SAE, D_IN), "b_dec": torch.randn(D_IN)}
    save_file({**weights, **tensors}, folder / "sae_weights.safetensors")
    common = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cuda"}
    text = json.dumps({**common, "apply_b_dec_to_input": True, **values})
    (folder / "cfg.json").write_text(text)
    return folder


def test_older_folders(tmp_path: Path) -> None:
    x = torch.randn(8, D_IN)
    values = {"hook_point": "encoder.blocks.0.hook_resid_post", "activation_fn_str": "relu"}
    values |= {"normalize_activations": False, "context_size": 64, "sae_lens_version": "3.1.0"}
    scale = torch.rand(D_SAE) + 0.5
    folder = old_folder(
        tmp_path / "a", {**values, "finetuning_scaling_factor": True}, scaling_factor=scale
    )
    sae = load_sae(folder)
    assert sae.cfg.architecture == "standard"
    assert sae.cfg.hook_name == "encoder.blocks.0.hook_resid_post"
    assert sae.cfg.normalize_activations == "none"
    assert sae.cfg.metadata == {"context_size": 64, "sae_lens_version": "3.1.0"}
    w = load_file(folder / "sae_weights.safetensors")
    latents = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    torch.testing.assert_close(sae.encode(x), latents)
    torch.testing.assert_close(sae(x), (latents * scale) @ w["W_dec"] + w["b_dec"])

    topk = {"activation_fn": "topk", "activation_fn_kwargs": {"k": 4}, "hook_name": "h"}
    sae = load_sae(old_folder(tmp_path / "b", topk))
    assert (sae.cfg.architecture, sae.cfg.k, sae.cfg.hook_name) == ("topk", 4, "h")

    jumprelu = {"architecture": "jumprelu", "normalize_activations": True}
    thresholds = torch.rand(D_SAE) + 0.5
    folder = old_folder(tmp_path / "c", jumprelu, log_threshold=thresholds.log())
    with pytest.warns(UserWarning, match=r"scaled to a mean length"):
        sae = load_sae(folder)
    assert sae.cfg.normalize_activations == "expected_average_only_in"
    w = load_file(folder / "sae_weights.safetensors")
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    torch.testing.assert_close(sae.encode(x), torch.where(pre > thresholds, pre, 0.0))


def test_saving_over_another_leaves_other_files(tmp_path: Path) -> None:
    folder = save_sae(random_sae("standard"), tmp_path / "sae")
    (folder / "notes.txt").write_text("mine")
    again = load_sae(save_sae(random_sae("topk"), folder))
    assert again.cfg.architecture == "topk"
    names = sorted(each.name for each in folder.iterdir())
    assert names == ["cfg.json", "notes.txt", "sae_weights.safetensors"]
    assert [each.name for each in tmp_path.iterdir()] == ["sae"]


def test_a_save_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = random_sae("standard")
    folder = save_sae(first, tmp_path / "sae")

    def full(tensors: Any, path: Any) -> None:
        write_tensors(tensors, path)  # the last byte is the one too many
        raise OSError("no space left on device")

    monkeypatch.setattr("hooked_whisper.sae.saving.write_tensors", full)
    with pytest.raises(SAEFileError, match=r"no space left.*Free some space"):
        save_sae(random_sae("topk"), folder)
    left = load_sae(folder)
    assert left.cfg == first.cfg and torch.equal(left.W_enc, first.W_enc)
    assert sorted(each.name for each in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert [each.name for each in tmp_path.iterdir()] == ["sae"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        pytest.param({"a": {1, 2}}, r"cannot be written as JSON .*metadata=", id="set"),
        pytest.param({"a": float("nan")}, r"cannot be written as JSON", id="nan"),
        pytest.param({"hook_name": "h"}, r"metadata has a 'hook_name' of its own", id="hook"),
        pytest.param({1: "a"}, r"keys of metadata must be text", id="key"),
    ],
)
def test_metadata_that_would_be_lost(
    metadata: dict[Any, Any], message: str, tmp_path: Path, without_shape_checks: None
) -> None:
    with pytest.raises(SAEFileError, match=message):
        save_sae(random_sae("standard", metadata=metadata), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_what_cannot_be_saved(tmp_path: Path, without_shape_checks: None) -> None:
    sae = random_sae("standard")
    (tmp_path / "file").touch()
    with pytest.raises(SAEFileError, match=r"file is a file; give a folder"):
        save_sae(sae, tmp_path / "file")
    with pytest.raises(SAEFileError, match=r"got a Linear"):
        save_sae(torch.nn.Linear(2, 2), tmp_path / "sae")  # type: ignore[arg-type]
    sae.b_dec.data[0] = torch.nan
    with pytest.raises(SAEFileError, match=r"b_dec in the autoencoder to save holds 1 values of 6"):
        save_sae(sae, tmp_path / "sae")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda v: v.update(d_sae=21), r"does not fit together.*\(21, 6\)", id="d_sae"),
        pytest.param(
            lambda v: v.update(d_sae=2**62),
            r"d_sae is 4611\d+; it must be a positive integer under",
            id="huge",
        ),
        pytest.param(
            lambda v: v.update(d_in=2**62),
            r"d_in is 4611\d+; it must be a positive integer under",
            id="huge-in",
        ),
        pytest.param(lambda v: v.update(k=21), r"k is 21", id="k"),
        pytest.param(lambda v: v.update(d_in="6"), r"d_in is '6'; it must be of int", id="text"),
        pytest.param(lambda v: v.update(aux_k=1.5), r"aux_k is 1\.5; .* int \| None", id="float"),
        pytest.param(lambda v: v.update(apply_b_dec_to_input=1), r"input is 1; .* bool", id="bool"),
        pytest.param(lambda v: v.pop("d_in"), r"needs d_in", id="missing"),
        pytest.param(
            lambda v: v.update(architecture="temporal"), r"'temporal'; known are stan", id="arch"
        ),
        pytest.param(
            lambda v: v.update(activation_fn="tanh-relu"), r"activation_fn is 'tanh", id="act"
        ),
        pytest.param(
            lambda v: v.update(normalize_activations="covariance_whitening"),
            r"normalize_activations is 'covariance",
            id="norm",
        ),
        pytest.param(lambda v: v.update(metadata=[1]), r"metadata in .* is a list", id="metadata"),
        pytest.param(
            lambda v: v["hooked_whisper"].update(version=2), r"newer hooked_whisper", id="newer"
        ),
    ],
)
def test_a_wrong_cfg(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    folder = changed(save_sae(random_sae("topk"), tmp_path / "sae"), change)
    with pytest.raises(SAEFileError, match=message):
        load_sae(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("cfg.json", "{", r"cfg\.json does not hold what it should", id="cfg-cut"),
        pytest.param("cfg.json", None, r"has no cfg\.json.*It holds sae_w", id="no-cfg"),
        pytest.param("sae_weights.safetensors", None, r"has no sae_weights", id="no-weights"),
        pytest.param("sae_weights.safetensors", "no", r"read as safetensors", id="weights-cut"),
    ],
)
def test_a_broken_folder(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    folder = save_sae(random_sae("topk"), tmp_path / "sae")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(SAEFileError, match=message):
        load_sae(folder)


def test_a_tied_folder_whose_encoder_is_another(tmp_path: Path) -> None:
    folder = save_sae(random_sae("standard", tied=True), tmp_path / "sae")
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file({**tensors, "W_enc": tensors["W_enc"] + 1}, folder / "sae_weights.safetensors")
    with pytest.raises(SAEFileError, match=r"tied .*W_enc is not W_dec transposed"):
        load_sae(folder)


@pytest.mark.parametrize(
    "architecture", ["standard", "topk", "jumprelu", "gated", "transcoder", "skip_transcoder"]
)
def test_the_scale_beside_a_checkpoint_is_folded_in(architecture: str, tmp_path: Path) -> None:
    """SAELens multiplies activations with it before encoding, and divides what is decoded."""
    scaled = random_sae(architecture)
    folder = save_sae(scaled, tmp_path)
    values = json.loads((folder / "cfg.json").read_text())
    values["normalize_activations"] = "expected_average_only_in"
    (folder / "cfg.json").write_text(json.dumps(values))
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.warns(UserWarning, match=r"the scale is not in activation_scaler\.json"):
        load_sae(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.4}')
    sae = load_sae(folder)
    x = 5 * torch.randn(7, D_IN)
    torch.testing.assert_close(sae.encode(x), scaled.encode(0.4 * x))
    torch.testing.assert_close(sae(x), scaled(0.4 * x) / 0.4)
    assert sae.cfg.normalize_activations == "none"
    (folder / "activation_scaler.json").write_text('{"scaling_factor": "x"}')
    with pytest.raises(SAEFileError, match="Remove it"):
        load_sae(folder)


def test_a_scale_that_cannot_be_folded_in_is_said(tmp_path: Path) -> None:
    folder = save_sae(random_sae("standard", tied=True, apply_b_dec_to_input=False), tmp_path)
    values = json.loads((folder / "cfg.json").read_text())
    values["normalize_activations"] = "expected_average_only_in"
    (folder / "cfg.json").write_text(json.dumps(values))
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.4}')
    with pytest.warns(UserWarning, match="cannot go into weights that are tied"):
        load_sae(folder)


def test_weights_that_overflow_in_the_wanted_dtype(tmp_path: Path) -> None:
    sae = random_sae("gated")
    with torch.no_grad():
        sae.b_dec[0] = 1e6
    folder = save_sae(sae, tmp_path)
    with pytest.raises(SAEFileError, match=r"b_dec .*up to 1e\+06, which overflow in"):
        load_sae(folder, dtype=torch.float16)
    load_sae(folder, dtype=torch.bfloat16)
    with pytest.raises(SAEFileError, match="weights are floats"):
        load_sae(folder, dtype=torch.int32)


def test_added_metadata_of_another_type(tmp_path: Path) -> None:
    folder = save_sae(random_sae("topk"), tmp_path)
    values = json.loads((folder / "cfg.json").read_text())
    values["hooked_whisper"]["added_metadata"] = True
    (folder / "cfg.json").write_text(json.dumps(values))
    with pytest.raises(SAEFileError, match="added_metadata"):
        load_sae(folder)


@pytest.mark.parametrize("folder", ["/proc/nowhere", "~nosuchuser/x", "a\0b", "x" * 300])
def test_a_folder_that_cannot_be_made(folder: str) -> None:
    with pytest.raises(SAEFileError, match=r"is no path|cannot be written"):
        save_sae(random_sae("topk"), folder)
