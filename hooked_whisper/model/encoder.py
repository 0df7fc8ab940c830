"""Whisper's encoder: two convolutions, sinusoidal positions, pre-LayerNorm blocks."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_whisper.config import FRAMES_PER_POSITION, HookedWhisperConfig
from hooked_whisper.errors import MelError
from hooked_whisper.hooks.passes import PassInfo, running
from hooked_whisper.hooks.points import HookPoint, is_watched
from hooked_whisper.model.blocks import EncoderBlock, Residual, TransformerStack
from hooked_whisper.model.layers import Conv1d, LayerNorm, gelu, sinusoids
from hooked_whisper.speech.mel import Mel, check_mel, positions_before_padding

MelInput = Mel | Float[Tensor, "batch mel frame"]


class Encoder(TransformerStack):
    """From a log-mel spectrogram to what the decoder reads, 20 ms a position."""

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.conv1 = Conv1d(cfg.n_mels, cfg.d_model, kernel_size=3, padding=1)
        self.conv2 = Conv1d(
            cfg.d_model, cfg.d_model, kernel_size=3, stride=FRAMES_PER_POSITION, padding=1
        )
        positions = torch.empty(cfg.n_audio_ctx, cfg.d_model)
        if not positions.is_meta:  # else weights are on their way
            positions = sinusoids(cfg.n_audio_ctx, cfg.d_model)
        self.register_buffer("positional_embedding", positions)
        self.positional_embedding: Tensor
        self.blocks = nn.ModuleList(EncoderBlock(cfg) for _ in range(cfg.n_audio_layers))
        self.ln_final = LayerNorm(cfg)

        self.hook_mel = HookPoint("batch mel frame")
        self.hook_conv1 = HookPoint("batch d_model frame")
        self.hook_conv2 = HookPoint("batch d_model pos")
        self.hook_embed = HookPoint("batch pos d_model")
        self.hook_pos_embed = HookPoint("batch pos d_model")

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"]:
        """The audio positions' sinusoids, which are not trained."""
        return self.positional_embedding

    def pass_over(self, mel: MelInput) -> PassInfo:
        """What hooks can know of a pass over some recordings, once it is sure that these fit.

        Raises:
            MelError: Wrong bands, axes, dtype, device or values.
            AudioLengthError: Not the number of frames that the model takes.
        """
        values = mel.values if isinstance(mel, Mel) else mel
        check_mel(values, self.cfg.n_mels, self.cfg.n_frames)
        if mel.device != self.conv1.weight.device:
            raise MelError(
                f"the mel is on {mel.device} and the model on {self.conv1.weight.device}. "
                "Move it with mel.to(model.device)."
            )
        known = mel.n_positions if isinstance(mel, Mel) else positions_before_padding(mel)
        return PassInfo(n_positions=known)

    def embed(self, mel: MelInput) -> Residual:
        """The residual stream before the first block, of a mel that `pass_over` has checked."""
        values = mel.values if isinstance(mel, Mel) else mel
        x = self.hook_mel(self.hook_mel.clone_if_hooked(values))
        x = self.hook_conv1(gelu(self.conv1(x), overwrite=not is_watched(self.conv1)))
        x = self.hook_conv2(gelu(self.conv2(x), overwrite=not is_watched(self.conv2)))
        x = self.hook_embed(x.permute(0, 2, 1))
        pos = self.positional_embedding
        if self.hook_pos_embed.is_hooked:
            pos = self.hook_pos_embed(pos.expand(len(x), -1, -1).clone())
        # This way round the stream is contiguous: the first operand decides the layout.
        return (pos + x).to(x.dtype)

    def finish(self, resid: Residual) -> Residual:
        """The encoder's output, from the residual stream after the last block."""
        return self.ln_final.hook_normalized.clone_if_hooked(self.ln_final(resid))

    def pooled(
        self, resid: Residual, n_joined: int = 2
    ) -> Float[Tensor, "batch joined_pos d_model"]:
        """What Qwen2-Audio's tower gives out: neighbours averaged before the last LayerNorm.

        Args:
            resid: The stream after the last block, of `stop_at_layer` or a cache.
            n_joined: How many positions become one; what is left over is dropped.

        Source: `Qwen2AudioEncoder` in transformers.
        """
        return self.ln_final(nn.functional.avg_pool1d(resid.mT, n_joined).mT)

    def run_from(self, layer: int, resid: Residual, info: PassInfo) -> Residual:
        """The encoder's output, from the residual stream before block `layer`."""
        with running(info):
            return self.finish(self.run_blocks(resid, start=layer))

    def forward(self, mel: MelInput, stop_at_layer: int | None = None) -> Residual:
        """The encoder's output, or the residual stream before block `stop_at_layer`."""
        with running(self.pass_over(mel)):
            resid = self.run_blocks(self.embed(mel), stop=stop_at_layer)
            return resid if stop_at_layer is not None else self.finish(resid)
