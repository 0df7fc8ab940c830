"""Hooked decoding with a KV cache, on openai-whisper's own loop and token rules."""

import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from markupsafe import Markup
from torch import Tensor, nn

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.display import box, count, fold, table
from hooked_whisper.errors import HookNameError, InputError, check_number, shown
from hooked_whisper.hooks.cache import WhisperCache
from hooked_whisper.hooks.collector import StepCollector
from hooked_whisper.hooks.names import NamesFilter
from hooked_whisper.hooks.points import HookPoint
from hooked_whisper.model import own_tokens
from hooked_whisper.model.calls import WhisperBase, check_values
from hooked_whisper.model.language import Language, find_languages, told_languages
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import get_tokenizer, is_written

if sys.version_info >= (3, 11):
    from typing import Unpack as Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack
else:

    class Unpack:
        """beartype, which tests check annotations with, knows it from Python 3.11 on."""

        def __class_getitem__(cls, options: Any) -> Any:
            return Any


_DEFAULTS = {"without_timestamps": True, "suppress_blank": False}
NO_SPEECH, UNSURE, SILENT = 0.6, -1.0, 0.9
"""When a recording holds no speech: over such a `no_speech_prob` where the text's mean
log-probability is no higher than this too, as openai-whisper's `transcribe` has it; over the last
one whatever the text. tiny.en gives digital silence 0.95 and a sure "you", and the sentences that
it was tried on 0.2 at most."""
_MOST_TEXTS, _MOST_ROWS = 8, 50
"""Texts that are shown: in a line, and in a notebook's table."""
_OF_SEARCH = ("beam_size", "best_of", "patience", "length_penalty")


class TokenRules(TypedDict, total=False):
    """Of openai-whisper's `DecodingOptions`: which tokens stand before the text and in it."""

    task: str
    prompt: str | list[int] | None
    prefix: str | list[int] | None
    suppress_tokens: str | Iterable[int] | None
    suppress_blank: bool
    without_timestamps: bool
    max_initial_timestamp: float | int | None


class GenerateOptions(TokenRules, total=False):
    """What `generate` takes of openai-whisper's `DecodingOptions`: not those of a search."""

    temperature: float | int


@dataclass(frozen=True)
class Generation:
    """What decoding gave, one row for each recording.

    Args:
        tokens: Prompt, decoded tokens, and end-of-text to the end of the longest row.
        n_prompt: Tokens of the prompt.
        texts: Transcripts, without special tokens.
        avg_logprob: Mean log-probability of the decoded tokens, in nats.
        no_speech_prob: Probability of `<|nospeech|>` at the start; NaN where
            the vocabulary has none.
        languages: Language codes.
        cache: Activations of all steps over `tokens[:, :-1]`, if asked for.
    """

    tokens: Int[Tensor, "batch pos"]
    n_prompt: int
    texts: list[str]
    avg_logprob: Float[Tensor, " batch"]
    no_speech_prob: Float[Tensor, " batch"]
    languages: list[str]
    cache: WhisperCache | None = None

    @property
    def unsure_silence(self) -> Bool[Tensor, " batch"]:
        """Rows of which openai-whisper's `transcribe` takes it that nobody speaks."""
        return (self.no_speech_prob > NO_SPEECH) & (self.avg_logprob <= UNSURE)

    @property
    def silence(self) -> Bool[Tensor, " batch"]:
        """The same, and rows that are silence whatever was written: `skip_silence` drops these."""
        return self.unsure_silence | (self.no_speech_prob > SILENT)

    def __repr__(self) -> str:
        more = (
            "" if len(self.texts) <= _MOST_TEXTS else f" and {len(self.texts) - _MOST_TEXTS} more"
        )
        return f"Generation(texts={self.texts[:_MOST_TEXTS]!r}{more}, cache={self.cache!r})"

    def _repr_html_(self) -> str:
        """Texts with how sure the model is, their tokens, and the cache."""
        header = ["", "text", "language", "avg_logprob (nats)", "no_speech_prob"]
        numbers = zip(self.avg_logprob.tolist(), self.no_speech_prob.tolist(), strict=True)
        rows = [
            [str(i), text, language, *both]
            for i, (text, language, both) in enumerate(
                zip(self.texts, self.languages, numbers, strict=True)
            )
        ]
        tokens = self.tokens[:, self.n_prompt :].tolist()
        ids = [[str(i), " ".join(map(str, row))] for i, row in enumerate(tokens)]
        prompt = " ".join(map(str, self.tokens[0, : self.n_prompt].tolist()))
        parts = [
            table(header, rows, most=_MOST_ROWS),
            fold(f"token ids, behind the prompt {prompt}", table([], ids, most=_MOST_ROWS)),
        ]
        if self.cache is not None:
            parts.append(Markup(self.cache._repr_html_()))
        return box("Generation", count(len(self.texts), "recording"), *parts)


