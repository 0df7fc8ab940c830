"""Checkpoints in their real formats, a bare module to load them into, and a local server."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.weights import LoadedWeights, assign_weights
from hooked_whisper.weights.rename import expected_shapes, sizes


@pytest.fixture(scope="session")
def openai_model(tiny_cfg: HookedWhisperConfig) -> nn.Module:
    """openai-whisper's own model, small, with random values everywhere."""
    return random_openai_model(tiny_cfg)


@pytest.fixture(scope="session")
def hf_model(tiny_cfg: HookedWhisperConfig) -> nn.Module:
    """transformers' own model, small, with random values everywhere."""
    return random_hf_model(tiny_cfg)


@pytest.fixture
def random_tiny_openai() -> nn.Module:
    """openai-whisper's own Tiny at its full size."""
    return random_openai_model(HookedWhisperConfig.for_release("tiny"))


@pytest.fixture
def random_tiny_hf() -> nn.Module:
    """transformers' own Tiny at its full size."""
    return random_hf_model(HookedWhisperConfig.for_release("tiny"))


@pytest.fixture(scope="session")
def make_openai() -> Callable[[HookedWhisperConfig], nn.Module]:
    """Makes a random openai-whisper model of any size."""
    return random_openai_model


@pytest.fixture(scope="session")
def make_hf() -> Callable[[HookedWhisperConfig], nn.Module]:
    """Makes a random transformers model of any size."""
    return random_hf_model


@pytest.fixture(scope="session")
def save_openai() -> Callable[..., None]:
    """Writes an openai-whisper model as OpenAI does, in fp16 unless told."""

    def save(model: Any, path: Path, dtype: torch.dtype = torch.float16) -> None:
        torch.save(openai_checkpoint(model, dtype), path)

    return save


@pytest.fixture
def checkpoint(openai_model: nn.Module) -> dict[str, Any]:
    """What OpenAI's `.pt` files hold; a test may change it."""
    return openai_checkpoint(openai_model)


@pytest.fixture
def write_pt(tmp_path: Path) -> Callable[..., Path]:
    """Writes anything with `torch.save` and returns the path."""

    def write(content: Any, name: str = "small.pt", **how: Any) -> Path:
        torch.save(content, tmp_path / name, **how)
        return tmp_path / name

    return write


@pytest.fixture
def hf_folder(hf_model: Any, tmp_path: Path) -> Path:
    """A folder that transformers wrote; a test may change it."""
    hf_model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture(scope="session")
def into_module() -> Callable[..., dict[str, Tensor]]:
    """Assigns loaded weights to a bare module of the right tensors, and returns its state dict."""

    def load(loaded: LoadedWeights, **how: Any) -> dict[str, Tensor]:
        module = bare_module(loaded.cfg)
        assign_weights(module, loaded, **{"device": "cpu", "dtype": torch.float32, **how})
        return module.state_dict()

    return load


@pytest.fixture
def make_module() -> Callable[..., nn.Module]:
    """Makes a module with a Whisper's tensors and nothing else, on the meta device."""
    return bare_module


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serves on this machine; takes `answer(method, path) -> (status, headers, body)`."""
    servers = []

    def start(answer: Callable[[str, str], tuple[int, dict[str, str], bytes]]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(answer))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(60)
        assert not thread.is_alive()
        server.server_close()


def random_openai_model(cfg: HookedWhisperConfig) -> nn.Module:
    from whisper.model import Whisper

    model = Whisper(cfg.dims).eval()
    _randomize(model.state_dict())
    model.register_buffer("alignment_heads", _heads(cfg).to_sparse(), persistent=False)
    return model


def random_hf_model(cfg: HookedWhisperConfig) -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        num_mel_bins=cfg.n_mels,
        max_source_positions=cfg.n_audio_ctx,
        encoder_layers=cfg.n_audio_layers,
        encoder_attention_heads=cfg.n_audio_heads,
        max_target_positions=cfg.n_text_ctx,
        decoder_layers=cfg.n_text_layers,
        decoder_attention_heads=cfg.n_text_heads,
        d_model=cfg.d_model,
        encoder_ffn_dim=cfg.d_mlp,
        decoder_ffn_dim=cfg.d_mlp,
        vocab_size=cfg.d_vocab,
        pad_token_id=1,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=1,
    )
    model = WhisperForConditionalGeneration(config).eval()
    state_dict = model.state_dict()
    state_dict.pop("proj_out.weight")  # it is the embedding
    _randomize(state_dict)
    model.generation_config.alignment_heads = _heads(cfg).nonzero().tolist()
    model.generation_config.suppress_tokens = model.generation_config.begin_suppress_tokens = None
    return model


def openai_checkpoint(model: Any, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    state_dict = {name: value.to(dtype) for name, value in model.state_dict().items()}
    return {"dims": dataclasses.asdict(model.dims), "model_state_dict": state_dict}


def bare_module(cfg: HookedWhisperConfig, device: str = "meta") -> nn.Module:
    module = nn.Module()
    for name, shape in expected_shapes(cfg).items():
        owner, *path = module, *name.split(".")
        for part in path[:-1]:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        values = torch.zeros(sizes(shape, cfg), device=device)
        if name == "encoder.positional_embedding":
            owner.register_buffer(path[-1], values)
        else:
            owner.register_parameter(path[-1], nn.Parameter(values))
    return module


def _randomize(state_dict: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in state_dict.values():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))


def _heads(cfg: HookedWhisperConfig) -> Tensor:
    """Alignment heads that are not the default ones (all heads of the later half)."""
    heads = torch.zeros(cfg.n_text_layers, cfg.n_text_heads, dtype=torch.bool)
    heads[0, 1] = heads[-1, 0] = True
    return heads


def _handler(answer: Callable[[str, str], tuple[int, dict[str, str], bytes]]) -> Any:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self.command, self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
