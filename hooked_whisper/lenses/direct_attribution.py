"""Direct logit attribution: what every part of the decoder adds to a token's logit by itself.

The last LayerNorm is held at the scale that it had in the run. A logit is then
a sum over whatever wrote to the residual stream: the embeddings, each
sublayer (or each of its heads or neurons, and its output bias), and the biases
of the last LayerNorm and of the unembedding.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.errors import InputError, check_index
from hooked_whisper.lenses.cached_run import (
    CachedRun,
    Positions,
    Source,
    Tokens,
    last_stream,
    open_run,
    token_texts,
)
from hooked_whisper.lenses.readout import Readout
from hooked_whisper.model.whisper import HookedWhisper

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

Detail = Literal["component", "head", "neuron"]
_ATTENTION: dict[Literal["attn", "cross_attn"], str] = {"attn": "H", "cross_attn": "X"}
"""Letters of their heads in labels."""


@dataclass(frozen=True)
class Component:
    """Something that writes to the decoder's residual stream, or adds to its logits.

    Args:
        label: A short name, as `decompose_resid` and `stack_head_results` write it.
        kind: `"embed"`, `"attn"`, `"cross_attn"`, `"mlp"`, or `"bias"`.
        layer: Its layer, if it is in one.
        index: Its head or neuron, if it is one.
    """

    label: str
    kind: str
    layer: int | None = None
    index: int | None = None


Term = tuple[Component, Float[Tensor, "batch pos"]]


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each component adds to the logit of a token, or to a difference of two logits.

    Args:
        components: The components, in the order in which they are computed.
        values: What each adds.
        logits: The model's own logit, or difference of logits, which they add up to.
        positions: Decoder positions.
        targets: The tokens whose logits these are.
        versus: The tokens whose logits are subtracted, if any.
        target_texts: The targets of each row, readable.
        versus_texts: The subtracted tokens of each row, readable.
    """

    components: tuple[Component, ...]
    values: Float[Tensor, "component batch pos"]
    logits: Float[Tensor, "batch pos"]
    positions: tuple[int, ...]
    targets: Int[Tensor, "batch pos"]
    versus: Int[Tensor, "batch pos"] | None
    target_texts: tuple[tuple[str, ...], ...]
    versus_texts: tuple[tuple[str, ...], ...] | None

    @property
    def labels(self) -> list[str]:
        """A short name for each component."""
        return [component.label for component in self.components]

    @property
    def error(self) -> float:
        """The largest distance between the sum of the components and the model's own logit."""
        return float((self.values.sum(dim=0) - self.logits).abs().max())

    def __getitem__(self, label: str) -> Float[Tensor, "batch pos"]:
        """What one component adds."""
        if label not in self.labels:
            some = ", ".join(self.labels[:4])
            raise InputError(f"no component {label!r}; there are {some}, ...: see .labels.")
        return self.values[self.labels.index(label)]

    def top(self, n: int = 10, row: int = 0, pos: int = -1) -> list[tuple[str, float]]:
        """The components that add or take away most, with what they add.

        Args:
            n: How many.
            row: Row of the batch.
            pos: Place among `positions`.
        """
        self._check(row, pos)
        values = self.values[:, row, pos]
        chosen = values.abs().topk(min(n, len(values))).indices.tolist()
        return [(self.components[place].label, float(values[place])) for place in chosen]

    def _check(self, row: int, pos: int) -> None:
        check_index("row", row, len(self.targets), InputError)
        check_index("pos", pos, len(self.positions), InputError)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One line for each component, row of the batch and position."""
        import pandas as pd

        lines = product(self.components, range(self.values.shape[1]), self.positions)
        frame = pd.DataFrame(
            [(c.label, c.kind, c.layer, c.index, row, pos) for c, row, pos in lines],
            columns=["component", "kind", "layer", "index", "batch", "pos"],
        ).astype({"component": object, "kind": object, "layer": "Int64", "index": "Int64"})
        texts = [text for row in self.target_texts for text in row]
        frame["target"] = texts * len(self.components)
        frame["value"] = self.values.flatten().tolist()
        return frame

    def plot(
        self, row: int = 0, pos: int = -1, n: int = 20, title: str = ""
    ) -> "matplotlib.figure.Figure":
        """Bars for the components that matter most, and one for all others.

        Args:
            row: Row of the batch.
            pos: Place among `positions`.
            n: How many components to draw.
        """
        from hooked_whisper.figures.lenses import plot_attribution

        self._check(row, pos)
        label = f"logit of {self.target_texts[row][pos].strip()!r}"
        if self.versus_texts is not None:
            label += f" less that of {self.versus_texts[row][pos].strip()!r}"
        return plot_attribution(
            self.values[:, row, pos], self.labels, n=n, label=label, title=title
        )


@torch.no_grad()
def direct_attribution(
    model: HookedWhisper,
    source: Source,
    tokens: Int[Tensor, "batch pos"] | None = None,
    *,
    by: Detail = "component",
    targets: Tokens | None = None,
    versus: Tokens | None = None,
    centred: bool = False,
    pos: Positions | None = None,
) -> Attribution:
    """What each component of the decoder adds to a token's logit, all adding up to it.

    Args:
        model: The model.
        source: A recording, to be run with `tokens`; or what was cached by
            `run_with_cache` or `generate(..., return_cache=True)`.
        tokens: The decoder's tokens, the start sequence included.
        by: `"component"`: embeddings and sublayers. `"head"`: attention by
            head, and its output bias. `"neuron"`: the MLPs by neuron, and
            their output bias.
        targets: Tokens whose logits are taken apart: one for all positions,
            or a tensor that broadcasts to `[batch pos]`. None is the model's
            own likeliest token; of a decoding, the token that was decoded.
        versus: Tokens whose logits are subtracted; None subtracts nothing.
        centred: Subtract the mean logit over the vocabulary, which no probability depends on.
            Without it, terms that raise or lower every token's logit alike come first, such as
            the bias of the last LayerNorm. Of a difference it takes nothing away.
        pos: Decoder positions; None takes all, of a decoding those that decoded a token.

    Raises:
        InputError: No such detail or position, or no tokens.
        TokenError: Targets that do not fit.
        HookNameError: A cache that lacks what is needed.

    Source: Elhage et al. 2021; nostalgebraist 2020 for the fixed LayerNorm.
    """
    if by not in get_args(Detail):
        raise InputError(f"by is {by!r}; it can be {', '.join(map(repr, get_args(Detail)))}.")
    run = open_run(model, source, tokens, _names(model, by), pos, targets, versus)
    path = logit_path(model, run, centred=centred)
    terms = [*_terms(model, run, by, path.direction), *path.biases]
    return Attribution(
        components=tuple(component for component, _ in terms),
        values=torch.stack([value for _, value in terms]),
        logits=path.logits,
        positions=run.positions,
        targets=path.targets,
        versus=run.versus,
        target_texts=texts_of_rows(model, path.targets),
        versus_texts=None if run.versus is None else texts_of_rows(model, run.versus),
    )


@dataclass(frozen=True, eq=False)
class LogitPath:
    """How a logit, or a difference of two, is read from the decoder's last stream.

    Args:
        targets: The tokens whose logits these are.
        logits: The model's own.
        direction: What the stream is multiplied with, the last LayerNorm's scale held.
        biases: What is added besides.
    """

    targets: Int[Tensor, "batch pos"]
    logits: Float[Tensor, "batch pos"]
    direction: Float[Tensor, "batch pos d_model"]
    biases: list[Term]


def logit_path(model: HookedWhisper, run: CachedRun, *, centred: bool = False) -> LogitPath:
    """The way from the stream to the logits that a run is asked about.

    `centred` reads each less the mean logit over the vocabulary.
    """
    targets, versus = run.targets_or_likeliest(model), run.versus
    direction = run.cache.logit_direction(targets, versus, list(run.positions), model=model)
    readout, resid = Readout.of(model), run.read(last_stream(model))
    logits = readout.logit_of(resid, targets)
    unembed = readout.unembed.T[targets].float()
    b_U = model.b_U.detach().float()
    unembed_bias = b_U[targets]
    if versus is not None:
        logits = logits - readout.logit_of(resid, versus)
        unembed = unembed - readout.unembed.T[versus].float()
        unembed_bias = unembed_bias - b_U[versus]
    if centred and versus is None:
        mean_unembed, mean_bias = readout.unembed.float().mean(dim=1), b_U.mean()
        common = mean_unembed * model.get_parameter("decoder.ln_final.weight").float()
        scale = run.read("decoder.ln_final.hook_scale").float()
        common = (common - common.mean()) / scale
        direction = direction - common
        shared = (resid.float() * common).sum(dim=-1)
        logits = logits - (shared + readout.bias.float() @ mean_unembed + mean_bias)
        unembed, unembed_bias = unembed - mean_unembed, unembed_bias - mean_bias
    biases: list[Term] = [
        (Component("ln_final_b", "bias"), unembed @ readout.bias.float()),
        (Component("b_U", "bias"), unembed_bias),
    ]
    return LogitPath(targets, logits, direction, biases)


def texts_of_rows(
    model: HookedWhisper, grid: Int[Tensor, "batch pos"]
) -> tuple[tuple[str, ...], ...]:
    """A readable string for each token of each row."""
    return tuple(tuple(token_texts(model.cfg, row)) for row in grid)


def _terms(
    model: HookedWhisper, run: CachedRun, by: Detail, direction: Float[Tensor, "batch pos d_model"]
) -> Iterator[Term]:
    """What wrote to the stream, in the order of writing, with what it adds to the logit."""
    options: Any = {"pos_slice": list(run.positions), "return_labels": True}

    def by_label(results: Tensor, labels: list[str]) -> dict[str, Tensor]:
        values = torch.einsum("cbpm,bpm->cbp", results.float(), direction)
        return dict(zip(labels, values, strict=True))

    added = by_label(*run.cache.decompose_resid(**options))
    if by == "head":
        for kind in _ATTENTION:
            added |= by_label(*run.cache.stack_head_results(model=model, part=kind, **options))
    for label in ("embed", "pos_embed"):
        yield Component(label, "embed"), added[label]
    block: Any
    for layer, block in enumerate(model.decoder.blocks):
        for kind, letter in _ATTENTION.items():
            if by == "head":
                for head in range(model.cfg.n_text_heads):
                    label = f"L{layer}{letter}{head}"
                    yield Component(label, kind, layer, head), added[label]
                bias = direction @ getattr(block, kind).b_O.float()
                yield Component(f"{layer}_{kind}_b_O", "bias", layer), bias
            else:
                label = f"{layer}_{kind}_out"
                yield Component(label, kind, layer), added[label]
        if by == "neuron":
            # Never [neuron pos d_model] in memory.
            post = run.read(f"decoder.blocks.{layer}.mlp.hook_post").float()
            W_out = block.mlp.W_out.float()
            written = einsum(W_out, direction, "mlp m, batch pos m -> mlp batch pos")
            for neuron, value in enumerate(written * post.permute(2, 0, 1)):
                yield Component(f"L{layer}N{neuron}", "mlp", layer, neuron), value
            bias = direction @ block.mlp.b_out.float()
            yield Component(f"{layer}_mlp_b_out", "bias", layer), bias
        else:
            label = f"{layer}_mlp_out"
            yield Component(label, "mlp", layer), added[label]


def _names(model: HookedWhisper, by: Detail) -> list[str]:
    """The activations that are needed."""
    blocks = [f"decoder.blocks.{layer}" for layer in range(model.cfg.n_text_layers)]
    wanted = ["hook_attn_out", "hook_cross_attn_out", "hook_mlp_out"]
    wanted += {
        "component": [],
        "head": ["attn.hook_z", "cross_attn.hook_z"],
        "neuron": ["mlp.hook_post"],
    }[by]
    outside = ["decoder.hook_embed", "decoder.hook_pos_embed", "decoder.ln_final.hook_scale"]
    return [*outside, last_stream(model), *(f"{b}.{name}" for b in blocks for name in wanted)]
