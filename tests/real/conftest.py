"""Whisper Tiny (English) as OpenAI released it, and people who read sentences aloud.

The weights and the clips are looked for as docs/make_notebooks.py does: in $HOOKED_WHISPER_DATA, or
in shared/data beside the checkout; $HOOKED_WHISPER_TINY_EN names the weights alone. Where there are
none these tests are skipped. Every number is compared with openai-whisper's own class, which runs
the same file, with torch's hooks and plain loops.
"""

import csv
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hooked_whisper import HookedWhisper, Mel
from hooked_whisper.interventions import Example

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("ls-1688-142285-0004.flac", "ls-3331-159605-0001.flac")
"""A man's 4.47 s and a woman's 3.10 s."""


def _maker() -> Any:
    """docs/make_notebooks.py, which knows where the weights are."""
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "make_notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def weights() -> Path:
    maker = _maker()
    found: Path | None = maker.weights()
    if found is None:
        pytest.skip(f"tiny.en.pt is not here: name it in {maker.TINY_EN}")
    return found


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of sentences and other sounds."""
    data = Path(os.environ.get("HOOKED_WHISPER_DATA", ROOT.parent / "shared" / "data"))
    if not (data / "speech" / "sentences" / "manifest.csv").is_file():
        pytest.skip("speech/sentences is not here: name its folder in HOOKED_WHISPER_DATA")
    return data / "speech"


@pytest.fixture(scope="session")
def model(weights: Path) -> HookedWhisper:
    return HookedWhisper.from_pretrained(weights)


@pytest.fixture(scope="session")
def reference(weights: Path) -> Any:
    """openai-whisper's class."""
    import whisper

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        return whisper.load_model(str(weights), device="cpu")


@pytest.fixture(autouse=True)
def left_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "model" in request.fixturenames:
        model = request.getfixturevalue("model")
        assert not any(point.is_hooked for point in model.hook_dict.values())


@dataclass(frozen=True)
class Sentence:
    """A clip, who reads it, and what is read."""

    path: Path
    speaker: str
    text: str
    seconds: float


@pytest.fixture(scope="session")
def sentences(speech: Path) -> list[Sentence]:
    """One of each speaker, the shortest first."""
    folder = speech / "sentences"
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        found = [
            Sentence(folder / row["path"], row["speaker"], row["text"], float(row["duration"]))
            for row in csv.DictReader(file)
        ]
    found.sort(key=lambda each: each.seconds)
    return list({each.speaker: each for each in reversed(found)}.values())[::-1]


@pytest.fixture(scope="session")
def short(speech: Path) -> list[Path]:
    return [speech / "sentences" / name for name in SHORT]


@contextmanager
def torch_hooks(*pairs: tuple[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """torch's own forward hooks: `function(module, args, output)`."""
    handles = [module.register_forward_hook(function) for module, function in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Run:
    """What one recording is to both models, with the tokens of the first one's text.

    Args:
        example: For ours.
        streams: openai-whisper's own: what each block gives, by its name.
        features: Its encoder's output.
        logits: Its logits.
    """

    example: Example
    streams: dict[str, Tensor]
    features: Tensor
    logits: Tensor

    @property
    def mel(self) -> Mel:
        return self.example.mel

    @property
    def tokens(self) -> Tensor:
        return self.example.tokens


def run_of(model: HookedWhisper, reference: Any, mel: Mel, tokens: Tensor) -> Run:
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def function(module: Any, args: Any, output: Tensor) -> None:
            kept[name] = output

        return function

    pairs = []
    for stack in ("encoder", "decoder"):
        for layer, block in enumerate(getattr(reference, stack).blocks):
            pairs.append((block, keep(f"{stack}.{layer}")))
    for layer, block in enumerate(reference.decoder.blocks):
        pairs.append((block.cross_attn.query, keep(f"query.{layer}")))
    with torch.no_grad(), torch_hooks(*pairs):
        features = reference.encoder(mel.values)
        logits = reference.decoder(tokens, features)
    return Run(Example(mel, tokens), kept, features, logits)


@pytest.fixture(scope="session")
def runs(model: HookedWhisper, reference: Any, short: list[Path]) -> tuple[Run, Run]:
    """The first clip, and the second, shorter one of another speaker, on the first one's text."""
    mels = [model.to_mel(path) for path in short]
    tokens = model.to_tokens(" His statement of having been a shop boy")
    return run_of(model, reference, mels[0], tokens), run_of(model, reference, mels[1], tokens)
