"""The decoder's heads: what its self-attention looks back at, what cross-attention listens to."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis import frame_energy, head_table, time_alignment
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.figures import plot_cross_attention, plot_entropy, plot_head_scores
from hooked_whisper.study.clips import Clip, Hook, Written
from hooked_whisper.study.exhibits import Exhibit, Section, number, percent
from hooked_whisper.study.heads import HeadMeans, heads_table, highest
from hooked_whisper.study.labels import word_times

SELF = ("entropy_nats", "entropy_share", "previous_token", "current_token", "start_token")
STEADY = 0.9
"""A head with a monotonicity over this follows the text."""
CROSS = ("entropy_nats", "entropy_share", "monotonicity", "on_padding", "energy_correlation")


class DecoderAttention:
    """Takes the decoder's patterns in while it reads what it wrote.

    Args:
        model: The model; its tokenizer names tokens.
    """

    def __init__(self, model: Any) -> None:
        self.model, cfg = model, model.cfg
        self.cfg: HookedWhisperConfig = cfg
        shape = (cfg.n_text_layers, cfg.n_text_heads)
        self.heads = {"attn": HeadMeans(*shape, SELF), "cross_attn": HeadMeans(*shape, CROSS)}
        self.in_word = HeadMeans(*shape, ("in_word",))
        self.n_clips = self.n_aligned = 0
        self.example: tuple[Clip, Written] | None = None
        self.patterns: dict[int, Float[Tensor, "head query key"]] = {}

    def encoder_hooks(self, clip: Clip) -> list[Hook]:
        """None."""
        return []

    def decoder_hooks(self, clip: Clip, written: Written) -> list[Hook]:
        """Two for each layer."""
        if self.example is None and _n_text(written) > 0:
            self.example = (clip, written)
        self.n_clips += 1
        times = word_times(clip, written)
        self.n_aligned += times is not None
        energy = frame_energy(clip.mel.values)
        is_example = self.example is not None and self.example[0] is clip

        def take(layer: int, kind: str) -> Any:
            def function(value: Tensor, *, hook: Any) -> None:
                name = f"decoder.blocks.{layer}.{kind}.hook_pattern"
                queries = written.text_queries
                table = head_table(
                    {name: value},
                    clip.n_positions,
                    n_tokens=value.shape[2],
                    text_queries=queries,
                    energy=energy if kind == "cross_attn" else None,
                    by_recording=True,
                )
                self.heads[kind].add(layer, table)
                if kind == "cross_attn" and times is not None:
                    self._take_times(layer, value[:, :, queries], times, clip.n_positions)
                if kind == "cross_attn" and is_example:
                    self.patterns[layer] = value[0, :, queries, : clip.n_positions].float().cpu()

            return function

        return [
            (f"decoder.blocks.{layer}.{kind}.hook_pattern", take(layer, kind))
            for layer in range(self.cfg.n_text_layers)
            for kind in self.heads
        ]

    def _take_times(self, layer: int, looks: Tensor, times: Tensor, n_positions: int) -> None:
        found = time_alignment(looks, times, n_positions).in_word[0].mean(dim=-1)
        self.in_word.add(layer, {"in_word": found.cpu()})

    def numbers(self) -> dict[str, Any]:
        """Every number over all clips so far."""
        return {
            "n_clips": self.n_clips,
            "n_aligned": self.n_aligned,
            "self_attention": self.heads["attn"].to_dict(),
            "cross_attention": self.heads["cross_attn"].to_dict(),
            "attention_in_word": self.in_word["in_word"].tolist() if self.n_aligned else None,
        }


def decoder_section(collector: DecoderAttention) -> Section:
    """Scores and entropy of the decoder's heads, and the alignment of one clip."""
    about = (
        "The decoder reads its own transcript once more, start tokens first. Of cross-attention "
        "the queries count that write the text, over the positions that hold sound. Monotonicity "
        "is the share of steps from token to token that go on in time, less the share that go back."
    )
    title = "The decoder's attention"
    if not collector.n_clips:
        about = (
            "The decoder did not run: this model's vocabulary is not Whisper's, so that it writes "
            "no text, and the recordings have no tokens of their own."
        )
        return Section("decoder_attention", title, about, {"n_clips": 0})
    exhibits = [_self_scores(collector), _cross_scores(collector)]
    if collector.example is not None:
        exhibits.append(_alignment(collector))
    exhibits += [_entropy(collector), _all_heads(collector)]
    return Section("decoder_attention", title, about, collector.numbers(), exhibits)


def _n_text(written: Written) -> int:
    return written.text_queries.stop - written.text_queries.start


def _self_scores(collector: DecoderAttention) -> Exhibit:
    heads = collector.heads["attn"]
    previous, start = heads["previous_token"], heads["start_token"]
    (best_previous, a), (best_start, b) = highest(previous), highest(start)
    finding = (
        f"Head {best_previous} of self-attention looks at the token before most "
        f"({percent(a)} of its attention), and head {best_start} at the first token "
        f"({percent(b)}; mean over heads {percent(float(start.nanmean()))})."
    )
    return Exhibit(
        "decoder_self_attention",
        "Self-attention: the token before, the first token",
        finding,
        plot_head_scores(
            {"on the token before": previous, "on the first token": start},
            label="share of attention",
            title="Decoder self-attention",
            low=0,
            high=1,
        ),
        "Two tables of layers and heads with the share of attention on the token before and on "
        "the first token.",
    )