@torch.no_grad()
def generate(
    model: WhisperBase,
    mel: Mel | Float[Tensor, "batch mel frame"] | None = None,
    max_new_tokens: int | None = None,
    *,
    encoder_output: Float[Tensor, "batch pos d_model"] | None = None,
    return_cache: bool = False,
    names_filter: NamesFilter = None,
    language: Language = None,
    skip_silence: bool = False,
    **options: Unpack[GenerateOptions],
) -> Generation:
    """Decode greedily or by sampling, with hooks firing in every step.

    What a hook sees: the encoder runs once. In the first step the decoder
    sees the prompt, in every later step the one new token, so that `pos`
    and `query` have length 1 while `key` holds every position so far.
    Keys and values of cross-attention are computed, and their hooks fire,
    in the first step only. An edit to `hook_k` or `hook_v` stays in the
    cache for later steps. Rows whose text has ended leave the batch, unless
    something is hooked into the decoder.

    Args:
        mel: Recordings side by side.
        max_new_tokens: Tokens to decode at most; None is half the decoder's positions.
        encoder_output: Used instead of running the encoder on a mel.
        return_cache: Also return the activations of all steps, joined: the
            cache of one pass over the same tokens.
        names_filter: Which activations to return.
        language: Of what is said: a code or a name, or one for each recording. None
            has a multilingual model find out, in a pass in which no hook fires.
        skip_silence: Write nothing where the model hears no speech, as `transcribe` does.
        options: Fields of openai-whisper's `DecodingOptions`. Here
            `without_timestamps=True` and `suppress_blank=False` unless told
            otherwise; `temperature` above 0 samples from torch's generator.

    Raises:
        InputError: An unknown option, or one of beam search, which `decode` has;
            neither or both of mel and encoder output; not as many languages as
            recordings; silence skipped in a cache.
        TokenError: A language or task that the model does not have.
        HookNameError: A name that matches nothing, or nothing that fires.

    Source: `whisper.decoding.DecodingTask`, whose loop, token filters and choice of tokens
    run here.
    """
    if (mel is None) == (encoder_output is None):
        what = "neither" if mel is None else "both"
        raise InputError(f"{what} of mel and encoder_output given; pass one of them.")
    if encoder_output is not None:
        check_values("encoder_output", encoder_output)
    if skip_silence and return_cache:
        raise InputError(
            "skip_silence drops texts after they were decoded, so that a cache would not be of the "
            "tokens that are left. Look at no_speech_prob instead."
        )
    # Refuses a vocabulary that is not Whisper's, and a task that it has no token for.
    get_tokenizer(model.cfg, None, options.get("task"))
    told_languages(model.cfg, language)
    task = decoding_task(model, max_new_tokens, {**options})
    task.decoder.reset()
    collector = StepCollector() if return_cache else None
    names = model.hook_names(names_filter) if return_cache else []
    if encoder_output is not None and names and all(n.startswith("encoder") for n in names):
        raise HookNameError(
            f"none of {names_filter!r} fires with encoder_output=, which skips the encoder."
        )

    def collecting() -> Any:
        return model.hooks([(names, collector)]) if collector else nullcontext()

    if encoder_output is None:
        with collecting():
            encoder_output = model.encoder(mel)
    device, n_rows = encoder_output.device, len(encoder_output)
    prompt = torch.tensor([task.initial_tokens], device=device).repeat(n_rows, 1)
    languages = find_languages(model, encoder_output, language)
    if model.cfg.is_multilingual:
        codes = [task.tokenizer.to_language_token(each) for each in languages]
        prompt[:, task.sot_index + 1] = torch.tensor(codes, device=device)
    if n_rows > 1 and not names and not _is_watched(model.decoder):
        task.inference = _UnfinishedRows(task.inference, task.tokenizer.eot)
    with collecting():
        tokens, sum_logprobs, no_speech = task._main_loop(encoder_output, prompt)

    n_prompt, eot = prompt.shape[1], task.tokenizer.eot
    written = [
        [token for token in row if is_written(token, task.tokenizer)]
        for row in tokens[:, n_prompt:].tolist()
    ]
    n_decoded = (tokens[:, n_prompt:] != eot).sum(dim=1) + 1
    found = Generation(
        tokens=tokens,
        n_prompt=n_prompt,
        texts=[task.tokenizer.decode(row).strip() for row in written],
        avg_logprob=sum_logprobs / n_decoded,
        no_speech_prob=torch.tensor(no_speech, device=device),
        languages=languages,
        cache=model._make_cache(collector, mel) if collector else None,
    )
    if skip_silence:
        for row in found.silence.nonzero()[:, 0].tolist():
            found.texts[row] = ""
            tokens[row, n_prompt:] = eot
    return found


