"""Pictures from plain tensors; matplotlib is loaded when the first one is drawn."""

from hooked_whisper.figures.attention import plot_cross_attention
from hooked_whisper.figures.patching import plot_patching

__all__ = ["plot_cross_attention", "plot_patching"]
