"""All heads, or all layers, in one table.

Both functions take any mapping of hook names to activations, such as a
`WhisperCache`. One head of one recording is worked on at a time, and only its
part that counts, so that patterns of 1500 × 1500 need little memory besides
their own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis import residual
from hooked_whisper.analysis.attention import SELF_SCORES, first_key_mass, row_entropy
from hooked_whisper.analysis.attention_timing import (
    attended_position,
    monotonicity_score,
    pearson,
)
from hooked_whisper.analysis.masking import Count, count_for_each, read_rows
from hooked_whisper.config import Stack
from hooked_whisper.errors import InputError

if TYPE_CHECKING:
    import pandas

HEAD_SCORES = (
    "entropy_nats",
    "entropy_share",
    *SELF_SCORES,
    "start_token",
    "monotonicity",
    "on_padding",
    "energy_correlation",
)
"""The columns of `head_table` that hold statistics."""

_PATTERN = re.compile(r"(encoder|decoder)\.blocks\.(\d+)\.(attn|cross_attn)\.hook_pattern")
_STREAM = re.compile(
    r"(encoder|decoder)\.(?:blocks\.(\d+)|ln_final)"
    r"\.hook_(resid_pre|resid_mid|resid_mid_cross|resid_post|(?:cross_)?attn_out|mlp_out|normalized)"
)


@dataclass(frozen=True)
class _Layer:
    """The patterns of one attention layer: all its heads, of all recordings."""

    name: str
    stack: Stack
    layer: int
    kind: Literal["attn", "cross_attn"]
    patterns: Float[Tensor, "batch head query key"]

    @property
    def frame_keys(self) -> bool:
        """Whether keys are encoder positions."""
        return self.stack == "encoder" or self.kind == "cross_attn"


def head_table(
    patterns: Mapping[str, Tensor],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    text_queries: slice | None = None,
    energy: Float[Tensor, "batch key"] | None = None,
    all_frames: bool = False,
    by_recording: bool = False,
) -> "pandas.DataFrame":
    """Every attention statistic of every head, one row a head.

    Each number is the mean over the queries that count of a recording, then over
    recordings, so that a long one weighs as much as a short one. NaN where a
    statistic does not apply.

        column               of            meaning
        stack, layer, kind, head           which head; kind is attn or cross_attn
        entropy_nats         all           `attention_entropy`
        entropy_share        all           the same over ln of the keys that the query could see
        mean_distance        attn          in positions: of 0.02 s, or tokens
        diagonal_width       attn          in positions
        half_width_90        attn          `diagonal_half_width` of 0.9, in positions
        previous_token       attn          share on the position before
        current_token        attn          share on the query's own position
        start_token          all           share on the first key
        monotonicity         cross_attn    -1 to 1
        on_padding           encoder, cross_attn: share that is cut off; needs n_positions
        energy_correlation   encoder, cross_attn: needs energy

    Args:
        patterns: Activations by hook name; those that are no `hook_pattern` are
            passed over. `[batch head query key]`, or without the batch axis.
        n_positions: Encoder positions that hold speech, `mel.n_positions`.
        n_tokens: Decoder positions that count, where rows of tokens are padded.
        text_queries: Which of these count in cross-attention, for instance
            `slice(3, -1)`: the queries that write the text, between the start
            tokens and the last query, which sees the text finished.
        energy: `frame_energy(mel.values)`.
        all_frames: Count the padding too.
        by_recording: A row for each recording and head, told apart by the column `recording`.
    """
    import pandas

    layers = _find_layers(patterns)
    counts = [_counts(layer, n_positions, n_tokens) for layer in layers]
    for layer in layers:
        _check_energy(energy, layer)
    rows = []
    for layer, of_recordings in zip(layers, counts, strict=True):
        for recording, (n_frames, n_text) in enumerate(of_recordings):
            loud = energy[recording] if energy is not None and layer.frame_keys else None
            for head, pattern in enumerate(layer.patterns[recording].detach()):
                row: dict[str, Any] = {"recording": recording, "stack": layer.stack}
                row |= {"layer": layer.layer, "kind": layer.kind, "head": head}
                try:
                    row |= _head_scores(
                        pattern, layer, n_frames, n_text, text_queries, loud, all_frames
                    )
                except InputError as error:
                    where = f"{layer.name}, recording {recording}, head {head}"
                    raise InputError(f"{where}: {error}") from error
                rows.append(row)
    place = ["stack", "layer", "kind", "head"]
    table = pandas.DataFrame(rows, columns=["recording", *place, *HEAD_SCORES])
    if by_recording:
        return table
    return table.drop(columns="recording").groupby(place, sort=False, as_index=False).mean()


def residual_table(
    streams: Mapping[str, Tensor],
    n_positions: Count | None = None,
    *,
    n_tokens: Count | None = None,
    all_frames: bool = False,
) -> "pandas.DataFrame":
    """Every residual statistic of every layer, one row a stream.

        column               meaning
        stack, layer, stream which: stream is resid_post, mlp_out, ...; `normalized`, which has no
                             layer, is what the last LayerNorm returns
        norm                 mean length of a vector
        kurtosis             excess, of all values
        kurtosis_per_vector  the same over the dimensions of each vector, averaged
        hoyer                Hoyer's sparsity of each vector, averaged
        small_share          share of values under a tenth of their root mean square
        participation_ratio  directions in use, of d_model
        n_outliers           dimensions over 6 times the median dimension
        largest_dimension    the largest one
        largest_times        how many times the median it is

    Args:
        streams: Activations by hook name; those that are not in the residual
            stream are passed over. `[batch pos d_model]`, or without the batch axis.
        n_positions: Encoder positions that hold speech, `mel.n_positions`.
        n_tokens: Decoder positions that count, where rows of tokens are padded.
        all_frames: Count the padding too.
    """
    import pandas

    rows = []
    for name, value in streams.items():
        if (found := _STREAM.fullmatch(name)) is None:
            continue
        stack, layer, stream = found.groups()
        count = n_positions if stack == "encoder" else n_tokens
        value = value[None] if value.ndim == 2 else value
        # Decoder positions are no frames: those past n_tokens never count.
        try:
            x = residual.speech_vectors(value, count, all_frames=all_frames and stack == "encoder")
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        place = {"stack": stack, "layer": None if layer is None else int(layer), "stream": stream}
        rows.append(place | _stream_statistics(x))
    if not rows:
        raise InputError(
            f"no residual streams among the {len(streams)} activations. Keep them with "
            'model.run_with_cache(mel, tokens, names_filter="*.hook_resid_post").'
        )
    return pandas.DataFrame(rows).astype({"layer": "Int64"})


def _find_layers(patterns: Mapping[str, Tensor]) -> list[_Layer]:
    layers = []
    for name, value in patterns.items():
        if (found := _PATTERN.fullmatch(name)) is None:
            continue
        if value.ndim not in (3, 4) or not value.is_floating_point():
            raise InputError(
                f"{name} is {tuple(value.shape)}, {value.dtype}; a pattern is floating point, "
                "[batch head query key] or [head query key]."
            )
        if found[3] == "attn" and value.shape[-2] != value.shape[-1]:
            raise InputError(
                f"{name} has {value.shape[-2]} queries and {value.shape[-1]} keys; the table needs "
                "self-attention over all positions, without pos_slice or frame_slice."
            )
        stack, layer, kind = cast(tuple[Stack, str, Literal["attn", "cross_attn"]], found.groups())
        layers.append(
            _Layer(name, stack, int(layer), kind, value[None] if value.ndim == 3 else value)
        )
    if not layers:
        raise InputError(
            f"no patterns among the {len(patterns)} activations. Keep them with "
            'model.run_with_cache(mel, tokens, names_filter="*.hook_pattern").'
        )
    return layers


def _counts(
    layer: _Layer, n_positions: Count | None, n_tokens: Count | None
) -> list[tuple[int | None, int | None]]:
    """How many encoder positions and tokens of each recording count; None where it is not said."""
    n_batch, _, n_query, n_key = layer.patterns.shape
    frames: list[int | None] = [None] * n_batch
    tokens: list[int | None] = [None] * n_batch
    if layer.frame_keys and n_positions is not None:
        frames[:] = count_for_each("n_positions", n_positions, n_key, n_batch)
    if layer.stack == "decoder" and n_tokens is not None:
        tokens[:] = count_for_each("n_tokens", n_tokens, n_query, n_batch)
    return list(zip(frames, tokens, strict=True))


def _check_energy(energy: Tensor | None, layer: _Layer) -> None:
    n_batch, n_key = layer.patterns.shape[0], layer.patterns.shape[-1]
    if energy is not None and layer.frame_keys and tuple(energy.shape) != (n_batch, n_key):
        raise InputError(
            f"the energy is {tuple(energy.shape)}; {layer.name} needs ({n_batch}, {n_key}), a "
            "number for each recording and key. Make it with frame_energy(mel.values)."
        )


def _head_scores(
    pattern: Float[Tensor, "query key"],
    layer: _Layer,
    n_positions: int | None,
    n_tokens: int | None,
    text_queries: slice | None,
    energy: Float[Tensor, "key"] | None,
    all_frames: bool,
) -> dict[str, float]:
    """Every statistic that applies to one head, for one recording."""
    is_cross = layer.kind == "cross_attn"
    rows = read_rows(pattern, n_positions, n_tokens, all_frames=all_frames, cross=is_cross)
    n_query, n_key = rows.p.shape
    chosen = slice(None)
    if is_cross and text_queries is not None:
        chosen = slice(*text_queries.indices(n_query))
    p = rows.p[chosen]
    if not len(p) or n_tokens == 0 or (n_positions == 0 and not all_frames):
        return {}  # nothing was said
    alive = torch.ones_like(p[:, 0], dtype=torch.bool)
    if rows.counts is not None:  # a row may have all of its attention on padding
        alive = rows.counts[chosen]

    def mean(values: Float[Tensor, "query"]) -> float:
        return float(values.where(alive, torch.nan).nanmean())

    entropy = row_entropy(p)
    is_causal = layer.stack == "decoder" and layer.kind == "attn"
    n_seen = torch.arange(1, len(p) + 1, device=p.device) if is_causal else n_key
    most = torch.as_tensor(n_seen, device=p.device).float().log()
    found = {
        "entropy_nats": mean(entropy),
        "entropy_share": mean(entropy / most),  # NaN for a query that sees one key
        "start_token": mean(first_key_mass(p)),
    }
    if layer.kind == "attn":
        found |= {name: mean(score(p)) for name, score in SELF_SCORES.items()}
    else:
        positions = attended_position(p, by="expected").where(alive, torch.nan)
        found["monotonicity"] = float(monotonicity_score(positions))
    if n_positions is not None:
        cut_off = pattern[:n_query][chosen, n_positions:].float()
        found["on_padding"] = float(cut_off.sum(dim=-1).mean())
    if energy is not None:
        loud = energy[:n_key].to(p.device, torch.float32)
        found["energy_correlation"] = float(pearson(alive.float() @ p, loud))
    return found


def _stream_statistics(x: Float[Tensor, "vector d_model"]) -> dict[str, Any]:
    outliers = residual.outlier_dimensions(x, times=0)
    return {
        "norm": float(x.norm(dim=-1).mean()),
        "kurtosis": float(residual.kurtosis(x)),
        "kurtosis_per_vector": float(residual.kurtosis(x, per="vector").nanmean()),
        "hoyer": float(residual.hoyer_sparsity(x).nanmean()),
        "small_share": residual.share_below(x, 0.1, of_rms=True),
        "participation_ratio": residual.participation_ratio(x),
        "n_outliers": int((outliers.times >= 6).sum()),
        "largest_dimension": int(outliers.dimensions[0]),
        "largest_times": float(outliers.times[0]),
    }