def suppressed_tokens(model: WhisperBase) -> list[int]:
    """Tokens that decoding never writes, by openai-whisper's default: symbols that nobody says."""
    return sorted(decoding_task(model, None, {})._get_suppress_tokens())


def _is_watched(decoder: nn.Module) -> bool:
    """Whether anything looks at what goes through the decoder, and has to see every row."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or (isinstance(module, HookPoint) and module.is_hooked)
        for module in decoder.modules()
    )


class _UnfinishedRows:
    """openai-whisper's inference, without the rows whose text has come to its end.

    The loop goes on until the longest text ends, and takes no notice of what comes of the others.

    Args:
        inference: The loop's own.
        eot: The token at which a text ends.
    """

    MOST = 0.75
    """The share of rows that are left when the others go; it costs a copy of keys and values."""

    def __init__(self, inference: Any, eot: int) -> None:
        self._inference, self._eot = inference, eot
        self._rows: Tensor | None = None
        self._encoder_output: Tensor | None = None
        self.cleanup_caching = inference.cleanup_caching

    def logits(self, tokens: Tensor, encoder_output: Tensor) -> Tensor:
        """The next tokens' logits; zeros for the rows that are left out."""
        if self._rows is None or self._encoder_output is None:  # the prompt
            self._rows = torch.arange(len(tokens), device=tokens.device)
            self._encoder_output = encoder_output
            return self._inference.logits(tokens, encoder_output)
        goes_on = tokens[self._rows, -1] != self._eot
        if int(goes_on.sum()) <= self.MOST * len(self._rows):
            self._inference.kv_cache.keep_rows(goes_on.nonzero()[:, 0])
            self._encoder_output = self._encoder_output[goes_on]
            self._rows = self._rows[goes_on]
        some = self._inference.logits(tokens[self._rows], self._encoder_output)
        if len(some) == len(tokens):
            return some
        return some.new_zeros(len(tokens), *some.shape[1:]).index_copy_(0, self._rows, some)


def decoding_task(model: WhisperBase, max_new_tokens: int | None, options: dict[str, Any]) -> Any:
    """openai-whisper's decoding loop, with the prompt that the options make.

    Raises:
        InputError: Options of other types or values than it can use.
    """
    check_number("temperature", options.get("temperature", 0.0), InputError, 0)
    made = _decoding_options(model.cfg, max_new_tokens, options)
    try:
        task = own_tokens.decoding_task(model.cfg)(model, made)
        torch.tensor(task.initial_tokens, dtype=torch.int64)
    except Exception as error:  # openai-whisper does not look at what it is given
        raise InputError(
            f"no text can be decoded with {shown(options)}: {shown(str(error))}. These are fields "
            "of openai-whisper's DecodingOptions, whose help tells their types."
        ) from error
    return task


def _decoding_options(
    cfg: HookedWhisperConfig, max_new_tokens: int | None, options: dict[str, Any]
) -> Any:
    """openai-whisper's options, with this package's defaults."""
    from whisper.decoding import DecodingOptions

    known = {field.name for field in fields(DecodingOptions)} - {
        *_OF_SEARCH,
        "fp16",
        "sample_len",
        "language",
    }
    for name in options:
        if name in _OF_SEARCH:
            raise InputError(
                f"generate decodes one hypothesis; {name} is an option of model.decode."
            )
        if name not in known:
            raise InputError(f"generate has no option {name!r}; it has {sorted(known)}.")
    limits = range(1, cfg.n_text_ctx + 1)
    if max_new_tokens is not None and not (
        type(max_new_tokens) is int and max_new_tokens in limits
    ):
        raise InputError(
            f"max_new_tokens is {shown(max_new_tokens)}; it can be 1 to {cfg.n_text_ctx}."
        )
    return DecodingOptions(
        **{**_DEFAULTS, **options}, language="en", fp16=False, sample_len=max_new_tokens
    )
