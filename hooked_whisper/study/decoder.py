"""The decoder's heads: what its self-attention looks back at, what cross-attention listens to."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hooked_whisper import HookedWhisper, HookPoint
from hooked_whisper.analysis import HeadMeans, frame_energy, head_table, time_alignment
from hooked_whisper.config import POSITION_S
from hooked_whisper.figures import plot_cross_attention, plot_entropy, plot_head_scores
from hooked_whisper.study.heads import every_head, highest
from hooked_whisper.study.report import Exhibit, Section, exhibit, section
from hooked_whisper.study.windows import Hooks, WindowRun

STEADY = 0.9
"""A head with a monotonicity over this follows the text."""


class DecoderAttention:
    """Takes the decoder's patterns in while it reads what it wrote."""

    def __init__(self, model: HookedWhisper) -> None:
        self.model = model
        shape = (model.cfg.n_text_layers, model.cfg.n_text_heads)
        self.heads = {"attn": HeadMeans(*shape), "cross_attn": HeadMeans(*shape)}
        self.n_windows = self.n_aligned = 0
        self.example: WindowRun | None = None
        self.patterns: dict[int, Float[Tensor, "head query key"]] = {}

    @property
    def in_word(self) -> Float[Tensor, "layer head"] | None:
        """The share of cross-attention within the word that is written; None without times."""
        return self.heads["cross_attn"]["in_word"] if self.n_aligned else None

    def hooks(self, run: WindowRun) -> Hooks:
        """One for all layers, of self-attention and of cross-attention."""
        if self.example is None and run.text_queries.stop > run.text_queries.start:
            self.example = run
        self.n_windows += 1
        times, energy = word_times(run), frame_energy(run.mel.values)
        self.n_aligned += times is not None

        def take(value: Float[Tensor, "1 head query key"], *, hook: HookPoint) -> None:
            kind, looks = str(hook.name).split(".")[3], value[:, :, run.text_queries]
            is_cross = kind == "cross_attn"
            scores = head_table(
                {str(hook.name): value},
                run.window.n_positions,
                n_tokens=value.shape[2],
                text_queries=run.text_queries,
                energy=energy if is_cross else None,
                by_recording=True,
            )
            if is_cross and times is not None:
                found = time_alignment(looks, times, run.window.n_positions)
                scores["in_word"] = found.in_word[0].mean(dim=-1).tolist()
            self.heads[kind].add(scores)
            if is_cross and run is self.example:
                shown = looks[0, :, :, : run.window.n_positions]
                self.patterns[int(str(hook.name).split(".")[2])] = shown.float().cpu()

        return [("decoder.blocks.*attn.hook_pattern", take)]

    def numbers(self) -> dict[str, Any]:
        """Every number over all windows so far."""
        if not self.n_windows:
            return {"n_clips": 0}
        return {
            "n_clips": self.n_windows,
            "n_aligned": self.n_aligned,
            "self_attention": self.heads["attn"].to_dict(),
            "cross_attention": self.heads["cross_attn"].to_dict(),
            "attention_in_word": None if self.in_word is None else self.in_word.tolist(),
        }


def word_times(run: WindowRun) -> Float[Tensor, "1 query 2"] | None:
    """Start and end of the word that each text query writes.

    None where words have no times, or where the transcript is not word for
    word, token for token, what is said.
    """
    words, queries = run.window.words, run.text_queries
    if not words or run.text is None or len(words) != queries.stop - queries.start:
        return None
    if run.text.split() != [word for _, _, word in words]:
        return None
    return torch.tensor([[[start_s, end_s] for start_s, end_s, _ in words]])


def decoder_section(found: DecoderAttention) -> Section:
    """Scores and entropy of the decoder's heads, and the alignment of one window."""
    numbers, exhibits = found.numbers(), []
    if found.n_windows:
        exhibits = [_self_scores(found.heads["attn"]), _cross_scores(found)]
        if found.example is not None:
            exhibits.append(_alignment(found, found.example))
        exhibits += [_entropy(found), _scores(found)]
    return section("decoder_attention", numbers, exhibits)


def _self_scores(heads: HeadMeans) -> Exhibit:
    previous, start = heads["previous_token"], heads["start_token"]
    return exhibit(
        "decoder_self_attention",
        figure=plot_head_scores(
            {"on the token before": previous, "on the first token": start},
            label="share of attention",
            title="Decoder self-attention",
            low=0,
            high=1,
        ),
        previous=highest(previous),
        start=highest(start),
        mean_start=float(start.nanmean()),
    )


def _cross_scores(found: DecoderAttention) -> Exhibit:
    forward, in_word = found.heads["cross_attn"]["monotonicity"], found.in_word
    scores = {"monotonicity": forward}
    if in_word is not None:
        scores["share within the word"] = in_word
    low = -1 if in_word is None else None
    return exhibit(
        "decoder_cross_attention",
        figure=plot_head_scores(scores, label="score", title="Decoder cross-attention", low=low),
        n=forward.numel(),
        n_steady=int((forward > STEADY).sum()),
        steady=STEADY,
        mean=float(forward.nanmean()),
        best=highest(forward),
        n_aligned=found.n_aligned,
        inside=None if in_word is None else highest(in_word),
    )


def _alignment(found: DecoderAttention, run: WindowRun) -> Exhibit:
    """Cross-attention of one window: the head that follows best."""
    assert run.tokens is not None
    forward = found.heads["cross_attn"]["monotonicity"]
    head, _ = highest(forward if found.in_word is None else found.in_word)
    layer, index = (int(part) for part in head.split("."))
    pattern = found.patterns[layer][index]
    ids = run.tokens[0, run.text_queries.start + 1 : run.text_queries.stop + 1]
    labels = [str(token) for token in ids.tolist()]
    if run.text is not None:
        labels = [text.strip() or "·" for text in found.model.to_str_tokens(ids)]
    figure = plot_cross_attention(
        run.mel.values[0].float().cpu(),
        F.pad(pattern, (0, found.model.cfg.n_audio_ctx - pattern.shape[1])),
        labels,
        sound_s=float(run.mel.seconds[0]),
        title=f"{run.window.name}: cross-attention head {head}",
    )
    return exhibit(
        "decoder_alignment",
        figure=figure,
        name=run.window.name,
        head=head,
        looks_s=(POSITION_S * pattern.argmax(dim=-1)).tolist(),
        labels=labels,
    )


def _entropy(found: DecoderAttention) -> Exhibit:
    names = {"decoder": "attn", "cross-attention": "cross_attn"}
    heads = {name: found.heads[kind]["entropy_nats"] for name, kind in names.items()}
    return exhibit(
        "decoder_entropy",
        figure=plot_entropy(heads, title="Entropy of the decoder's heads"),
        n=heads["decoder"].numel(),
        means=[float(entropy.nanmean()) for entropy in heads.values()],
        sharp=[int((entropy < 0.1).sum()) for entropy in heads.values()],
    )


def _scores(found: DecoderAttention) -> Exhibit:
    attn, cross = found.heads["attn"], found.heads["cross_attn"]
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
    on_padding = float(cross["on_padding"].nanmean())
    loud = highest(cross["energy_correlation"])
    return exhibit("decoder_heads", table=every_head(columns), loud=loud, on_padding=on_padding)
