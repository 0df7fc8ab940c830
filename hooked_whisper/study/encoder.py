"""What is shown of the encoder's attention: patterns, widths, the entropy of all heads."""

from typing import Any

import torch

from hooked_whisper.figures import plot_by_layer, plot_entropy, plot_patterns
from hooked_whisper.study.attention import REACH, EncoderAttention
from hooked_whisper.study.exhibits import Claim, Exhibit, Section, number, percent
from hooked_whisper.study.heads import heads_table, highest, lowest
from hooked_whisper.study.pictures import plot_offsets

POST_HEADS = 24
"""Encoder heads of Whisper-Tiny, of which the post speaks."""
PEAK, TROUGH, NEAR = 15, 5, 1
"""Where the post sees the highest and the lowest entropy, and how near counts as there."""
SLIGHT = 0.3
"""A rank correlation of entropy and place over this counts as a trend."""

POSITION_S = 0.02


def encoder_section(collector: EncoderAttention) -> Section:
    """Patterns, widths, entropy and scores of the encoder's heads, with what the post says."""
    found = collector.numbers()
    about = (
        "Each position of 20 ms that holds sound looks at all positions that do; padding is cut "
        "off and each row divided by what is left. Numbers are means over the positions of a clip, "
        f"then over {found['n_clips']} clip{'s' if found['n_clips'] != 1 else ''}. Layers and "
        "heads count from 0, so that the post's layer 1 is layer 0 here."
    )
    return Section(
        "encoder_attention",
        "The encoder's attention",
        about,
        found,
        [
            *_patterns(collector, found),
            _profile(collector, found),
            _widths(found),
            _entropy(collector, found),
            _window(collector, found),
            _scores(collector),
        ],
    )


def _patterns(collector: EncoderAttention, found: dict[str, Any]) -> list[Exhibit]:
    """All heads of some layers, of the first clip."""
    exhibits = []
    assert collector.example is not None
    name = collector.example.recording.id
    distance = collector.heads["mean_distance"]
    for layer, patterns in sorted(collector.patterns.items()):
        near, near_value = lowest(distance[layer : layer + 1])
        far, far_value = highest(distance[layer : layer + 1])
        seconds = min(patterns.shape[1] * POSITION_S, float(collector.example.mel.seconds[0]))
        mean = POSITION_S * float(distance[layer].nanmean())
        finding = (
            f"In layer {layer} heads look {number(mean)} s away on average over all clips, "
            f"head {near.split('.')[1]} the least ({number(POSITION_S * near_value)} s) and "
            f"head {far.split('.')[1]} the most ({number(POSITION_S * far_value)} s)."
        )
        exhibits.append(
            Exhibit(
                f"encoder_patterns_{layer}",
                f"Layer {layer}: where each head looks",
                finding,
                plot_patterns(patterns, sound_s=seconds, title=f"{name}, layer {layer}"),
                f"Attention patterns of {len(patterns)} heads of encoder layer {layer} on {name}, "
                "queries downwards, keys to the right.",
            )
        )
    return exhibits


def _profile(collector: EncoderAttention, found: dict[str, Any]) -> Exhibit:
    profile = collector.profile.nanmean(dim=1)
    names = [f"layer {i}" for i in range(len(profile))]
    chosen = collector.drawn_layers()
    own = profile[:, REACH]
    near = profile[:, REACH - 5 : REACH + 6].sum(dim=1)
    first, last = float(near[0]), float(near[-1])
    finding = (
        f"Within 0.1 s to either side lies {percent(first)} of the attention in layer 0 and "
        f"{percent(last)} in layer {len(near) - 1}; on the position itself "
        f"{percent(float(own[0]))} and {percent(float(own[-1]))}."
    )
    return Exhibit(
        "encoder_offsets",
        "The mean pattern around the diagonal",
        finding,
        plot_offsets(
            profile[chosen],
            [names[i] for i in chosen],
            title="Mean attention by distance from the query, all heads",
        ),
        "A line for each layer: mean attention against the distance from the query, from one "
        "second before to one second after, on a logarithmic axis.",
    )


def _widths(found: dict[str, Any]) -> Exhibit:
    width = [POSITION_S * each for each in found["width_by_layer"]]
    half = [POSITION_S * each for each in found["half_width_90_by_layer"]]
    first = [POSITION_S * each for each in found["width_of_first_head"]]
    shown = ", ".join(f"{number(each)} s in layer {i}" for i, each in list(enumerate(width))[:4])
    more = f" … {number(width[-1])} s in the last" if len(width) > 4 else ""
    finding = (
        "The width of the diagonal (standard deviation of key - query, mean over heads) is "
        f"{shown}{more}, and 90 % of the attention lies within {number(half[0])} s of the query in "
        f"layer 0 and {number(half[-1])} s in layer {len(half) - 1}."
    )
    panels = {
        "width of the diagonal (s)": {
            "mean over heads": torch.tensor(width),
            "first head": torch.tensor(first),
        },
        "half-width holding 90 % (s)": {"mean over heads": torch.tensor(half)},
    }
    return Exhibit(
        "encoder_widths",
        "Width of the diagonal by layer",
        finding,
        plot_by_layer(panels, title="How wide the encoder's diagonal is"),
        "Two panels over the layers: standard deviation of key minus query, for the mean over "
        "heads and the first head, and the half-width that holds 90 % of the attention.",
        claim=_width_claim(width, first),
    )


