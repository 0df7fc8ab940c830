"""Files of sparse autoencoders: SAELens's format in and out, and what others have written."""

from hooked_whisper.sae.io.load import load_sae, load_suite
from hooked_whisper.sae.saving import save_sae

__all__ = ["load_sae", "load_suite", "save_sae"]
