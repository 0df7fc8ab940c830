"""Direct logit attribution: what every part of the decoder adds to a token's logit by itself.

The last LayerNorm is held at the scale that it had in the run. A logit is then
a sum over whatever wrote to the residual stream: the embeddings, each
sublayer (or each of its heads or neurons, and its output bias), and the biases
of the last LayerNorm and of the unembedding.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.errors import InputError
from hooked_whisper.lenses.cached_run import (
    Positions,
    Run,
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
_DETAILS = ("component", "head", "neuron")
_ATTENTION = ("attn", "cross_attn")


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
        """What one component adds.

        Raises:
            InputError: No component has this label.
        """
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
        values = self.values[:, row, pos]
        chosen = values.abs().topk(min(n, len(values))).indices.tolist()
        return [(self.components[each].label, float(values[each])) for each in chosen]

    def to_dataframe(self) -> "pandas.DataFrame":
        """One line for each component, row of the batch and position."""
        import pandas as pd

        n_components, n_rows, _ = self.values.shape
        index = pd.MultiIndex.from_product(
            [range(n_components), range(n_rows), self.positions], names=["place", "batch", "pos"]
        )
        frame = index.to_frame(index=False)
        places = frame.pop("place")
        for at, name in enumerate(("label", "kind", "layer", "index")):
            column = [getattr(self.components[place], name) for place in places]
            kind = object if at < 2 else "Int64"
            frame.insert(at, "component" if at == 0 else name, pd.Series(column, dtype=kind))
        frame["target"] = [text for row in self.target_texts for text in row] * n_components
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
            title: Drawn above.
        """
        from hooked_whisper.figures.lenses import plot_attribution

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
        pos: Decoder positions; None takes all, of a decoding those that decoded a token.

    Raises:
        InputError: No such detail or position, or no tokens.
        TokenError: Targets that do not fit.
        HookNameError: A cache that lacks what is needed.

    Source: Elhage et al. 2021; nostalgebraist 2020 for the fixed LayerNorm.
    """
    if by not in _DETAILS:
        raise InputError(f"by is {by!r}; it can be {', '.join(map(repr, _DETAILS))}.")
    asked = {"targets": targets, "versus": versus}
    run = open_run(model, source, tokens, _names(model, by), pos, asked)
    direction, logits, biases = direct_path(model, run)
    components: list[Component] = []
    values: list[Tensor] = []
    for several, added in _terms(model, run, by, direction):
        components += several
        values.append(added)
    for component, value in biases:
        components.append(component)
        values.append(value[None])
    grid, versus_grid = run.asked["targets"], run.asked.get("versus")
    return Attribution(
        components=tuple(components),
        values=torch.cat(values),
        logits=logits,
        positions=run.positions,
        targets=grid,
        versus=versus_grid,
        target_texts=texts_of_rows(model, grid),
        versus_texts=None if versus_grid is None else texts_of_rows(model, versus_grid),
    )


def direct_path(
    model: HookedWhisper, run: Run
) -> tuple[
    Float[Tensor, "batch pos d_model"],
    Float[Tensor, "batch pos"],
    list[tuple[Component, Float[Tensor, "batch pos"]]],
]:
    """The direction that a logit reads from the stream, the logit, and the biases added to it."""
    targets, versus = run.asked["targets"], run.asked.get("versus")
    positions = list(run.positions)
    direction = run.cache.logit_direction(targets, versus, positions, model=model)
    readout, resid = Readout.of(model), run.read(last_stream(model))
    logits = readout.logit_of(resid, targets)
    unembed = readout.unembed.T[targets].float()
    b_U = model.b_U.detach().float()
    unembed_bias = b_U[targets]
    if versus is not None:
        logits = logits - readout.logit_of(resid, versus)
        unembed = unembed - readout.unembed.T[versus].float()
        unembed_bias = unembed_bias - b_U[versus]
    biases = [
        (Component("ln_final_b", "bias"), unembed @ readout.bias.float()),
        (Component("b_U", "bias"), unembed_bias),
    ]
    return direction, logits, biases


def texts_of_rows(
    model: HookedWhisper, grid: Int[Tensor, "batch pos"]
) -> tuple[tuple[str, ...], ...]:
    """A readable string for each token of each row."""
    return tuple(tuple(token_texts(model.cfg, row)) for row in grid)


def _terms(
    model: HookedWhisper, run: Run, by: Detail, direction: Float[Tensor, "batch pos d_model"]
) -> Iterator[tuple[list[Component], Float[Tensor, "component batch pos"]]]:
    """What wrote to the stream, in the order of writing, with what it adds to the logit."""
    cache, pos = run.cache, list(run.positions)
    parts, labels = cache.decompose_resid(pos_slice=pos, return_labels=True)
    whole = dict(zip(labels, torch.einsum("cbpm,bpm->cbp", parts.float(), direction), strict=True))
    heads = _heads(model, run, direction) if by == "head" else {}
    for label in ("embed", "pos_embed"):
        yield [Component(label, "embed")], whole[label][None]
    block: Any
    for layer, block in enumerate(model.decoder.blocks):
        for kind in _ATTENTION:
            if by == "head":
                yield heads[layer, kind]
                bias = direction @ getattr(block, kind).b_O.float()
                yield [Component(f"{layer}_{kind}_b_O", "bias", layer)], bias[None]
            else:
                label = f"{layer}_{kind}_out"
                yield [Component(label, kind, layer)], whole[label][None]
        if by == "neuron":
            yield _neurons(block.mlp, layer, run, direction)
            bias = direction @ block.mlp.b_out.float()
            yield [Component(f"{layer}_mlp_b_out", "bias", layer)], bias[None]
        else:
            label = f"{layer}_mlp_out"
            yield [Component(label, "mlp", layer)], whole[label][None]


def _heads(
    model: HookedWhisper, run: Run, direction: Tensor
) -> dict[tuple[int, str], tuple[list[Component], Tensor]]:
    """Each layer's heads of each kind, with what they add to the logit."""
    found = {}
    n_layers, n_heads = model.cfg.n_text_layers, model.cfg.n_text_heads
    for kind in _ATTENTION:
        results, labels = run.cache.stack_head_results(
            pos_slice=list(run.positions),
            model=model,
            part=kind,  # type: ignore[arg-type]
            return_labels=True,
        )
        values = torch.einsum("cbpm,bpm->cbp", results.float(), direction)
        for layer in range(n_layers):
            own = slice(layer * n_heads, (layer + 1) * n_heads)
            each = [Component(label, kind, layer, head) for head, label in enumerate(labels[own])]
            found[layer, kind] = each, values[own]
    return found


def _neurons(
    mlp: Any, layer: int, run: Run, direction: Tensor
) -> tuple[list[Component], Float[Tensor, "component batch pos"]]:
    """An MLP's neurons, with what they add; never `[neuron pos d_model]` in memory."""
    post = run.read(f"decoder.blocks.{layer}.mlp.hook_post").float()
    written = einsum(mlp.W_out.float(), direction, "mlp m, batch pos m -> mlp batch pos")
    names = [Component(f"L{layer}N{n}", "mlp", layer, n) for n in range(post.shape[-1])]
    return names, written * post.permute(2, 0, 1)


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
