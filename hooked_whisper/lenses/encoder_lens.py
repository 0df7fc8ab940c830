"""The encoder lens: what the decoder says if the encoder stops early.

Source: Langedijk et al. 2023, "DecoderLens", arXiv 2310.03686.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.errors import InputError, check_index
from hooked_whisper.hooks.passes import running
from hooked_whisper.model.generate import Generation
from hooked_whisper.model.language import find_languages
from hooked_whisper.model.whisper import HookedWhisper
from hooked_whisper.speech.mel import Mel
from hooked_whisper.speech.tokens import check_tokens, get_tokenizer, has_tokenizer, is_text

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas


@dataclass(frozen=True, eq=False)
class EncoderLens:
    """What the decoder makes of the encoder's stream after each number of layers.

    Args:
        layers: Encoder layers that ran: 0 is the convolutions alone, the
            last one Whisper itself.
        final_ln: Whether the encoder's final LayerNorm was applied.
        generations: The decoding after each of these, if asked for.
        tokens: The reference tokens, if given.
        logprobs: Log-probability of each token of `tokens[:, 1:]` given those
            before it, in nats.
        counted: Which of these `mean_logprobs` counts: neither the start
            sequence, nor what follows the first end-of-text.
    """

    layers: tuple[int, ...]
    final_ln: bool
    generations: tuple[Generation, ...] | None
    tokens: Int[Tensor, "batch pos"] | None
    logprobs: Float[Tensor, "layer batch next_pos"] | None
    counted: Bool[Tensor, "batch next_pos"] | None

    @property
    def texts(self) -> list[list[str]]:
        """The transcript after each number of layers, of each recording."""
        if self.generations is None:
            raise InputError("there are no transcripts. Call encoder_lens(..., transcribe=True).")
        return [generation.texts for generation in self.generations]

    @property
    def mean_logprobs(self) -> Float[Tensor, "layer batch"]:
        """Mean log-probability of the reference's tokens, in nats; end-of-text is one of them."""
        if self.logprobs is None or self.counted is None:
            raise InputError("there is no reference. Call encoder_lens(model, mel, tokens).")
        counted = self.counted.to(self.logprobs)
        return (self.logprobs * counted).sum(dim=-1) / counted.sum(dim=-1)

    def emerges_at(self, texts: Sequence[str] | None = None) -> list[int | None]:
        """Layers after which each recording's transcript is there to stay.

        Args:
            texts: What the transcripts should be; None is that after the
                last of the layers.

        Returns:
            The smallest number of layers from which on every transcript is
            the given one; None where the last is not.
        """
        found = self.texts
        wanted = found[-1] if texts is None else [text.strip() for text in texts]
        if len(wanted) != len(found[-1]):
            raise InputError(f"{len(wanted)} texts for {len(found[-1])} recordings; give one each.")
        emerged: list[int | None] = []
        for row, text in enumerate(wanted):
            at = None
            for layer, texts_there in reversed(list(zip(self.layers, found, strict=True))):
                if texts_there[row] != text:
                    break
                at = layer
            emerged.append(at)
        return emerged

    def to_dataframe(self) -> "pandas.DataFrame":
        """One line for each number of layers and each recording."""
        import pandas as pd

        lines = []
        for place, layer in enumerate(self.layers):
            for row in range(self._n_rows):
                line: dict[str, Any] = {"layer": layer, "batch": row}
                if self.generations is not None:
                    generation = self.generations[place]
                    line["text"] = generation.texts[row]
                    line["avg_logprob"] = float(generation.avg_logprob[row])
                    line["no_speech_prob"] = float(generation.no_speech_prob[row])
                if self.logprobs is not None:
                    line["reference_logprob"] = float(self.mean_logprobs[place, row])
                lines.append(line)
        return pd.DataFrame(lines)

    def plot(self, row: int = 0, title: str = "") -> "matplotlib.figure.Figure":
        """The transcript after each number of layers, beside its log-probability."""
        from hooked_whisper.figures.lenses import plot_encoder_lens

        if self.logprobs is not None:
            check_index("row", row, self.logprobs.shape[1], InputError)
            probs, label = self.mean_logprobs[:, row].exp(), "probability of the reference"
        else:
            generations = self.generations or ()
            check_index("row", row, len(generations[0].texts), InputError)
            of_text = [generation.avg_logprob[row] for generation in generations]
            probs, label = torch.stack(of_text).exp(), "probability of the transcript"
        texts = [of_layer[row] for of_layer in self.texts] if self.generations else None
        return plot_encoder_lens(probs, self.layers, texts, label=label, title=title)

    @property
    def _n_rows(self) -> int:
        if self.generations is not None:
            return len(self.generations[0].texts)
        assert self.tokens is not None
        return len(self.tokens)


