"""One set of weights in three implementations: this one, openai-whisper's and transformers'.

`family` runs a test for every size in `SIZES` and `digits`, which has trained weights;
`short`, `narrow` and `digits` are single ones. Models are shared by a file
and must stay as they are. Weights are random, at
scales at which attention has peaks and logits are of order 10; transformers' names are
written out here, so that a slip in the package's own renaming shows.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hooked_whisper
from hooked_whisper import HookedWhisper, HookedWhisperConfig

TOLERANCE = 1e-5
"""For float32 values of order 10: about ten roundings of the last bit."""

TRAINED = 4
"""Times that tolerance for the logits of digits: up to 5e-5 is what float32 keeps of them.

That is their distance from float64, in any of the three implementations.
"""

DIGITS = Path(hooked_whisper.__file__).parent / "weights" / "digits" / "model.safetensors"
RECORDINGS = DIGITS.parent / "recordings"
SPOKEN = ["george-7.flac", "jackson-3-1-4.flac", "yweweler-6-0-3-7-2.flac"]
"""Sequences of one, three and five digits, so that their rows end at different lengths."""

_for = HookedWhisperConfig.for_release
SIZES: dict[str, HookedWhisperConfig] = {
    "tiny": _for("tiny"),
    # Small relatives of the other releases: their vocabulary and mel bands, fewer layers.
    "short": _for("tiny", n_audio_ctx=50, d_model=48, n_audio_heads=4, n_text_heads=6),
    # Tiny with fewer words: its logits of three rows of 448 tokens take 5 MB, not 280.
    "few words": _for("tiny", d_vocab=1000),
    # All of Tiny's text positions and layers, small, for tests at every length.
    "narrow": _for(
        "tiny", n_audio_ctx=50, d_model=48, n_audio_heads=4, n_text_heads=6, d_vocab=500
    ),
    "tiny.en": _for("tiny.en", n_audio_ctx=60, d_model=48, n_audio_heads=6, n_text_heads=4),
    "large-v3": _for(
        "large-v3",
        n_audio_ctx=40,
        n_audio_layers=8,
        n_text_layers=8,
        d_model=32,
        n_audio_heads=4,
        n_text_heads=2,
    ),
    "turbo": _for(
        "turbo", n_audio_ctx=40, n_audio_layers=8, d_model=32, n_audio_heads=2, n_text_heads=4
    ),
}


@dataclass(frozen=True)
class Family:
    """The same weights in every implementation, and something to run them on.

    Args:
        hooked: This package's model.
        openai: openai-whisper's.
        mel: Three recordings; at Tiny's full size one, unless slow tests run.
        tokens: As many tokens for each as the decoder has positions.
    """

    hooked: HookedWhisper
    openai: Any
    mel: Tensor
    tokens: Tensor

    @property
    def times(self) -> float:
        """What `assert_close` is to allow for logits."""
        return TRAINED if self.hooked.cfg.model_name == "digits" else 1

    @cached_property
    def encoded(self) -> Tensor:
        """Our encoder's output for the recordings."""
        with torch.no_grad():
            return self.hooked(self.mel)

    @cached_property
    def hf(self) -> Any:
        """transformers' model; `with hf_attention("eager")` chooses how it attends."""
        return hf_twin(self.hooked)

    @contextmanager
    def hf_attention(self, implementation: str) -> Iterator[Any]:
        """transformers' model, attending by `"eager"` or `"sdpa"`."""
        self.hf.set_attn_implementation(implementation)
        try:
            yield self.hf
        finally:
            self.hf.set_attn_implementation("sdpa")


@pytest.fixture(scope="module")
def _made() -> dict[str, Family]:
    """What `make_family` has made so far."""
    return {}


