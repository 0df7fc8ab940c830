"""A config holds only what a Whisper can have, and says why not."""

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import whisper
from whisper.model import ModelDimensions

from hooked_whisper.config import FLAGS, HookedWhisperConfig, release_names
from hooked_whisper.errors import ConfigError

SIZES = [
    "n_mels",
    "n_audio_ctx",
    "n_audio_layers",
    "n_audio_heads",
    "n_text_ctx",
    "n_text_layers",
    "n_text_heads",
    "d_model",
    "d_vocab",
]
SWITCHES = [*FLAGS, "tie_unembedding", "key_bias"]


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """What users run: the tests' own checks would answer before the config does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("without_type_checks")
class TestChecks:
    @pytest.mark.parametrize("value", [0, -1], ids=str)
    @pytest.mark.parametrize("name", SIZES)
    def test_sizes_are_positive(self, name: str, value: int, tiny_cfg: Any) -> None:
        with pytest.raises(ConfigError, match=f"{name} is {value}; it must be at least 1"):
            replace(tiny_cfg, **{name: value})

    @pytest.mark.parametrize("value", [2.0, "2", None, True], ids=repr)
    @pytest.mark.parametrize("name", SIZES)
    def test_sizes_are_integers(self, name: str, value: Any, tiny_cfg: Any) -> None:
        with pytest.raises(ConfigError, match=f"{name} is {value!r}; it must be an integer"):
            replace(tiny_cfg, **{name: value})

    @pytest.mark.parametrize("value", [1, "yes", None], ids=repr)
    @pytest.mark.parametrize("name", SWITCHES)
    def test_switches_are_true_or_false(self, name: str, value: Any, tiny_cfg: Any) -> None:
        with pytest.raises(ConfigError, match=f"{name} is {value!r}; it must be True or False"):
            replace(tiny_cfg, **{name: value})

    @pytest.mark.parametrize("name", ["n_audio_heads", "n_text_heads"])
    def test_heads_divide_the_width(self, name: str, tiny_cfg: Any) -> None:
        with pytest.raises(ConfigError, match=f"{name} is 5, which does not divide d_model 24"):
            replace(tiny_cfg, **{name: 5})

    @pytest.mark.parametrize("d_model", [1, 2, 3, 25], ids=str)
    def test_width_has_sinusoids(self, d_model: int, tiny_cfg: Any) -> None:
        with pytest.raises(ConfigError, match=f"d_model is {d_model}; sinusoidal .* even width"):
            replace(tiny_cfg, n_audio_heads=1, n_text_heads=1, d_model=d_model)

    def test_is_a_value_error(self, tiny_cfg: Any) -> None:
        with pytest.raises(ValueError, match="n_mels is 0"):
            replace(tiny_cfg, n_mels=0)

    def test_is_frozen(self, tiny_cfg: Any) -> None:
        with pytest.raises(FrozenInstanceError, match="n_mels"):
            tiny_cfg.n_mels = 3


class TestSizes:
    def test_of_stacks(self, tiny_cfg: Any) -> None:
        assert [tiny_cfg.n_layers(stack) for stack in ("encoder", "decoder")] == [2, 3]
        assert [tiny_cfg.n_heads(stack) for stack in ("encoder", "decoder")] == [2, 3]
        assert [tiny_cfg.d_head(stack) for stack in ("encoder", "decoder")] == [12, 8]
        assert tiny_cfg.d_mlp == 96

    def test_of_the_window(self, tiny_cfg: Any) -> None:
        assert (tiny_cfg.n_frames, tiny_cfg.n_samples, tiny_cfg.window_s) == (60, 9600, 0.6)
        assert HookedWhisperConfig.for_release("tiny").window_s == 30


class TestReleases:
    def test_are_openai_whispers(self) -> None:
        assert release_names() == whisper.available_models()

    # Sizes of the published checkpoints' "dims": d_model, heads, encoder and decoder layers, mels,
    # vocabulary; languages as the model card counts them.
    @pytest.mark.parametrize(
        ("name", "sizes", "n_languages"),
        [
            ("tiny.en", (384, 6, 4, 4, 80, 51864), None),
            ("tiny", (384, 6, 4, 4, 80, 51865), 99),
            ("base", (512, 8, 6, 6, 80, 51865), 99),
            ("small.en", (768, 12, 12, 12, 80, 51864), None),
            ("medium", (1024, 16, 24, 24, 80, 51865), 99),
            ("large-v1", (1280, 20, 32, 32, 80, 51865), 99),
            ("large-v2", (1280, 20, 32, 32, 80, 51865), 99),
            ("large-v3", (1280, 20, 32, 32, 128, 51866), 100),
            ("large", (1280, 20, 32, 32, 128, 51866), 100),
            ("turbo", (1280, 20, 32, 4, 128, 51866), 100),
            ("large-v3-turbo", (1280, 20, 32, 4, 128, 51866), 100),
        ],
    )
    def test_have_their_sizes(
        self, name: str, sizes: tuple[int, ...], n_languages: int | None
    ) -> None:
        cfg = HookedWhisperConfig.for_release(name)
        layers = (cfg.n_audio_layers, cfg.n_text_layers)
        assert (cfg.d_model, cfg.n_text_heads, *layers, cfg.n_mels, cfg.d_vocab) == sizes
        assert cfg.n_audio_heads == cfg.n_text_heads
        assert (cfg.n_audio_ctx, cfg.n_text_ctx) == (1500, 448)
        assert cfg.model_name == name
        assert cfg.is_multilingual == (n_languages is not None)
        if n_languages:
            assert cfg.n_languages == n_languages

    def test_with_changes(self) -> None:
        cfg = HookedWhisperConfig.for_release("turbo", n_audio_layers=2, use_attn_in=True)
        assert (cfg.n_audio_layers, cfg.n_text_layers, cfg.use_attn_in) == (2, 4, True)

    @pytest.mark.parametrize("name", ["huge", "large.en", "turbo.en", "tiny.de", "", "Tiny"])
    def test_that_do_not_exist(self, name: str) -> None:
        with pytest.raises(ConfigError, match=rf"called '{name}'\. Releases: tiny\.en, tiny, base"):
            HookedWhisperConfig.for_release(name)


class TestOtherForms:
    def test_openai_dimensions_and_back(self, tiny_cfg: Any) -> None:
        dims = tiny_cfg.dims
        assert isinstance(dims, ModelDimensions)
        assert HookedWhisperConfig.from_dims(dims, "tiny-random") == tiny_cfg

    def test_two_widths(self, tiny_cfg: Any) -> None:
        dims = SimpleNamespace(**{**vars(tiny_cfg.dims), "n_text_state": 48})
        with pytest.raises(ConfigError, match="n_audio_state is 24 and n_text_state is 48"):
            HookedWhisperConfig.from_dims(dims)

    def test_dict_and_back(self, tiny_cfg: Any) -> None:
        cfg = replace(tiny_cfg, use_attn_result=True, key_bias=True, ln_eps=1e-6)
        assert HookedWhisperConfig.from_dict(cfg.to_dict()) == cfg

    @pytest.mark.usefixtures("without_type_checks")
    @pytest.mark.parametrize(
        "value", ["1e-5", 0.0, -1e-5, 1.0, float("inf"), float("nan"), 1], ids=str
    )
    def test_ln_eps_that_is_none(self, value: Any, tiny_cfg: Any) -> None:
        with pytest.raises(ConfigError, match="must be a number between 0 and 1"):
            replace(tiny_cfg, ln_eps=value)

    def test_unknown_field(self, tiny_cfg: Any) -> None:
        with pytest.raises(
            ConfigError, match=r"unknown fields \['n_mel'\]; a config has .*'n_mels'"
        ):
            HookedWhisperConfig.from_dict({**tiny_cfg.to_dict(), "n_mel": 80})

    def test_missing_field(self, tiny_cfg: Any) -> None:
        values = tiny_cfg.to_dict()
        del values["d_vocab"], values["use_attn_in"]
        with pytest.raises(ConfigError, match=r"missing fields \['d_vocab'\]\."):
            HookedWhisperConfig.from_dict(values)
