"""The MLP of a block: out, through a GELU, and back."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.hooks.points import HookPoint, is_watched
from hooked_whisper.model.layers import Linear, gelu


class MLP(nn.Module):
    """Two linear maps with a GELU between, hooked before and after it."""

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__()
        self.fc_in = Linear(cfg.d_model, cfg.d_mlp)
        self.fc_out = Linear(cfg.d_mlp, cfg.d_model)
        self.hook_pre = HookPoint("batch pos d_mlp")
        self.hook_post = HookPoint("batch pos d_mlp")

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = self.hook_pre(self.fc_in(x))
        overwrite = not is_watched(self.fc_in, self.hook_pre)
        return self.fc_out(self.hook_post(gelu(pre, overwrite)))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """What each neuron reads; a view of the weight."""
        return rearrange(self.fc_in.weight, "d_mlp d_model -> d_model d_mlp")

    @property
    def b_in(self) -> Float[Tensor, "d_mlp"]:
        """What is added to each neuron before the GELU."""
        return self.fc_in.bias

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """What each neuron writes; a view of the weight."""
        return rearrange(self.fc_out.weight, "d_model d_mlp -> d_mlp d_model")

    @property
    def b_out(self) -> Float[Tensor, "d_model"]:
        """What the MLP writes whatever its neurons do."""
        return self.fc_out.bias
