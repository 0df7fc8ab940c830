"""The configuration of a hooked Whisper, and the glossary of its axes.

Axis names, used in every shape annotation and in every cache:

    batch     recordings side by side
    mel       mel frequency bands (80, or 128 in large-v3 and turbo)
    frame     mel frames, 10 ms each (3000 in Whisper's 30 s window)
    pos       positions of a stack: encoder positions of 20 ms, or decoder tokens
    query     the positions that attend
    key       the positions attended to
    head      attention heads
    d_head    width of one head
    d_model   width of the residual stream
    d_mlp     width of an MLP's hidden layer
    vocab     tokens
    layer     blocks of a stack
    latent    latents of a sparse autoencoder
"""

from dataclasses import asdict, dataclass, fields, replace
from dataclasses import field as dataclass_field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from hooked_whisper.errors import ConfigError, NoDecoderError, shown

if TYPE_CHECKING:
    from whisper.model import ModelDimensions

Stack = Literal["encoder", "decoder"]

SAMPLE_RATE_HZ = 16_000
HOP_LENGTH = 160
"""Samples from one mel frame to the next: 10 ms."""
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP_LENGTH
FRAMES_PER_POSITION = 2
"""The second convolution has stride 2: an encoder position is 20 ms."""
POSITIONS_PER_SECOND = FRAMES_PER_SECOND // FRAMES_PER_POSITION
POSITION_S = 1 / POSITIONS_PER_SECOND

D_VOCABS = (51864, 51865, 51866)
"""Whisper's vocabularies: English only, 99 languages, 100 languages (from large-v3 on)."""
END_OF_TEXT = {51864: 50256, 51865: 50257, 51866: 50257}
"""`<|endoftext|>` of each: the first token that is no text."""
_BYTES = {bytes([byte]) for byte in range(256)}
_TEXT_SIZES = ("n_text_ctx", "n_text_layers", "n_text_heads", "d_vocab")
"""What an encoder alone has none of."""
FLAGS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")
"""Switches for hook points that cost memory; off by default, as in TransformerLens."""


@dataclass(frozen=True)
class Vocabulary:
    """What a fine-tune's vocabulary has other than one of Whisper's.

    Args:
        base: The vocabulary whose special tokens it has: 51864, 51865 or 51866 tokens.
        special: Tokens behind them that are no text, as `<|...|>` are, each with its id.
        text: Those that are text, as they are written.
        ordinary: Tokens of text before the special ones, where they are not OpenAI's: in
            GPT-2's letters for bytes, one a line in the order of ids, which is that of merging.
            None are others that could not be read: texts are refused, and ids spelled out.

    Raises:
        ConfigError: Another base, ids that are none or are twice, or that the base has.
    """

    base: int
    special: tuple[tuple[str, int], ...] = ()
    text: tuple[tuple[str, int], ...] = ()
    ordinary: str | None = dataclass_field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.base not in D_VOCABS:
            raise ConfigError(f"the base of a vocabulary is {self.base!r}; it can be {D_VOCABS}.")
        rows = [row for part in (self.special, self.text) for row in part]
        for row in rows:
            is_row = len(row) == 2 and isinstance(row[0], str) and type(row[1]) is int
            if not is_row or not row[0] or row[1] < self.base:
                raise ConfigError(
                    f"{str(row)[:60]} is no added token; each is a text and an id from "
                    f"{self.base} on."
                )
        if len({row[0] for row in rows}) < len(rows) or len({row[1] for row in rows}) < len(rows):
            raise ConfigError("a vocabulary has two tokens of one text or of one id.")
        if self.ordinary:
            self.ranks()

    def ranks(self) -> dict[bytes, int]:
        """The id of each token in `ordinary`."""
        letters, ranks = byte_letters(), {}
        lines = (self.ordinary or "").split("\n")
        for number, line in enumerate(lines):
            if line and not set(line) <= set(letters):
                raise ConfigError(f"the ordinary token {line[:60]!r} is not in GPT-2's letters.")
            if line:
                ranks[bytes(letters[letter] for letter in line)] = number
        n_most = END_OF_TEXT[self.base]
        if len(ranks) < sum(map(bool, lines)) or len(lines) > n_most or not _BYTES <= set(ranks):
            raise ConfigError(
                f"a vocabulary's ordinary tokens must be each byte and others, none twice, at most "
                f"{n_most} before the special ones."
            )
        return ranks

    @classmethod
    def from_dict(cls, values: Any) -> "Vocabulary":
        """The vocabulary that `HookedWhisperConfig.to_dict` wrote."""
        parts = {"base", "special", "text", "ordinary"}
        if not isinstance(values, dict) or set(values) | {"ordinary"} != parts:
            raise ConfigError(f"a vocabulary has {sorted(parts)}, and not {str(values)[:60]}.")
        special, text = values["special"], values["text"]
        ordinary = values.get("ordinary", "")
        if not isinstance(ordinary, str | None):
            raise ConfigError(f"the ordinary tokens of a vocabulary are {str(ordinary)[:60]}.")
        if not all(isinstance(row, list | tuple) for part in (special, text) for row in part or ()):
            raise ConfigError("the tokens of a vocabulary are pairs of text and id.")
        return cls(values["base"], tuple(map(tuple, special)), tuple(map(tuple, text)), ordinary)