def encoder_lens(
    model: HookedWhisper,
    mel: Mel | Float[Tensor, "batch mel frame"],
    tokens: Int[Tensor, "batch pos"] | None = None,
    *,
    layers: Sequence[int] | None = None,
    final_ln: bool = True,
    transcribe: bool = True,
    max_new_tokens: int | None = None,
    **options: Any,
) -> EncoderLens:
    """What the decoder says if the encoder stops after each number of layers.

    The encoder runs once for all of them. Hooks act throughout: the encoder's
    fire once, those of its final LayerNorm once for each number of layers,
    and the decoder's in every decoding.

    Args:
        model: The model.
        mel: Recordings side by side.
        tokens: Reference transcripts with their start sequence, to be scored
            after each number of layers: `model.to_tokens(texts, append_eot=True)`.
        layers: How many layers to run, from 0 (none) to all (Whisper itself);
            negative ones count from the end, -1 being all. None takes each.
        final_ln: Whether the encoder's final LayerNorm is applied to what the
            decoder reads. Both conventions are in use; without it the last
            one is not Whisper's output.
        transcribe: Whether to decode after each number of layers.
        max_new_tokens: Tokens to decode at most.
        options: Options of `model.generate`.

    Raises:
        InputError: No such layer, nothing to compute, or an option that
            `generate` does not have.
        TokenError: Bad tokens, or a vocabulary that cannot be decoded.

    Source: Langedijk et al. 2023.
    """
    depths = _depths(model, layers)
    if tokens is None and not transcribe:
        raise InputError("neither transcripts nor a reference: pass tokens, or transcribe=True.")
    if transcribe:
        get_tokenizer(model.cfg)  # refuses a vocabulary that is not Whisper's
    counted = None
    if tokens is not None:
        check_tokens(tokens, model.cfg.d_vocab, model.cfg.n_text_ctx)
        if len(tokens) != len(mel):
            raise InputError(
                f"{len(mel)} recordings and {len(tokens)} rows of tokens do not match. "
                "Pass one row of tokens for each recording."
            )
        counted = counted_tokens(model, tokens)
    generations, logprobs = [], []
    if transcribe and options.get("language") is None:  # Whisper itself hears it, not its layers
        options["language"] = find_languages(model, model.encoder(mel))
    for _, output in encoder_outputs(model, mel, depths, final_ln=final_ln):
        if transcribe:
            generation = model.generate(None, max_new_tokens, encoder_output=output, **options)
            generations.append(generation)
        if tokens is not None:
            with torch.no_grad():
                logits = model(None, tokens, encoder_output=output)
            nexts = tokens[:, 1:].long()
            logprobs.append(-F.cross_entropy(logits[:, :-1].mT, nexts, reduction="none"))
    return EncoderLens(
        layers=depths,
        final_ln=final_ln,
        generations=tuple(generations) if transcribe else None,
        tokens=tokens,
        logprobs=torch.stack(logprobs) if logprobs else None,
        counted=counted,
    )


@torch.no_grad()
def encoder_outputs(
    model: HookedWhisper,
    mel: Mel | Float[Tensor, "batch mel frame"],
    layers: Sequence[int] | None = None,
    *,
    final_ln: bool = True,
) -> Iterator[tuple[int, Float[Tensor, "batch pos d_model"]]]:
    """What the decoder would read after each number of encoder layers, in one pass.

    Args:
        model: The model.
        mel: Recordings side by side.
        layers, final_ln: As in `encoder_lens`.
    """
    depths = _depths(model, layers)
    info, n_layers = model.encoder.pass_over(mel), model.cfg.n_audio_layers
    resid = model(mel, stop_at_layer=("encoder", depths[0]))
    for done, depth in pairwise((depths[0], *depths)):
        with running(info):  # not over a yield, where other passes may run
            resid = model.encoder.run_blocks(resid, start=done, stop=depth)
        output = resid
        if final_ln:
            output = model.run_from(("encoder", n_layers), resid, n_positions=info.n_positions)
        yield depth, output


def counted_tokens(
    model: HookedWhisper, tokens: Int[Tensor, "batch pos"]
) -> Bool[Tensor, "batch next_pos"]:
    """Which of `tokens[:, 1:]` are a transcript's: neither its start sequence nor its padding.

    Padding is what `speech.tokens.is_text` says. In a vocabulary that is
    not Whisper's, every token counts.
    """
    nexts = tokens[:, 1:]
    if not has_tokenizer(model.cfg):
        return torch.ones_like(nexts, dtype=torch.bool)
    tokenizer = get_tokenizer(model.cfg)
    is_special = (nexts > tokenizer.eot) & (nexts < tokenizer.timestamp_begin)
    # The start, with a prompt or without, ends at the last of these.
    in_start = is_special.long().flip(1).cummax(dim=1).values.flip(1).bool()
    return ~in_start & is_text(tokens, model.cfg)[:, 1:]


def _depths(model: HookedWhisper, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Numbers of layers in rising order."""
    n = model.cfg.n_audio_layers
    if layers is None:
        return tuple(range(n + 1))
    wanted = [layers] if isinstance(layers, int) else list(layers)
    for layer in wanted:
        if isinstance(layer, bool) or not isinstance(layer, int) or not -n - 1 <= layer <= n:
            raise InputError(f"layers are {layers!r}; the encoder can run 0 to {n} layers.")
    if not wanted:
        raise InputError(f"layers are empty; the encoder can run 0 to {n} layers.")
    return tuple(sorted({layer % (n + 1) for layer in wanted}))
