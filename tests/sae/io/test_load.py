"""Files as others write them, against their own forward passes, written out here.

Every bias, norm and threshold is random: zeros and ones would hide what is left out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, relu

from hooked_whisper.errors import SAEFileError
from hooked_whisper.sae import load_sae

D_IN, D_SAE, K = 6, 20, 3

State = dict[str, Tensor]


def linears(tied_norm: float = 1.7) -> State:
    """Weights of two linear layers, as torch stores them; decoder columns of any length."""
    return {
        "encoder.weight": torch.randn(D_SAE, D_IN),
        "encoder.bias": torch.randn(D_SAE),
        "decoder.weight": tied_norm * torch.randn(D_IN, D_SAE),
    }


def matrices() -> State:
    """The same as plain matrices, the other way round."""
    return {
        "W_enc": torch.randn(D_IN, D_SAE),
        "b_enc": torch.randn(D_SAE),
        "W_dec": torch.randn(D_SAE, D_IN),
        "b_dec": torch.randn(D_IN),
    }


def keep_top(latents: Tensor, k: int = K) -> Tensor:
    """Zero for all but the k largest of each row."""
    kept = torch.zeros_like(latents)
    for row, target in zip(latents.view(-1, D_SAE), kept.view(-1, D_SAE), strict=True):
        order = row.argsort(descending=True)[:k]
        target[order] = row[order]
    return kept


# Each gives (what is saved, latents of x, reconstruction of x, architecture here).


def autoencoder(x: Tensor) -> tuple[Any, Tensor, Tensor, str]:
    state = {**linears(), "bias": torch.randn(D_IN)}
    f = relu(linear(x - state["bias"], state["encoder.weight"], state["encoder.bias"]))
    return state, f, linear(f, state["decoder.weight"]) + state["bias"], "standard"


def autoencoder_new(x: Tensor) -> tuple[Any, Tensor, Tensor, str]:
    state = {**linears(), "decoder.bias": torch.randn(D_IN)}
    f = relu(linear(x, state["encoder.weight"], state["encoder.bias"]))
    return state, f, linear(f, state["decoder.weight"], state["decoder.bias"]), "standard"


def before_relu(x: Tensor, state: State) -> Tensor:
    return linear(x - state["b_dec"], state["encoder.weight"], state["encoder.bias"])


def dictionary_topk(x: Tensor) -> tuple[Any, Tensor, Tensor, str]:
    state = {**linears(), "b_dec": torch.randn(D_IN), "k": torch.tensor(K, dtype=torch.int)}
    state["threshold"] = torch.tensor(-1.0)  # never set
    f = keep_top(relu(before_relu(x, state)))
    return state, f, linear(f, state["decoder.weight"]) + state["b_dec"], "topk"


def batch_topk(x: Tensor) -> tuple[Any, Tensor, Tensor, str]:
    state = {**linears(), "b_dec": torch.randn(D_IN), "k": torch.tensor(K, dtype=torch.int)}
    post = relu(before_relu(x, state))
    state["threshold"] = post.flatten().sort().values[-40:-38].mean()
    f = post * (post > state["threshold"])
    assert int((f > 0).sum()) == 39
    return state, f, linear(f, state["decoder.weight"]) + state["b_dec"], "jumprelu"


def matryoshka(x: Tensor) -> tuple[Any, Tensor, Tensor, str]:
    state = {**matrices(), "k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.8)}
    state["group_sizes"] = torch.tensor([5, 15])
    post = relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    f = post * (post > state["threshold"])
    return state, f, f @ state["W_dec"] + state["b_dec"], "jumprelu"


def jumprelu(x: Tensor) -> tuple[Any, Tensor, Tensor, str]:
    state = {**matrices(), "threshold": torch.rand(D_SAE)}
    pre = x @ state["W_enc"] + state["b_enc"]
    f = relu(pre * (pre > state["threshold"]))
    return state, f, f @ state["W_dec"] + state["b_dec"], "jumprelu"


def gated(x: Tensor) -> tuple[Any, Tensor, Tensor, str]:
    state = linears()
    del state["encoder.bias"]
    state |= {name: torch.randn(D_SAE) for name in ("r_mag", "gate_bias", "mag_bias")}
    state["decoder_bias"] = torch.randn(D_IN)
    x_enc = linear(x - state["decoder_bias"], state["encoder.weight"])
    f = (x_enc + state["gate_bias"] > 0) * relu(state["r_mag"].exp() * x_enc + state["mag_bias"])
    return state, f, linear(f, state["decoder.weight"]) + state["decoder_bias"], "gated"


def freud_topk(x: Tensor) -> tuple[Any, Tensor, Tensor, str]:
    state = linears()
    state |= {"W_dec": state.pop("decoder.weight").T.contiguous(), "b_dec": torch.randn(D_IN)}
    f = keep_top(relu(before_relu(x, state)))
    hparams = {"activation_size": D_IN, "topk_params": {"k": K}, "layer_name": "encoder.blocks.2"}
    checkpoint = {"hparams": hparams, "model": state, "step": 7, "optimizer": {"state": {}}}
    # FREUD's best checkpoints hold numpy's number.
    checkpoint["best_val_loss"] = np.float64(0.25)
    return checkpoint, f, f @ state["W_dec"] + state["b_dec"], "topk"


def freud_l1(x: Tensor) -> tuple[Any, Tensor, Tensor, str]:
    state = {"decoder.weight": torch.randn(D_IN, D_SAE), "encoder_bias": torch.randn(D_SAE)}
    columns = normalize(state["decoder.weight"], dim=0)
    f = relu(x @ columns + state["encoder_bias"])
    hparams = {"autoencoder_config": {}, "whisper_config": {"layer_name": "encoder.blocks.2.mlp.1"}}
    return {"hparams": hparams, "model": state}, f, linear(f, columns), "standard"


def reid(x: Tensor) -> tuple[Any, Tensor, Tensor, str]:
    checkpoint, f, recons, architecture = freud_l1(x)
    return {"model": checkpoint["model"], "step": 10, "best_val_loss": 0.5}, f, recons, architecture


Maker = Callable[[Tensor], tuple[Any, Tensor, Tensor, str]]
MAKERS = [
    autoencoder,
    autoencoder_new,
    dictionary_topk,
    batch_topk,
    matryoshka,
    jumprelu,
    gated,
    freud_topk,
    freud_l1,
    reid,
]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_same_latents_and_reconstructions_as_the_original(maker: Maker, tmp_path: Path) -> None:
    x = torch.randn(2, 15, D_IN)
    saved, latents, recons, architecture = maker(x)
    torch.save(saved, tmp_path / "some.pth")
    sae = load_sae(tmp_path / "some.pth")
    assert sae.cfg.architecture == architecture
    assert torch.equal(sae.encode(x) > 0, latents > 0)
    assert 0 < int((latents > 0).sum()) < latents.numel()
    torch.testing.assert_close(sae.encode(x), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x), recons, atol=1e-4, rtol=1e-5)
    assert not sae.training


def save_dictionary(folder: Path, state: State, trainer: dict[str, Any] | None) -> Path:
    folder.mkdir(parents=True)
    torch.save(state, folder / "ae.pt")
    if trainer is not None:
        text = json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}})
        (folder / "config.json").write_text(text)
    return folder


def test_a_latent_on_the_threshold_is_zero(tmp_path: Path) -> None:
    """Whole numbers, so that nothing is rounded: BatchTopK keeps what is over its threshold."""
    state = {"encoder.weight": torch.eye(D_IN), "encoder.bias": torch.ones(D_IN)}
    state |= {"decoder.weight": torch.eye(D_IN), "b_dec": torch.full((D_IN,), 2.0)}
    torch.save({**state, "threshold": torch.tensor(3.0), "k": torch.tensor(2)}, tmp_path / "b.pt")
    latents = load_sae(tmp_path / "b.pt").encode(torch.arange(6.0))
    assert latents.tolist() == [0, 0, 0, 0, 0, 4]  # pre-activations are x - 2 + 1


def test_config_json_says_which_of_two_alike_it_is(tmp_path: Path) -> None:
    """AutoEncoderTopK keeps a threshold too, and does not use it."""
    x = torch.randn(30, D_IN)
    state, latents, _, _ = batch_topk(x)
    trainer = {"dict_class": "AutoEncoderTopK", "k": K, "activation_dim": D_IN, "layer": 3}
    sae = load_sae(save_dictionary(tmp_path / "a", state, trainer))
    top = keep_top(relu(before_relu(x, state)))
    torch.testing.assert_close(sae.encode(x), top, atol=1e-5, rtol=1e-5)
    assert sae.cfg.hook_name is None  # a layer of some language model
    assert sae.cfg.metadata["layer"] == 3

    batch = load_sae(save_dictionary(tmp_path / "b", state, {"dict_class": "BatchTopKSAE"}))
    torch.testing.assert_close(batch.encode(x), latents, atol=1e-5, rtol=1e-5)
    asked = load_sae(tmp_path / "b" / "ae.pt", architecture="batchtopk")
    torch.testing.assert_close(asked.encode(x), latents, atol=1e-5, rtol=1e-5)


def test_audiosae_counts_layers_from_one(tmp_path: Path) -> None:
    state = batch_topk(torch.randn(30, D_IN))[0]
    sae = load_sae(save_dictionary(tmp_path / "layer_6", state, {"k": K, "dict_size": D_SAE}))
    assert sae.cfg.hook_name == "encoder.blocks.5.hook_resid_post"
    assert sae.cfg.metadata["k"] == K
    trainer = {"lm_name": "whisper-small", "layer": 12}
    sae = load_sae(save_dictionary(tmp_path / "w", state, trainer))
    assert sae.cfg.hook_name == "encoder.blocks.11.hook_resid_post"


@pytest.mark.parametrize(
    ("maker", "hook_name"),
    [
        pytest.param(freud_topk, "encoder.blocks.2.hook_resid_post", id="block"),
        pytest.param(freud_l1, "encoder.blocks.2.mlp.hook_post", id="after-gelu"),
        pytest.param(reid, None, id="not-said"),
    ],
)
def test_the_site_comes_from_the_file_unless_given(
    maker: Maker, hook_name: str | None, tmp_path: Path
) -> None:
    torch.save(maker(torch.randn(4, D_IN))[0], tmp_path / "some.pth")
    assert load_sae(tmp_path / "some.pth").cfg.hook_name == hook_name
    given = load_sae(tmp_path / "some.pth", hook_name="encoder.blocks.0.hook_resid_post")
    assert given.cfg.hook_name == "encoder.blocks.0.hook_resid_post"


def test_k_from_the_caller(tmp_path: Path) -> None:
    """Older dictionary_learning kept k outside of the state dictionary."""
    x = torch.randn(9, D_IN)
    state, latents, _, _ = dictionary_topk(x)
    del state["k"], state["threshold"]
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(SAEFileError, match=r"does not say how many.*k=\.\.\."):
        load_sae(tmp_path / "old.pt")
    sae = load_sae(tmp_path / "old.pt", k=K)
    torch.testing.assert_close(sae.encode(x), latents, atol=1e-5, rtol=1e-5)


def test_dtype_and_names_of_torch_compile(tmp_path: Path) -> None:
    x = torch.randn(9, D_IN)
    state, latents, _, _ = autoencoder(x)
    wrapped = {f"_orig_mod.{name}": value.double() for name, value in state.items()}
    torch.save(wrapped, tmp_path / "c.pt")
    assert load_sae(tmp_path / "c.pt").dtype == torch.float64
    sae = load_sae(tmp_path / "c.pt", dtype=torch.float32)
    torch.testing.assert_close(sae.encode(x), latents, atol=1e-5, rtol=1e-5)
    assert {value.dtype for value in sae.state_dict().values()} == {torch.float32}


def test_the_file_may_go_after_loading(tmp_path: Path) -> None:
    """Mapped weights would change with the file."""
    x = torch.randn(9, D_IN)
    state, latents, _, _ = autoencoder_new(x)
    path = tmp_path / "some.pt"
    torch.save(state, path)
    sae = load_sae(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    torch.testing.assert_close(sae.encode(x), latents, atol=1e-5, rtol=1e-5)


class Opens:
    """Pickled, it would make a file on loading."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_no_pickled_object_is_executed(tmp_path: Path) -> None:
    torch.save({**linears(), "bias": Opens(tmp_path / "made")}, tmp_path / "evil.pt")
    with pytest.raises(SAEFileError, match=r"evil\.pt holds pickled objects.*nothing of it"):
        load_sae(tmp_path / "evil.pt")
    assert not (tmp_path / "made").exists()


