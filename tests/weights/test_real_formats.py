"""tiny.en in every format: the weights that it had, and what other runtimes write down."""

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.weights.rename import openai_name
from hooked_whisper.weights.vocabulary import suppressed_tokens, whisper_tokenizer

from .ct2 import convert_to_ct2
from .ggml_files import write_ggml
from .mlx_files import write_mlx

ctranslate2 = pytest.importorskip("ctranslate2", reason="the extra 'test' is not installed")

TINY_EN = "HOOKED_WHISPER_TINY_EN"
JFK = Path(__file__).parents[1] / "data" / "jfk.flac"
SPOKEN = (
    "and so my fellow americans ask not what your country can do for you ask what you can do for "
)
START, END = (50257, 50362), 50256
POSITIONS = "encoder.positional_embedding"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path() -> Path:
    """Where tiny.en is: $HOOKED_WHISPER_TINY_EN, or shared/data beside the checkout."""
    root = Path(__file__).parents[2].parent / "shared" / "data"
    data = Path(os.environ.get("HOOKED_WHISPER_DATA", root))
    found = Path(os.environ.get(TINY_EN, data / "whisper" / "tiny.en.pt"))
    if not found.is_file():
        pytest.skip(f"tiny.en.pt is not here: name it in {TINY_EN}")
    return found


@pytest.fixture(scope="module")
def original(path: Path) -> HookedWhisper:
    return HookedWhisper.from_pretrained(path, device="cpu", dtype="auto")


@pytest.fixture(scope="module")
def vocabulary(original: HookedWhisper) -> list[str]:
    """The tokens as CTranslate2 spells them: special ones by name, others by their bytes."""
    encoding = whisper_tokenizer(original.cfg).encoding
    words = [encoding.decode_single_token_bytes(number) for number in range(encoding.n_vocab)]
    return [word.decode("latin-1" if n < END else "utf-8") for n, word in enumerate(words)]


@pytest.fixture(scope="module")
def theirs(original: HookedWhisper, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' model, read from a folder that was written for it."""
    from transformers import WhisperForConditionalGeneration

    folder = tmp_path_factory.mktemp("hf") / "hf"
    original.save_pretrained(folder, format="huggingface")
    return WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float16)


def plain(text: str) -> str:
    return " ".join(text.lower().replace(",", "").replace(".", "").split())


def written(model: HookedWhisper) -> str:
    return plain(model.transcribe(str(JFK))["text"])


@pytest.mark.parametrize("kind", ["float16", "int8_float16", "int16"])
def test_ctranslate2(
    original: HookedWhisper, theirs: Any, vocabulary: list[str], tmp_path: Path, kind: str
) -> None:
    """Its runtime and this package write the same tokens, from the same weights in float32."""
    folder = convert_to_ct2(theirs, tmp_path / kind, kind, vocabulary)
    model = HookedWhisper.from_pretrained(folder, device="cpu")
    if kind == "float16":
        for name, value in model.state_dict().items():
            assert torch.equal(value, original.state_dict()[name].float()), name
    assert written(model).startswith(SPOKEN.strip())
    mel = model.to_mel(str(JFK))
    runtime = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
    features = ctranslate2.StorageView.from_array(mel.values.numpy())
    with torch.no_grad():
        encoded = model(mel)
    np.testing.assert_allclose(np.array(runtime.encode(features)), encoded.numpy(), atol=2e-3)
    (result,) = runtime.generate(features, [list(START)], beam_size=1, suppress_blank=False)
    assert len(result.sequences_ids[0]) > 20
    assert result.sequences_ids[0] == greedy(model, encoded)


def greedy(model: HookedWhisper, encoded: torch.Tensor) -> list[int]:
    """Tokens one by one, without those that are suppressed."""
    tokens, suppressed = list(START), suppressed_tokens(model.cfg)
    while tokens[-1] != END:
        with torch.no_grad():
            logits = model(tokens=torch.tensor([tokens]), encoder_output=encoded)[0, -1]
        logits[suppressed] = -torch.inf
        tokens.append(int(logits.argmax()))
    return tokens[len(START) : -1]


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q5_0"])
def test_whisper_cpp(original: HookedWhisper, tmp_path: Path, kind: str) -> None:
    """Blocks are made by gguf's quantiser; what they say is what it makes of them."""
    number = None if kind == "f16" else gguf.GGMLQuantizationType[kind.upper()]
    state = {openai_name(name): value for name, value in original.state_dict().items()}
    how = {} if number is None else {"quantise": lambda rows: gguf.quants.quantize(rows, number)}
    write_ggml(tmp_path / "a.bin", vars(original.cfg.dims), state, kind, **how)
    model = HookedWhisper.from_pretrained(tmp_path / "a.bin", device="cpu")
    for name, value in model.state_dict().items():
        before = original.state_dict()[name].float()
        if number is not None and before.ndim == 2 and "positional" not in name:
            before = torch.from_numpy(
                gguf.quants.dequantize(how["quantise"](before.numpy()), number)
            )
        assert torch.equal(value, before.reshape(value.shape)), name
    assert written(model).startswith(SPOKEN.strip())


@pytest.mark.parametrize("bits", [None, 8])
def test_mlx(original: HookedWhisper, tmp_path: Path, bits: int | None) -> None:
    state = {openai_name(name): value for name, value in original.state_dict().items()}
    dims = vars(original.cfg.dims)
    stands_for = write_mlx(tmp_path / "a", dims, state, "weights.npz", bits=bits, group=64)
    model = HookedWhisper.from_pretrained(tmp_path / "a", device="cpu")
    assert bool(stands_for) == (bits is not None)
    for name, value in model.state_dict().items():
        if bits is None and name != POSITIONS:
            assert torch.equal(value, original.state_dict()[name].float()), name
    assert written(model).startswith(SPOKEN.strip())


def test_there_and_back(original: HookedWhisper, path: Path, tmp_path: Path) -> None:
    """From OpenAI's file to Hugging Face's folder to OpenAI's file: every bit of every tensor."""
    original.save_pretrained(tmp_path / "hf", format="huggingface")
    middle = HookedWhisper.from_pretrained(tmp_path / "hf", device="cpu", dtype="auto")
    middle.save_pretrained(tmp_path / "b.pt", format="openai")
    first, last = (torch.load(each, weights_only=True) for each in (path, tmp_path / "b.pt"))
    assert first["dims"] == last["dims"]
    assert first["model_state_dict"].keys() == last["model_state_dict"].keys()
    for name, value in first["model_state_dict"].items():
        assert torch.equal(value, last["model_state_dict"][name]), name
