"""`import hooked_whisper` is cheap and changes nothing: heavy packages load when first used."""

import compileall
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[2] / "hooked_whisper"
HEAVY = (
    "whisper",
    "numba",
    "matplotlib",
    "pandas",
    "sklearn",
    "soundfile",
    "av",
    "soxr",
    "transformers",
    "huggingface_hub",
)

# What transformer_lens does at import is its own affair: the picture is taken after it.
SCRIPT = """
import json, logging, os, random, signal, sys, time, warnings
began_s = time.process_time()
import transformer_lens
lens_s = time.process_time() - began_s
import numpy, torch

def picture():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "gradients": torch.is_grad_enabled(),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(numpy.random.get_state()),
        "Python's random state": str(random.getstate()),
        "warnings filters": [str(entry) for entry in warnings.filters],
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
        "sys.path": list(sys.path),
        "log handlers": [str(handler) for handler in logging.getLogger().handlers],
        "log level": logging.getLogger().level,
        "interrupt handler": str(signal.getsignal(signal.SIGINT)),
        "numpy's error handling": numpy.geterr(),
        "hooks on every module": len(torch.nn.modules.module._global_forward_hooks),
    }

opened = []
def watch(event, args):
    if event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so")):
        opened.append(str(args[0]))
    if event.startswith(("socket.", "subprocess.")):
        opened.append(event)

modules = set(sys.modules)
before = picture()
sys.addaudithook(watch)
began_s = time.process_time()
import hooked_whisper
from hooked_whisper import HookedWhisper
own_s = time.process_time() - began_s
seen = list(opened)
after = picture()
print(json.dumps({
    "modules": sorted(set(sys.modules) - modules),
    "changed": sorted(key for key in before if before[key] != after[key]),
    "opened": seen,
    "times_s": [own_s, lens_s],
    "backend": "matplotlib" in sys.modules and sys.modules["matplotlib"].rcParams["backend"],
}))
"""


@pytest.fixture(scope="module")
def effects() -> dict[str, Any]:
    """What `import hooked_whisper` did in a process of its own, after transformer_lens."""
    # As a user imports it the second time: unchecked, with bytecode, and writing no files.
    compileall.compile_dir(PACKAGE, quiet=1)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_packages_wait_until_they_are_used(effects: dict[str, Any], package: str) -> None:
    loaded = [name for name in effects["modules"] if name.split(".")[0] == package]
    assert loaded == []


def test_it_brings_little_beside_transformer_lens(effects: dict[str, Any]) -> None:
    """Lazily loaded parts (figures, the command line) and other packages stay away."""
    new = {name.split(".")[0] for name in effects["modules"]}
    # The standard library is free to grow; what is installed beside us is not.
    third_party = {name for name in new if name not in sys.stdlib_module_names}
    light = {"jaxtyping", "einops", "safetensors", "torch", "tqdm", "markupsafe"}
    assert third_party <= light | {"hooked_whisper"}


def test_it_takes_a_tenth_of_transformer_lens_more_at_most(effects: dict[str, Any]) -> None:
    own_s, lens_s = effects["times_s"]
    assert own_s < 0.1 * lens_s


def test_nothing_global_changes(effects: dict[str, Any]) -> None:
    assert effects["changed"] == []


def test_no_file_is_opened_and_nothing_is_started(effects: dict[str, Any]) -> None:
    assert effects["opened"] == []


def test_no_plotting_backend_is_chosen(effects: dict[str, Any]) -> None:
    assert effects["backend"] is False
