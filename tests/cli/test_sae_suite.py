"""`hooked-whisper sae suite`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from hooked_whisper.cli.training import ENCODER_OUTPUT, _usual_hooks
from hooked_whisper.sae import load_suite

Run = Callable[..., Result]
HOOK = "encoder.blocks.0.hook_resid_pre"


def test_it_harvests_once_and_trains_every_pair(run: Run, clip: Path, folder: Path) -> None:
    lengths = ["--steps", 2, "--batch-size", 32]
    sizes = ["--latents", 48, "--latents", 96, "--k", 4, "--k", 8]
    done = run("sae", "suite", clip, "--hook", HOOK, *sizes, *lengths, "--json", "--quiet")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["saes"]
    assert [each["folder"] for each in told] == [
        f"digits-saes/{variant}/{HOOK}" for variant in ("48-k4", "48-k8", "96-k4", "96-k8")
    ]
    for d_sae in (48, 96):
        for k in (4, 8):
            (sae,) = load_suite(f"digits-saes/{d_sae}-k{k}").values()
            assert (sae.cfg.d_sae, sae.cfg.k) == (d_sae, k)
    assert (folder / "digits-saes/activations/manifest.json").is_file()


def test_one_size_is_a_suite_of_its_own(run: Run, clip: Path) -> None:
    options = ["--latents", 48, "--k", 4, "--steps", 2, "--batch-size", 32, "--out", "mine"]
    command = ["sae", "suite", clip, "--hook", "encoder.blocks.[01].hook_resid_pre", *options]
    done = run(*command)
    assert done.exit_code == 0, done.output
    assert "hooked-whisper sae eval --sae mine" in done.stderr
    assert list(load_suite("mine")) == [HOOK, "encoder.blocks.1.hook_resid_pre"]
    again = run(*command)
    assert again.exit_code == 1 and "Go on with" in again.stderr
    assert run(*command, "--resume").stdout == done.stdout


def test_a_store_or_recordings(run: Run, clip: Path) -> None:
    done = run("sae", "suite", clip, "--store", "store")
    assert done.exit_code == 2 and "one of RECORDINGS and --store" in done.stderr
    done = run("sae", "suite", "--store", "nowhere", "--quiet")
    assert done.exit_code == 1 and "nowhere" in done.stderr


@pytest.mark.parametrize(
    ("model_name", "stored", "expected"),
    [
        ("digits", (0, 1, "output"), (0, 1)),
        ("tiny.en", (0, 1, "output"), (0, "output")),
        ("tiny.en", (0, 1), (0, 1)),
        ("tiny.en", (0, "output"), (0, "output")),
    ],
    ids=["digits", "real", "no output", "no last block"],
)
def test_real_models_have_the_output_in_place_of_the_last_block(
    model_name: str, stored: tuple[Any, ...], expected: tuple[Any, ...]
) -> None:
    def names(of: tuple[Any, ...]) -> list[str]:
        stream = "encoder.blocks.{}.hook_resid_post"
        return [ENCODER_OUTPUT if each == "output" else stream.format(each) for each in of]

    given = ["decoder.blocks.0.hook_resid_post", *names(stored)]
    assert _usual_hooks(model_name, {"n_audio_layers": 2}, given) == names(expected)


def test_a_store_says_whose_activations_it_holds(run: Run, clip: Path) -> None:
    stream = "encoder.blocks.*.hook_resid_post"
    assert run("harvest", clip, "--hook", stream, "--out", "store", "--quiet").exit_code == 0
    done = run("sae", "suite", "--store", "store", "--steps", 1, "--latents", 40, "--out", "saes")
    assert done.exit_code == 0, done.output
    assert len(load_suite("saes")) == 4