def _cross_scores(collector: DecoderAttention) -> Exhibit:
    forward = collector.heads["cross_attn"]["monotonicity"]
    tables = {"monotonicity": forward}
    best, value = highest(forward)
    n_steady, n = int((forward > STEADY).sum()), forward.numel()
    finding = (
        f"{n_steady} of {n} cross-attention heads go on in time with the text (monotonicity over "
        f"{STEADY:g}; the mean over heads is {number(float(forward.nanmean()))}, head {best} has "
        f"{number(value)})"
    )
    if collector.n_aligned:
        within = collector.in_word["in_word"]
        tables["share within the word"] = within
        inside, share = highest(within)
        finding += (
            f", and head {inside} has {percent(share)} of its attention within the word that is "
            f"being written ({collector.n_aligned} clips with word times)"
        )
    return Exhibit(
        "decoder_cross_attention",
        "Cross-attention: does it follow the text",
        finding + ".",
        plot_head_scores(
            tables,
            label="score",
            title="Decoder cross-attention",
            low=-1 if not collector.n_aligned else None,
        ),
        "A table of layers and heads with the monotonicity of cross-attention"
        + (
            ", and one with the share of attention within the word." if collector.n_aligned else "."
        ),
    )


def _alignment(collector: DecoderAttention) -> Exhibit:
    """Cross-attention of one clip: the head that follows best."""
    assert collector.example is not None
    clip, written = collector.example
    forward = collector.heads["cross_attn"]["monotonicity"]
    scores = collector.in_word["in_word"] if collector.n_aligned else forward
    head, _ = highest(scores)
    layer, index = (int(part) for part in head.split("."))
    pattern = collector.patterns[layer][index]
    pattern = torch.nn.functional.pad(pattern, (0, collector.cfg.n_audio_ctx - pattern.shape[1]))
    ids = written.tokens[0, written.text_queries.start + 1 : written.text_queries.stop + 1]
    labels = [str(each) for each in ids.tolist()]
    if written.text is not None:
        labels = [text.strip() or "·" for text in collector.model.to_str_tokens(ids)]
    places = pattern[:, : clip.n_positions].argmax(dim=-1).float() * 0.02
    finding = (
        f"On {clip.recording.id}, head {head} looks at {number(float(places[0]))} s when it writes "
        f"{labels[0]!r} and at {number(float(places[-1]))} s when it writes {labels[-1]!r}."
    )
    return Exhibit(
        "decoder_alignment",
        f"Head {head} on one clip",
        finding,
        plot_cross_attention(
            clip.mel.values[0].float().cpu(),
            pattern,
            labels,
            sound_s=float(clip.mel.seconds[0]),
            title=f"{clip.recording.id}: cross-attention head {head}",
        ),
        f"The mel spectrogram of {clip.recording.id}, and below it the attention of head {head} "
        "for each token that is written, over time.",
        wide=True,
    )


def _entropy(collector: DecoderAttention) -> Exhibit:
    tables = {
        "decoder": collector.heads["attn"]["entropy_nats"],
        "cross-attention": collector.heads["cross_attn"]["entropy_nats"],
    }
    means = {name: float(each.nanmean()) for name, each in tables.items()}
    sharp = {name: int((each < 0.1).sum()) for name, each in tables.items()}
    n = collector.cfg.n_text_layers * collector.cfg.n_text_heads
    finding = (
        f"Mean entropy is {number(means['decoder'])} nats in self-attention and "
        f"{number(means['cross-attention'])} in cross-attention; {sharp['decoder']} and "
        f"{sharp['cross-attention']} of {n} heads look at practically one place (under 0.1 nats)."
    )
    return Exhibit(
        "decoder_entropy",
        "Entropy of all heads",
        finding,
        plot_entropy(tables, title="Entropy of the decoder's heads"),
        f"Two lines over {n} heads, layer after layer: mean entropy in nats of self-attention and "
        "cross-attention.",
        wide=True,
    )


def _all_heads(collector: DecoderAttention) -> Exhibit:
    attn, cross = collector.heads["attn"], collector.heads["cross_attn"]
    columns = {
        "self: entropy (nats)": attn["entropy_nats"],
        "self: token before": attn["previous_token"],
        "self: itself": attn["current_token"],
        "self: first token": attn["start_token"],
        "cross: entropy (nats)": cross["entropy_nats"],
        "cross: monotonicity": cross["monotonicity"],
        "cross: on padding": cross["on_padding"],
        "cross: loudness correlation": cross["energy_correlation"],
    }
    loud, value = highest(cross["energy_correlation"])
    finding = (
        f"Of cross-attention, head {loud} follows loudness most (correlation {number(value)}), and "
        f"{percent(float(cross['on_padding'].nanmean()))} of all attention goes to padding."
    )
    table = heads_table(columns, "Every decoder head, means over clips")
    return Exhibit("decoder_heads", "Every head", finding, table=table, fold=True)