def _width_claim(width: list[float], first: list[float]) -> Claim:
    says = "The diagonal is thin in layer 1, slightly broader in layer 2, more diffuse in layer 3."
    if len(width) < 3:
        return Claim(says, None, f"this model has {len(width)} encoder layers.")
    rises = width[0] < width[1] < width[2]
    also = "does" if first[0] < first[1] < first[2] else "does not"

    def told(values: list[float]) -> str:
        return ", ".join(f"{number(each)} s" for each in values[:3])

    return Claim(
        says,
        rises,
        f"the width would have to rise over the first three layers. It is {told(width)} for the "
        f"mean over heads, and {told(first)} for the first head, the one that the post shows, "
        f"which {also} rise.",
    )


def _entropy(collector: EncoderAttention, found: dict[str, Any]) -> Exhibit:
    trend = found["entropy"]
    heads = collector.heads["entropy_nats"]
    assert collector.example is not None
    figure = plot_entropy({"encoder": heads}, title="Entropy of the encoder's heads, speech only")
    return Exhibit(
        "encoder_entropy",
        "Entropy of all heads",
        _entropy_finding(trend),
        figure,
        f"A line over the {trend['n']} encoder heads, layer after layer: mean entropy in nats.",
        claim=_entropy_claim(trend, "speech"),
    )


def _entropy_finding(trend: dict[str, Any]) -> str:
    if trend["n"] < 2:
        return "There is one head only, so that there is no trend."
    way = "rises" if trend["slope"] > 0 else "falls"
    return (
        f"Over the {trend['n']} heads, layer after layer, entropy {way} by "
        f"{number(abs(trend['slope']), 3)} nats a head (rank correlation "
        f"{number(trend['rank_correlation'])}), with its peak at index {trend['peak']} "
        f"({number(trend['peak_value'])} nats) and its trough at index {trend['trough']} "
        f"({number(trend['trough_value'])} nats)."
    )


def _entropy_claim(trend: dict[str, Any], of: str) -> Claim:
    says = (
        "Entropy fluctuates over the heads with a slight upward trend, with peaks such as around "
        f"index {PEAK} and troughs such as around index {TROUGH}."
    )
    if trend["n"] != POST_HEADS:
        return Claim(
            says, None, f"the post speaks of {POST_HEADS} heads, and this encoder has {trend['n']}."
        )
    correlation = trend["rank_correlation"] or 0.0
    way = "upward" if correlation > SLIGHT else "downward" if correlation < -SLIGHT else "none"
    parts = {
        f"trend {way} (rank correlation {number(correlation)})": correlation > SLIGHT,
        f"peak at {trend['peak']}": abs(trend["peak"] - PEAK) <= NEAR,
        f"trough at {trend['trough']}": abs(trend["trough"] - TROUGH) <= NEAR,
    }
    told = "; ".join(
        f"{what}: {'as' if same else 'not as'} in the post" for what, same in parts.items()
    )
    return Claim(says, all(parts.values()), f"over {of}, {told}.")


def _window(collector: EncoderAttention, found: dict[str, Any]) -> Exhibit:
    whole = found["whole_window_of_first_clip"]["entropy"]
    assert collector.example is not None
    n_speech = collector.example.n_positions
    n_all = collector.cfg.n_audio_ctx
    figure = plot_entropy(
        {
            "speech": collector.heads["entropy_nats"],
            "whole window": collector.window["entropy_nats"],
        },
        title="Speech of all clips, and the whole window of the first",
    )
    speech = number(found["entropy"].get("mean"))
    finding = (
        f"Counting the padding, {percent(1 - n_speech / n_all)} of the window of "
        f"{collector.example.recording.id}, the mean entropy of the heads is "
        f"{number(whole.get('mean'))} nats instead of the {speech} of speech, "
        f"with peak and trough at index {whole.get('peak')} and {whole.get('trough')}."
    )
    return Exhibit(
        "encoder_entropy_window",
        "With the padding, as in a run over the whole window",
        finding,
        figure,
        "Two lines over the encoder heads: mean entropy over speech, and over the whole window.",
        claim=_entropy_claim(whole, "the whole window of one clip"),
    )


def _scores(collector: EncoderAttention) -> Exhibit:
    heads = collector.heads
    loud, loud_value = highest(heads["energy_correlation"])
    padded, padded_value = highest(heads["on_padding"])
    finding = (
        f"Head {loud} follows loudness most (correlation {number(loud_value)} of attention "
        f"received and log-mel energy), and head {padded} spends {percent(padded_value)} of "
        "its attention on padding, which the other numbers leave out."
    )
    columns = {
        "entropy (nats)": heads["entropy_nats"],
        "share of the most": heads["entropy_share"],
        "width (s)": POSITION_S * heads["diagonal_width"],
        "90 % within (s)": POSITION_S * heads["half_width_90"],
        "distance (s)": POSITION_S * heads["mean_distance"],
        "on itself": heads["current_token"],
        "on padding": heads["on_padding"],
        "loudness correlation": heads["energy_correlation"],
    }
    table = heads_table(columns, "Every encoder head, means over clips")
    return Exhibit("encoder_heads", "Every head", finding, table=table, fold=True)
