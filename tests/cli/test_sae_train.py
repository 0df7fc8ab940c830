"""`hooked-whisper sae train`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from hooked_whisper import HookedWhisper
from hooked_whisper.sae import load_sae, load_suite
from hooked_whisper.store import harvest

Run = Callable[..., Result]
HOOK = "encoder.blocks.0.hook_resid_pre"


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, digits_model: HookedWhisper, clip: Path
) -> Path:
    """A store of two hooks of the digits model on one recording."""
    folder = tmp_path_factory.mktemp("cli") / "store"
    harvest(digits_model, clip, [HOOK, "encoder.blocks.0.attn.hook_z"], folder, n_workers=0)
    return folder


def test_it_trains_an_autoencoder_of_a_store(run: Run, store: Path, tmp_path: Path) -> None:
    options = ["--latents", 64, "--k", 4, "--epochs", 2, "--batch-size", 50, "--quiet"]
    command = ["sae", "train", store, "--hook", HOOK, "--out", tmp_path / "sae", *options]
    made = run(*command)
    assert made.exit_code == 0, made.output
    wanted = rf"{HOOK}: 64 latents, 140 vectors, FVU \d\.\d+, L0 4\.0, .* in .*/sae\n"
    assert re.fullmatch(wanted, made.output)
    sae = load_sae(tmp_path / "sae")
    assert (sae.cfg.hook_name, sae.cfg.d_in, sae.cfg.d_sae) == (HOOK, 96, 64)
    assert int((sae.encode(torch.randn(3, 96)) > 0).sum(dim=1).max()) <= 4
    again = run(*command)
    assert again.exit_code == 1 and "Go on with" in again.output
    assert run(*command, "--resume").output == made.output
    told = json.loads(run(*command, "--resume", "--json").stdout)["saes"][0]
    assert (told["hook"], told["d_sae"], told["n_vectors"]) == (HOOK, 64, 140)


def test_several_hooks_make_a_suite(run: Run, store: Path, tmp_path: Path) -> None:
    options = ["--architecture", "jumprelu", "--sparsity", 0.5, "--steps", 2, "--latents", 64]
    command = ["sae", "train", store, "--hook", "encoder.*", "--out", tmp_path / "s", *options]
    made = run(*command, "--batch-size", 50, "--quiet")
    assert made.exit_code == 0, made.output
    suite = load_suite(tmp_path / "s")
    assert list(suite) == ["encoder.blocks.0.attn.hook_z", HOOK]
    assert [sae.cfg.d_in for sae in suite.values()] == [96, 96]  # heads side by side


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ["--k", 4, "--architecture", "standard"],
            1,
            "standard chooses no k latents; give --spars",
        ),
        (["--sparsity", 1], 1, "topk has no penalty; --sparsity is for standard, gated, jumprelu"),
        (["--steps", 3, "--epochs", 1], 2, "give one of --epochs, --vectors and --steps"),
        (["--hook", "decoder.*"], 1, "decoder"),
        (["--latents", 8], 1, "k is 32, but there are 8 latents"),
    ],
    ids=["k", "sparsity", "two lengths", "no such hook", "k too large"],
)
def test_what_does_not_fit_is_one_sentence(
    run: Run, options: list[object], code: int, message: str, store: Path, tmp_path: Path
) -> None:
    hook = [] if "--hook" in options else ["--hook", HOOK]
    made = run("sae", "train", store, *hook, "--out", tmp_path / "s", *options)
    assert made.exit_code == code
    assert made.output.startswith("Error: ") and message in made.output
    assert made.output.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_no_store(run: Run) -> None:
    made = run("sae", "train", "nowhere", "--hook", HOOK, "--out", "s")
    assert made.exit_code == 1 and "holds no activation store" in made.output
