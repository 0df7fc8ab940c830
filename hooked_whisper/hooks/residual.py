"""The residual stream taken apart: what each component wrote, and what it does to the logits.

The methods have TransformerLens's names and meaning, and work on either
stack. With the stream before layer L as the target, components that precede
it sum to it: embeddings, then per block attention, in the decoder
cross-attention, and the MLP.
"""

from abc import abstractmethod
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooked_whisper.config import Stack
from hooked_whisper.errors import CacheError
from hooked_whisper.hooks.collector import Index, take

ResidualStack = Float[Tensor, "component *batch_pos d_model"]
Mode = Literal["all", "attn", "cross_attn", "mlp"]


@runtime_checkable
class Weights(Protocol):
    """A model, as far as its weights are asked for."""

    @property
    def W_U(self) -> Tensor:
        """The unembedding, `[d_model vocab]`."""

    def get_parameter(self, target: str) -> nn.Parameter:
        """A parameter by its name."""


class ResidualAnalysis:
    """Methods of a cache that decompose the residual stream of one stack."""

    @abstractmethod
    def __getitem__(self, key: Any) -> Tensor: ...

    @abstractmethod
    def axes(self, key: Any) -> tuple[str, ...]: ...

    @abstractmethod
    def __contains__(self, key: object) -> bool: ...

    @abstractmethod
    def n_layers(self, stack: Stack) -> int:
        """Layers of a stack of the model that the activations come from."""

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Index | None = None,
        mlp_input: bool = False,
        return_labels: bool = False,
        *,
        stack: Stack = "decoder",
    ) -> Any:
        """The residual stream as it grows, up to the one that a layer reads.

        Args:
            layer: The stream before this layer comes last; None is the stack's end.
            incl_mid: Also the streams between the sublayers of a block.
            apply_ln: Centre all, and divide by the scale at the target.
            pos_slice: Positions to keep.
            mlp_input: End at what the layer's MLP reads instead.
            return_labels: Also return a label for each component.
            stack: Which stack.

        Returns:
            A stack of streams, with their labels if asked for.

        Raises:
            HookNameError: The cache lacks one of the activations.
        """
        end = self._end(stack, layer, mlp_input)
        mids = ["mid", "mid_cross"] if stack == "decoder" else ["mid"]
        labels, keys = [], []
        for each in range(end + 1):
            if each == self.n_layers(stack):
                labels.append("final_post")
                keys.append((stack, each - 1, "resid_post"))
                break
            labels.append(f"{each}_pre")
            keys.append((stack, each, "resid_pre"))
            if (incl_mid and each < end) or (mlp_input and each == end):
                chosen = mids if incl_mid else mids[-1:]
                labels += [f"{each}_{mid}" for mid in chosen]
                keys += [(stack, each, f"resid_{mid}") for mid in chosen]
        parts = [self._read(key, pos_slice) for key in keys]
        return self._finish(
            parts, labels, stack, layer, mlp_input, apply_ln, pos_slice, return_labels
        )

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Mode = "all",
        apply_ln: bool = False,
        pos_slice: Index | None = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
        *,
        stack: Stack = "decoder",
    ) -> Any:
        """What each component added to the stream that a layer reads; they sum to it.

        Args:
            mode: Only the outputs of one kind of sublayer, or all.
            incl_embeds: Also the embedding and the positions.

        The others are `accumulated_resid`'s.

        Raises:
            HookNameError: The cache lacks one of the activations.
            CacheError: A mode that the stack does not have.
        """
        kinds = {"encoder": ["attn", "mlp"], "decoder": ["attn", "cross_attn", "mlp"]}[stack]
        if mode != "all" and mode not in kinds:
            raise CacheError(f"mode is {mode!r}; the {stack} has {['all', *kinds]}.")
        end = self._end(stack, layer, mlp_input)
        labels = ["embed", "pos_embed"] if incl_embeds else []
        keys: list[tuple[Any, ...]] = [(stack, label) for label in labels]
        for each in range(end + (1 if mlp_input else 0)):
            for kind in kinds:
                if mode in ("all", kind) and not (each == end and kind == "mlp"):
                    labels.append(f"{each}_{kind}_out")
                    keys.append((stack, each, f"{kind}_out"))
        if not keys:
            raise CacheError("there is no component before layer 0 without the embeddings.")
        parts = [self._read(key, pos_slice) for key in keys]
        return self._finish(
            parts, labels, stack, layer, mlp_input, apply_ln, pos_slice, return_labels
        )

    def stack_head_results(
        self,
        layer: int | None = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Index | None = None,
        apply_ln: bool = False,
        *,
        model: Weights | None = None,
        stack: Stack = "decoder",
        part: Literal["attn", "cross_attn"] = "attn",
    ) -> Any:
        """What each head of the layers before `layer` added to the residual stream.

        Args:
            layer: Heads below this layer; None takes all.
            return_labels: Also return labels, `"L0H1"` or for cross-attention `"L0X1"`.
            incl_remainder: Also the rest of the stream before `layer`, so that all sum to it.
            model: The model, whose `W_O` is needed where `hook_result` was not cached.
            part: Self-attention or cross-attention.

        The others are `accumulated_resid`'s.

        Raises:
            HookNameError: The cache lacks one of the activations.
            CacheError: Neither results nor a model to compute them with.
        """
        end = self._end(stack, layer, False)
        parts: list[Tensor] = []
        labels: list[str] = []
        for each in range(end):
            heads = self._head_results(stack, each, part, pos_slice, model)
            parts += heads.unbind(dim=-2)
            sign = "X" if part == "cross_attn" else "H"
            labels += [f"L{each}{sign}{head}" for head in range(heads.shape[-2])]
        if incl_remainder:
            target = self.accumulated_resid(layer, pos_slice=pos_slice, stack=stack)[-1]
            parts.append(target - torch.stack(parts).sum(dim=0) if parts else target)
            labels.append("remainder")
        if not parts:
            raise CacheError("there are no heads before layer 0. Pass a higher layer.")
        return self._finish(parts, labels, stack, layer, False, apply_ln, pos_slice, return_labels)

    def apply_ln_to_stack(
        self,
        residual_stack: ResidualStack,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Index | None = None,
        *,
        stack: Stack = "decoder",
    ) -> ResidualStack:
        """Centre components and divide them by the scale that a LayerNorm used on their sum.

        The LayerNorm is that before `layer`'s attention (or MLP), or the
        stack's last one. Its weight and bias are left out, as in
        TransformerLens; `logit_attrs` puts the weight into the direction.

        Raises:
            HookNameError: The cache lacks the LayerNorm's `hook_scale`.
        """
        if layer is None or self._end(stack, layer, False) == self.n_layers(stack):
            key: tuple[Any, ...] = (stack, "scale", "ln_final")
        else:
            mlp_norm = "ln3" if stack == "decoder" else "ln2"
            key = (stack, layer, "scale", mlp_norm if mlp_input else "ln1")
        scale = self._read(key, pos_slice)
        return (residual_stack - residual_stack.mean(dim=-1, keepdim=True)) / scale

    def logit_attrs(
        self,
        residual_stack: ResidualStack,
        tokens: int | Int[Tensor, "..."],
        incorrect_tokens: int | Int[Tensor, "..."] | None = None,
        pos_slice: Index | None = None,
        *,
        model: Weights,
    ) -> Float[Tensor, "component *batch_pos"]:
        """What each component adds to the logit of a token, or to a difference of two logits.

        Over the components of a decomposition of the decoder's final stream
        the results sum to the logit, less what the last LayerNorm's bias and
        the unembedding's bias add to it.

        Args:
            residual_stack: Components of the decoder's final residual stream, not normalized.
            tokens: A token id, or one for each batch row and position (broadcast).
            incorrect_tokens: Tokens whose logits are subtracted.
            pos_slice: The positions that the components were cut to, if they were.
            model: The model, for its last LayerNorm's weight and its unembedding.

        Raises:
            HookNameError: The cache lacks the last LayerNorm's `hook_scale`.
        """
        direction = self.logit_direction(tokens, incorrect_tokens, pos_slice, model=model)
        return (residual_stack * direction).sum(dim=-1)

    def logit_direction(
        self,
        tokens: int | Int[Tensor, "..."],
        incorrect_tokens: int | Int[Tensor, "..."] | None = None,
        pos_slice: Index | None = None,
        *,
        model: Weights,
    ) -> Float[Tensor, "*batch_pos d_model"]:
        """The direction of the decoder's final stream that `logit_attrs` projects onto.

        The unembedding's column, through the last LayerNorm's weight,
        centring and scale, which is held at what the run had. The arguments are
        those of `logit_attrs`.

        Raises:
            HookNameError: The cache lacks the last LayerNorm's `hook_scale`.
        """
        weight, unembed = model.get_parameter("decoder.ln_final.weight").float(), model.W_U
        direction = unembed.T[torch.as_tensor(tokens)].float()
        if incorrect_tokens is not None:
            direction = direction - unembed.T[torch.as_tensor(incorrect_tokens)].float()
        direction = direction * weight
        scale = self._read(("decoder", "scale", "ln_final"), pos_slice)
        return (direction - direction.mean(dim=-1, keepdim=True)) / scale

    def _end(self, stack: Stack, layer: int | None, mlp_input: bool) -> int:
        """The target layer as a number from 0 to n_layers."""
        n_layers = self.n_layers(stack)
        end = n_layers if layer is None else layer + n_layers if layer < 0 else layer
        highest = n_layers - 1 if mlp_input else n_layers
        if not 0 <= end <= highest:
            raise CacheError(
                f"layer is {layer}; the {stack} has {n_layers} layers, so that it "
                f"can be 0 to {highest}" + (" with mlp_input." if mlp_input else ", or None.")
            )
        return end

    def _read(self, key: tuple[Any, ...], pos_slice: Index | None) -> Tensor:
        value = self[key]
        return value if pos_slice is None else take(value, self.axes(key), pos_slice, str(key))[0]

    def _head_results(
        self, stack: Stack, layer: int, part: str, pos_slice: Index | None, model: Weights | None
    ) -> Float[Tensor, "*batch_pos head d_model"]:
        if (stack, layer, "result", part) in self:
            return self._read((stack, layer, "result", part), pos_slice)
        if model is None:
            raise CacheError(
                "head results were not cached. Pass model=, or run with "
                "model.set_use_attn_result(True)."
            )
        z = self._read((stack, layer, "z", part), pos_slice)
        W_O = model.get_parameter(f"{stack}.blocks.{layer}.{part}.out.weight").to(z.dtype)
        W_O = rearrange(W_O, "m (head d) -> head d m", head=z.shape[-2])
        return einsum(z, W_O, "... head d, head d m -> ... head m")

    def _finish(
        self,
        parts: list[Tensor],
        labels: list[str],
        stack: Stack,
        layer: int | None,
        mlp_input: bool,
        apply_ln: bool,
        pos_slice: Index | None,
        return_labels: bool,
    ) -> Any:
        result = torch.stack(parts)
        if apply_ln:
            result = self.apply_ln_to_stack(result, layer, mlp_input, pos_slice, stack=stack)
        return (result, labels) if return_labels else result
