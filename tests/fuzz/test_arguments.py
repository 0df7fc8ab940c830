"""Arguments of public functions, each replaced by what is none: never an error that is not ours.

The other arguments are taken by their names from one set of valid ones.
"""

import importlib
import inspect
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

from hooked_whisper import circuits, interventions, lenses, metrics, patching, sae, store
from hooked_whisper.data import Recording, load_windows

from ..contract.test_public_names import ROOMS
from .mutations import SEEDS, N, Outcomes

HOOK = "encoder.blocks.0.hook_resid_post"
WRONG = [
    None, 7, "abc", [], [1.5, "x"], object(), float("nan"), {"a": 1},
    torch.ones(2, 3, dtype=torch.complex64), torch.tensor(3),
]  # fmt: skip
LEFT_OUT = {
    "Mel.__getitem__",  # an IndexError ends a loop over its rows
    "HookedWhisper.detect_language",  # which is openai-whisper's, with its errors
    "SAE",  # abstract
}


@pytest.fixture(scope="module")
def valid(make_model: Any, tiny_cfg: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Arguments by their names, and objects whose methods are called."""
    from hooked_whisper.analysis import RunningMoments, residual_histogram

    folder, model = tmp_path_factory.mktemp("arguments"), make_model(tiny_cfg)
    sound = 0.1 * torch.randn(6000), 16_000
    mel, tokens = model.to_mel(sound), torch.tensor([[5, 6, 7, 8]])
    _, cache = model.run_with_cache(mel, tokens)
    one, other = (interventions.Example(mel, tokens) for _ in range(2))
    autoencoder = sae.make_sae(sae.TopKConfig(d_in=24, d_sae=48, k=4, hook_name=HOOK))
    recordings = [Recording(f"r{i}", sound, {"speaker": "ab"[i]}, tokens=(5, 6)) for i in range(2)]
    options: dict[str, Any] = {"progress": False}
    stored = store.harvest(model, recordings, HOOK, folder / "store", n_workers=0, **options)
    metric, site = metrics.LogProb(5), interventions.Site(HOOK)
    edges = circuits.Circuit.random(circuits.EdgeGraph.of(model.cfg), 10)
    found = patching.patch_sweep(model, one, other, HOOK, metric=metric, **options)
    pattern = cache["encoder", 0, "pattern"]
    named = {
        "model": model, "mel": mel, "tokens": tokens, "cfg": model.cfg, "path": folder / "file",
        "folder": folder / "new", "out": folder / "a.html", "audio": sound, "text": "one",
        "pattern": pattern, "patterns": {"encoder.blocks.0.attn.hook_pattern": pattern},
        "n_positions": 30, "energy": torch.rand(1, 30), "vectors": torch.randn(5, 24),
        "resid": cache[HOOK], "streams": [cache[HOOK]] * 2, "activations": cache[HOOK],
        "source": mel, "site": site, "name": HOOK, "names_filter": HOOK, "hook_name": HOOK,
        "hook_names": HOOK, "hooks": HOOK, "stack": "encoder", "layer": 0, "layers": [0, 1],
        "head": 0, "n": 3, "n_true": 2, "threshold": 0.5, "recordings": recordings,
        "recording": recordings[0], "inputs": recordings, "edits": interventions.ZeroAblation(site),
        "clean": one, "corrupted": other, "example": one, "examples": one, "pairs": (one, other),
        "pair": (one, other), "metric": metric, "circuit": edges, "circuits": edges, "edges": edges,
        "senders": patching.Head("encoder", 0, 0), "receivers": "logits", "token": 5, "right": 5,
        "wrong": 6, "logits": model(mel, tokens), "reference_logits": model(mel, tokens),
        "sae": autoencoder, "other": autoencoder, "saes": {HOOK: autoencoder}, "latents": [1, 2],
        "store": stored, "rows": [0, 1], "batch_size": 4, "size": 2, "label": "speaker",
        "windows": load_windows(model, recordings), "mean": cache, "positive": cache,
        "negative": cache, "vector": torch.randn(24), "direction": torch.randn(24), "of": [5],
        "values": torch.rand(3), "labels": list("abc"), "x": torch.randn(4, 24), "d_in": 24,
        "d_sae": 48, "n_layers": 2, "n_heads": 2, "tolerance": 0.1, "half_width": 2, "pos": -1,
        "key": HOOK, "reference": "one", "function": metric, "window_s": (0.0, 0.1), **options,
    }  # fmt: skip
    things = [
        *named.values(), found, autoencoder, store.Epochs(stored), RunningMoments(),
        residual_histogram(cache[HOOK]), lenses.logit_lens(model, mel, tokens),
        lenses.direct_attribution(model, mel, tokens), edges.graph,
        patching.attention_rollout(model, mel, tokens), sae.splice_site(model, autoencoder),
        sae.MemoryActivations({HOOK: torch.randn(64, 24)}), metrics.Loss(tokens),
    ]  # fmt: skip
    return named, {type(thing): thing for thing in things}


def calls(things: dict[type, Any]) -> Iterator[tuple[str, Any]]:
    """Public functions and classes, and public methods of what there is."""
    for room in ["", *(f".{room}" for room in ROOMS)]:
        module = importlib.import_module(f"hooked_whisper{room}")
        for name in module.__all__:
            public = getattr(module, name)
            if callable(public) and not inspect.isabstract(public):
                yield name, public
            if public not in [*things]:
                continue
            for method in dir(public):
                found = inspect.getattr_static(public, method)
                ours = getattr(inspect.unwrap(found), "__module__", None) or ""
                is_method = isinstance(found, FunctionType | classmethod | staticmethod)
                if is_method and method[0] != "_" and ours.startswith("hooked_whisper"):
                    yield f"{name}.{method}", getattr(things[public], method)


def given(function: Any, name: str, wrong: Any, named: dict[str, Any]) -> dict[str, Any]:
    """Valid arguments for a call, and a wrong one; those with defaults are mostly left."""
    parameters = inspect.signature(function).parameters
    needed = {
        each: named.get(each)
        for each in plain(function)
        if parameters[each].default is inspect.Parameter.empty
    }
    return needed | ({"progress": False} if "progress" in parameters else {}) | {name: wrong}


def plain(function: Any) -> list[str]:
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind in kinds and each.name != "progress"]


def run(function: Any, arguments: dict[str, Any]) -> Any:
    """Call it, and begin what it gives to be begun."""
    found = function(**arguments)
    if hasattr(found, "__next__"):
        return list(itertools.islice(found, 2))
    if hasattr(found, "__enter__"):
        with found:
            pass
    return found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # whisper's files
def test_every_outcome_is_none_of_pythons_errors(
    valid: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_shape_checks: None,
    outcomes: Outcomes,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.figure.Figure.draw", lambda *_: None)
    named, things = valid
    public = [each for each in calls(things) if plain(each[1]) and each[0] not in LEFT_OUT]
    with torch.no_grad():
        for seed in SEEDS:
            rng = random.Random(seed)
            called, function = rng.choice(public)
            name, wrong = rng.choice(plain(function)), rng.choice(WRONG)
            arguments = given(function, name, wrong, named)
            outcomes.read(
                f"{seed}: {called}({name}={wrong})", lambda f=function, a=arguments: run(f, a)
            )
            named["model"].reset_hooks()
            named["model"].reset_saes()
    assert outcomes["refused"] > N / 3