def _without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def _with(**changes: Any) -> Callable[[State], State]:
    names = {"enc": "encoder.weight", "dec": "decoder.weight", "enc_bias": "encoder.bias"}
    return lambda state: {**state, **{names.get(key, key): new for key, new in changes.items()}}


NAN = torch.full((D_IN,), torch.nan)
HUGE = torch.zeros(1).expand(2**20, 2**20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(_without("b_dec"), r"no autoencoder.*encoder\.weight \(20, 6\)", id="missing"),
        pytest.param(_with(other=torch.ones(2)), r"other \(2,\).*Known are SAELens", id="extra"),
        pytest.param(_with(dec=torch.ones(5, 20)), r"decoder\.weight in .* is \(5, 20\)", id="dec"),
        pytest.param(_with(dec=torch.ones(20, 6)), r"it must be \(6, 20\)", id="turned-round"),
        pytest.param(_with(b_dec=torch.ones(7)), r"b_dec in .* is \(7,\); it must be", id="bias"),
        pytest.param(_with(enc=torch.ones(6)), r"encoder\.weight .* is \(6,\)", id="one-axis"),
        pytest.param(_with(b_dec=NAN), r"b_dec in .* holds 6 values of 6 that are NaN", id="nan"),
        pytest.param(_with(enc=HUGE), r"encoder\.weight in .* bytes are there", id="huge"),
        pytest.param(_with(k=torch.ones(2)), r"k in .* must be a single number", id="two-ks"),
        pytest.param(_with(k=torch.tensor(2.5)), r"k of .* is 2\.5; .* whole number", id="half"),
        pytest.param(_with(k=torch.tensor(99)), r"k is 99", id="k-too-large"),
        pytest.param(_with(enc_bias="text"), r"'encoder\.bias' in .* is a str", id="text"),
        pytest.param(lambda state: [1, 2], r"holds a list; .* dictionary", id="a-list"),
        pytest.param(lambda state: {}, r"it holds no tensors", id="empty"),
    ],
)
def test_a_wrong_file_says_what_it_holds(
    change: Callable[[State], Any], message: str, tmp_path: Path
) -> None:
    state = dictionary_topk(torch.randn(3, D_IN))[0]
    torch.save(change(state), tmp_path / "bad.pt")
    with pytest.raises(SAEFileError, match=message):
        load_sae(tmp_path / "bad.pt")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        pytest.param({"dict_class": "GatedAutoEncoder"}, r"says 'GatedAutoEncoder'", id="class"),
        pytest.param({"activation_dim": 7}, r"says activation_dim 7; the tensors.* of 6", id="d"),
        pytest.param({"k": 4}, r"k of .* is 3 and 4", id="k"),
    ],
)
def test_config_json_that_disagrees(trainer: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = dictionary_topk(torch.randn(3, D_IN))[0]
    with pytest.raises(SAEFileError, match=message):
        load_sae(save_dictionary(tmp_path / "a", state, trainer))


def test_a_batch_topk_without_threshold(tmp_path: Path) -> None:
    state = dictionary_topk(torch.randn(3, D_IN))[0]
    del state["threshold"]
    folder = save_dictionary(tmp_path / "layer_2", state, None)
    with pytest.raises(SAEFileError, match=r"without the threshold.*architecture='topk'"):
        load_sae(folder)
    assert load_sae(folder, architecture="topk").cfg.architecture == "topk"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("absent.pt", r"there is no .*absent\.pt", id="absent"),
        pytest.param("", r"holds cut\.pt, junk\.safetensors\. A folder needs cfg\.json", id="dir"),
        pytest.param("cut.pt", r"cut\.pt cannot be read as a torch checkpoint", id="cut-short"),
        pytest.param("junk.safetensors", r"cannot be read as safetensors", id="junk"),
    ],
)
def test_a_path_to_nothing(name: str, message: str, tmp_path: Path) -> None:
    torch.save(linears(), tmp_path / "cut.pt")
    whole = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    # A header that claims 2**60 bytes.
    (tmp_path / "junk.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(SAEFileError, match=message):
        load_sae(tmp_path / name)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SAEFileError, match=r"architecture is 'gated'; it can be 'topk' or"):
        load_sae(tmp_path, architecture="gated")