@pytest.fixture(scope="module")
def make_family(
    _made: dict[str, Family], make_reference: Callable[..., Any], pytestconfig: pytest.Config
) -> Callable[[str], Family]:
    """The family of a size, or of `"digits"`, made once."""
    n_of_tiny = 3 if pytestconfig.getoption("--slow") else 1

    def make(name: str) -> Family:
        if name == "digits" and not DIGITS.exists():
            pytest.skip("the digits weights are not in this checkout")
        if name not in _made:
            if name == "digits":
                hooked = HookedWhisper.from_pretrained("digits", device="cpu")
            else:
                hooked = scaled_random_model(SIZES[name])
            mel, tokens = inputs_for(hooked.cfg)
            if name == "tiny":
                mel, tokens = mel[:n_of_tiny], tokens[:n_of_tiny]
            if name == "digits":
                mel = hooked.to_mel([RECORDINGS / each for each in SPOKEN]).values
            openai = make_reference(hooked, share=True)
            openai.register_buffer("alignment_heads", hooked.alignment_heads, persistent=False)
            _made[name] = Family(hooked, openai, mel, tokens)
        return _made[name]

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Three recordings at Tiny's full size take long: at other sizes they are always tried."""
    for item in items:
        if item.name.endswith("[tiny-3]"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(
    scope="module", params=[*[size for size in SIZES if SIZES[size].d_vocab > 1000], "digits"]
)
def family(
    request: pytest.FixtureRequest, make_family: Callable[[str], Family], _made: dict[str, Family]
) -> Iterator[Family]:
    """Every size with a vocabulary of Whisper's, one after the other."""
    yield make_family(request.param)
    if request.param == "tiny":  # 150 MB, which the other sizes' runs can do without
        del _made["tiny"]
        gc.collect()


@pytest.fixture(scope="module")
def short(make_family: Callable[[str], Family]) -> Family:
    """Tiny's vocabulary and layers with a window of one second."""
    return make_family("short")


@pytest.fixture(scope="module")
def narrow(make_family: Callable[[str], Family]) -> Family:
    """The short model with a vocabulary of 500."""
    return make_family("narrow")


@pytest.fixture(scope="module")
def digits(make_family: Callable[[str], Family]) -> Family:
    """The trained weights that come with the package."""
    return make_family("digits")


@pytest.fixture(autouse=True)
def _as_in_use(without_shape_checks: None) -> Iterator[None]:
    """Forward passes only, and without checks of shapes, which take more than they do."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def assert_close() -> Callable[..., None]:
    """`assert_close(ours, theirs, what, times=1)`: to `times` 1e-5 on values of order 10."""
    return check_close


@pytest.fixture(scope="module")
def assert_same() -> Callable[[Tensor, Tensor, str], None]:
    """`assert_same(ours, theirs, what)`: to the last bit."""
    return check_same


def check_close(ours: Tensor, theirs: Tensor, what: str, times: float = 1) -> None:
    assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)} and {tuple(theirs.shape)}"
    if not torch.isfinite(theirs.sum()):
        finite = theirs.isfinite()  # scores hold -inf where the mask is
        assert torch.equal(ours[~finite], theirs[~finite]), f"{what}: masked in other places"
        ours, theirs = ours[finite], theirs[finite]
    # Rounding is relative: values beyond order 10 may differ by more.
    largest = max(abs(bound.item()) for bound in theirs.aminmax())
    allowed = times * TOLERANCE * max(1.0, largest / 10)
    difference = (ours - theirs).abs_().max().item()
    assert difference <= allowed, f"{what}: differs by {difference:.2e}, more than {allowed:.1e}"


def check_same(ours: Tensor, theirs: Tensor, what: str) -> None:
    assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)} and {tuple(theirs.shape)}"
    assert ours.dtype == theirs.dtype, f"{what}: {ours.dtype} and {theirs.dtype}"
    if not torch.equal(ours, theirs):
        difference = (ours - theirs).abs().nan_to_num(0).max().item()
        raise AssertionError(f"{what}: differs by {difference:.2e}, not by 0")


_GAINS = {".cross_attn.out.": 1.5, ".out.": 0.5, ".fc_out.": 0.5}
"""Standard deviations of weights, times the square root of what they sum over; else 1."""


def scaled_random_model(cfg: HookedWhisperConfig, seed: int = 0) -> HookedWhisper:
    """Random weights under which a model of any size behaves like a trained one in scale.

    Attention scores and residual streams are of order 1 to 10, no bias or
    gain is trivial, and the largest logits are about 10. Positions and the
    recording count for more than the last token, so that decoding does not
    repeat one token.
    """
    model = HookedWhisper(cfg).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if ".ln" in name and name.endswith("weight"):
                parameter.mul_(0.2).add_(1)
            elif name.endswith("embedding.weight"):
                parameter.mul_(1.6).div_(cfg.d_model**0.5)
            elif name.endswith("positional_embedding"):
                parameter.mul_(8).div_(cfg.d_model**0.5)
            elif name.endswith("bias"):
                parameter.mul_(0.1)
            else:
                gain = next((gain for part, gain in _GAINS.items() if part in name), 1.0)
                parameter.mul_(gain).div_(parameter[0].numel() ** 0.5)
    return model


def inputs_for(cfg: HookedWhisperConfig) -> tuple[Tensor, Tensor]:
    """Recordings that differ in more than noise, which attention would average away."""
    generator = torch.Generator().manual_seed(1)
    sounds = torch.randn(3, cfg.n_mels, 10, generator=generator)
    mel = 0.6 * F.interpolate(sounds, cfg.n_frames, mode="linear")
    mel += 0.2 * torch.randn(mel.shape, generator=generator)
    tokens = torch.randint(0, cfg.d_vocab, (3, cfg.n_text_ctx), generator=generator)
    return mel.clamp(-1, 1.5), tokens


def hf_twin(model: HookedWhisper) -> Any:
    """transformers' own model with the weights of a HookedWhisper."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    cfg = model.cfg
    eot = min(50257 if cfg.is_multilingual else 50256, cfg.d_vocab - 2)
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
        pad_token_id=eot,
        bos_token_id=eot,
        eos_token_id=eot,
        decoder_start_token_id=eot + 1,
    )
    with torch.device("meta"):  # no weights are drawn that would be thrown away
        twin = WhisperForConditionalGeneration(config).eval()
    weights = {_hf_name(name): value for name, value in model.state_dict().items()}
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    # Strict: every name of either side has to fit. Assigned, they take no memory of their own.
    twin.load_state_dict(weights, assign=True)
    settings = {
        "is_multilingual": cfg.is_multilingual,
        "lang_to_id": {"<|en|>": eot + 2},
        "task_to_id": {"transcribe": 50359, "translate": 50358},
        # Of a vocabulary of Whisper's, what that one has.
        "no_timestamps_token_id": {51864: 50362, 51866: 50364}.get(cfg.d_vocab, 50363),
        "begin_suppress_tokens": None,
        "suppress_tokens": None,
        "max_length": None,
    }
    for name, value in settings.items():  # what generate needs, which a fresh model lacks
        setattr(twin.generation_config, name, value)
    return twin


_HF_PARTS = {
    "blocks": "layers",
    "attn": "self_attn",
    "cross_attn": "encoder_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
    "ln1": "self_attn_layer_norm",
    "ln2": "encoder_attn_layer_norm",  # in the encoder: final_layer_norm
    "ln3": "final_layer_norm",
    "mlp": "",
    "fc_in": "fc1",
    "fc_out": "fc2",
    "ln_final": "layer_norm",
    "token_embedding": "embed_tokens",
    "positional_embedding": "embed_positions.weight",
}


def _hf_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "encoder":
        parts = ["ln3" if part == "ln2" else part for part in parts]
    renamed = [_HF_PARTS.get(part, part) for part in parts]
    return ".".join(["model", *(part for part in renamed if part)])