@cache
def byte_letters() -> dict[str, int]:
    """GPT-2's letter for each byte: itself where it can be seen, else one from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {
        chr(256 + place): byte for place, byte in enumerate(hidden)
    }


@dataclass(frozen=True)
class HookedWhisperConfig:
    """Sizes and switches of one Whisper; sizes carry OpenAI's meaning.

    The prefix says the stack: `n_audio_*` is the encoder's, `n_text_*` the
    decoder's. Both stacks share one width, as in every released Whisper. An encoder
    alone has 0 for `n_text_*` and `d_vocab`; see `encoder_alone`.

    Raises:
        ConfigError: A size that is no positive integer, heads that do not
            divide the width, or a width that has no sinusoids.

    Source: Radford et al. 2022, table 1; `ModelDimensions` in openai-whisper.
    """

    n_mels: int
    n_audio_ctx: int
    n_audio_layers: int
    n_audio_heads: int
    n_text_ctx: int
    n_text_layers: int
    n_text_heads: int
    d_model: int
    d_vocab: int
    model_name: str = "custom"
    ln_eps: float = 1e-5
    use_attn_result: bool = False
    use_split_qkv_input: bool = False
    use_attn_in: bool = False
    use_hook_mlp_in: bool = False
    tie_unembedding: bool = True
    key_bias: bool = False
    vocabulary: Vocabulary | None = None

    def __post_init__(self) -> None:
        absent = () if any(getattr(self, name) != 0 for name in _TEXT_SIZES) else _TEXT_SIZES
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (isinstance(value, bool) or not isinstance(value, int)):
                raise ConfigError(f"{field.name} is {value!r}; it must be an integer.")
            if field.type is int and value < 1 and field.name not in absent:
                raise ConfigError(f"{field.name} is {value}; it must be at least 1.")
            if field.type is bool and not isinstance(value, bool):
                raise ConfigError(f"{field.name} is {value!r}; it must be True or False.")
        if not isinstance(self.ln_eps, float) or not 0 < self.ln_eps < 1:
            raise ConfigError(f"ln_eps is {self.ln_eps!r}; it must be a number between 0 and 1.")
        if not isinstance(self.model_name, str):
            raise ConfigError(f"model_name is {self.model_name!r}; it must be a string.")
        if self.vocabulary is not None and any(
            number >= self.d_vocab
            for part in (self.vocabulary.special, self.vocabulary.text)
            for _, number in part
        ):
            raise ConfigError(f"a token is out of the vocabulary: d_vocab is {self.d_vocab}.")
        if self.d_model % 2 or self.d_model < 4:
            raise ConfigError(
                f"d_model is {self.d_model}; sinusoidal audio positions need an even width of at "
                "least 4."
            )
        for name in ("n_audio_heads", "n_text_heads"):
            n_heads = getattr(self, name) or 1
            if self.d_model % n_heads:
                raise ConfigError(
                    f"{name} is {n_heads}, which does not divide d_model {self.d_model}."
                )

    @property
    def has_decoder(self) -> bool:
        """Whether there is a decoder: not in an audio tower, or an encoder for classification."""
        return self.n_text_ctx > 0

    def need_decoder(self) -> None:
        """Raise NoDecoderError where there is no decoder."""
        if not self.has_decoder:
            raise NoDecoderError

    def encoder_alone(self) -> "HookedWhisperConfig":
        """The same encoder without a decoder.

        >>> HookedWhisperConfig.for_release("tiny").encoder_alone().has_decoder
        False
        """
        without: dict[str, Any] = dict.fromkeys(_TEXT_SIZES, 0)
        return replace(self, **without, vocabulary=None)

    @property
    def d_mlp(self) -> int:
        """Width of an MLP's hidden layer: four times the residual stream's."""
        return 4 * self.d_model

    @property
    def n_frames(self) -> int:
        """Mel frames that the encoder takes: two for each of its positions."""
        return FRAMES_PER_POSITION * self.n_audio_ctx

    @property
    def n_samples(self) -> int:
        """Audio samples at 16 kHz that fill the encoder's window."""
        return self.n_frames * HOP_LENGTH

    @property
    def window_s(self) -> float:
        """Length of the encoder's window, in seconds (30 for every release)."""
        return self.n_frames / FRAMES_PER_SECOND

    @property
    def is_multilingual(self) -> bool:
        """Whether the vocabulary has language tokens (OpenAI's rule: 51,865 or more)."""
        return self.base_vocab >= 51865

    @property
    def base_vocab(self) -> int:
        """How many tokens come before those that a fine-tune added."""
        return self.d_vocab if self.vocabulary is None else self.vocabulary.base

    @property
    def n_languages(self) -> int:
        """Languages in the vocabulary (99, or 100 from large-v3 on; OpenAI's rule)."""
        return self.base_vocab - 51765 - int(self.is_multilingual)

    @property
    def dims(self) -> "ModelDimensions":
        """The same sizes as openai-whisper's `ModelDimensions`."""
        from whisper.model import ModelDimensions

        return ModelDimensions(
            n_mels=self.n_mels,
            n_audio_ctx=self.n_audio_ctx,
            n_audio_state=self.d_model,
            n_audio_head=self.n_audio_heads,
            n_audio_layer=self.n_audio_layers,
            n_vocab=self.d_vocab,
            n_text_ctx=self.n_text_ctx,
            n_text_state=self.d_model,
            n_text_head=self.n_text_heads,
            n_text_layer=self.n_text_layers,
        )

    def n_layers(self, stack: Stack) -> int:
        """Blocks of one stack."""
        return self.n_audio_layers if stack == "encoder" else self.n_text_layers

    def n_heads(self, stack: Stack) -> int:
        """Attention heads of one stack; cross-attention has the decoder's."""
        return self.n_audio_heads if stack == "encoder" else self.n_text_heads

    def d_head(self, stack: Stack) -> int:
        """Width of one head of a stack."""
        return self.d_model // max(1, self.n_heads(stack))

    @classmethod
    def for_release(cls, name: str, **changes: Any) -> "HookedWhisperConfig":
        """The configuration of an OpenAI release, by its name in openai-whisper.

        Args:
            name: `"tiny"`, `"tiny.en"`, ... `"large-v3"`, `"turbo"`.
            changes: Fields to set otherwise, for smaller relatives of a release.

        Raises:
            ConfigError: No release has this name.

        >>> HookedWhisperConfig.for_release("tiny.en").d_vocab
        51864
        """
        size, _, language = name.partition(".")
        if size not in _SIZES or language not in ("", "en") or (language and size in _NO_ENGLISH):
            raise ConfigError(
                f"no Whisper release is called {name!r}. Releases: {', '.join(release_names())}."
            )
        d_model, n_heads, n_audio_layers, n_text_layers = _SIZES[size]
        third = size in _THIRD_GENERATION
        base = cls(
            n_mels=128 if third else 80,
            n_audio_ctx=1500,
            n_audio_layers=n_audio_layers,
            n_audio_heads=n_heads,
            n_text_ctx=448,
            n_text_layers=n_text_layers,
            n_text_heads=n_heads,
            d_model=d_model,
            d_vocab=51866 if third else 51864 if language else 51865,
            model_name=name,
        )
        return replace(base, **changes)

    @classmethod
    def from_dims(cls, dims: Any, model_name: str = "custom") -> "HookedWhisperConfig":
        """The configuration for openai-whisper's `ModelDimensions`.

        Raises:
            ConfigError: The two stacks differ in width, which cross-attention does not allow.
        """
        if not hasattr(dims, "n_audio_state"):
            raise ConfigError(
                f"{shown(dims)} has no sizes; from_dims takes openai-whisper's ModelDimensions."
            )
        if dims.n_audio_state != dims.n_text_state:
            raise ConfigError(
                f"n_audio_state is {dims.n_audio_state} and n_text_state is {dims.n_text_state}; "
                "both stacks of a Whisper have one width."
            )
        return cls(
            n_mels=dims.n_mels,
            n_audio_ctx=dims.n_audio_ctx,
            n_audio_layers=dims.n_audio_layer,
            n_audio_heads=dims.n_audio_head,
            n_text_ctx=dims.n_text_ctx,
            n_text_layers=dims.n_text_layer,
            n_text_heads=dims.n_text_head,
            d_model=dims.n_audio_state,
            d_vocab=dims.n_vocab,
            model_name=model_name,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HookedWhisperConfig":
        """The configuration that `to_dict` wrote.

        Raises:
            ConfigError: A field is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.type is int}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown fields {unknown}; a config has {sorted(known)}.")
        if missing := sorted(needed - set(values)):
            raise ConfigError(f"missing fields {missing}.")
        if values.get("vocabulary") is not None:
            values = {**values, "vocabulary": Vocabulary.from_dict(values["vocabulary"])}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, ready for JSON."""
        values = asdict(self)
        if self.vocabulary is None:
            del values["vocabulary"]
        elif self.vocabulary.ordinary == "":
            del values["vocabulary"]["ordinary"]
        return values


# name: (width, heads, encoder layers, decoder layers)
_SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (384, 6, 4, 4),
    "base": (512, 8, 6, 6),
    "small": (768, 12, 12, 12),
    "medium": (1024, 16, 24, 24),
    "large-v1": (1280, 20, 32, 32),
    "large-v2": (1280, 20, 32, 32),
    "large-v3": (1280, 20, 32, 32),
    "large": (1280, 20, 32, 32),
    "large-v3-turbo": (1280, 20, 32, 4),
    "turbo": (1280, 20, 32, 4),
}
_THIRD_GENERATION = {"large-v3", "large", "large-v3-turbo", "turbo"}
_NO_ENGLISH = {size for size in _SIZES if size.startswith("large") or size == "turbo"}


def release_names() -> list[str]:
    """The names of OpenAI's releases, as openai-whisper spells them."""
    return [
        name
        for size in _SIZES
        for name in ([size] if size in _NO_ENGLISH else [size + ".en", size])
    ]