def test_what_does_not_apply_is_refused(tmp_path: Path) -> None:
    """Not passed over: the caller meant something by it."""
    torch.save(autoencoder(torch.randn(3, D_IN))[0], tmp_path / "relu.pt")
    with pytest.raises(SAEFileError, match=r"'standard' .*no fixed number of latents; got k=3"):
        load_sae(tmp_path / "relu.pt", k=3)
    with pytest.raises(SAEFileError, match=r"is a 'standard' .*architecture='topk' only chooses"):
        load_sae(tmp_path / "relu.pt", architecture="topk")
    torch.save(dictionary_topk(torch.randn(3, D_IN))[0], tmp_path / "topk.pt")
    with pytest.raises(SAEFileError, match=r"k of .* is 3 and 4"):
        load_sae(tmp_path / "topk.pt", k=4)
    folder = load_sae(tmp_path / "topk.pt").save(tmp_path / "sae")
    assert load_sae(folder, k=3).cfg.k == 3
    with pytest.raises(SAEFileError, match=r"keeps 3 latents; got k=4"):
        load_sae(folder, k=4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("threshold", torch.tensor(float("nan")), r"threshold .* is nan"),
        ("threshold", torch.tensor(float("inf")), r"threshold .* is inf"),
        ("decoder.weight", torch.ones(6, 10, dtype=torch.int64), "weights are floats"),
    ],
)
def test_values_that_no_autoencoder_has(
    name: str, value: Tensor, message: str, tmp_path: Path
) -> None:
    state = {"encoder.weight": torch.ones(10, 6), "encoder.bias": torch.ones(10)}
    state |= {"decoder.weight": torch.ones(6, 10), "b_dec": torch.ones(6), "k": torch.tensor(3)}
    torch.save({**state, "threshold": torch.tensor(0.5), name: value}, tmp_path / "ae.pt")
    with pytest.raises(SAEFileError, match=message):
        load_sae(tmp_path / "ae.pt", architecture="batchtopk")


@pytest.mark.parametrize("sizes", [[4.0, float("nan")], [12.0, -2.0], [4.5, 5.5]])
def test_groups_that_no_autoencoder_has(sizes: list[float], tmp_path: Path) -> None:
    state = {"W_enc": torch.ones(6, 10), "b_enc": torch.ones(10), "W_dec": torch.ones(10, 6)}
    state |= {"b_dec": torch.ones(6), "threshold": torch.tensor(0.5)}
    torch.save({**state, "group_sizes": torch.tensor(sizes)}, tmp_path / "ae.pt")
    with pytest.raises(SAEFileError, match="group_sizes"):
        load_sae(tmp_path / "ae.pt")
