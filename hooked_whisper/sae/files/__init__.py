"""Files of sparse autoencoders: SAELens's format in and out, and what others have written."""

from hooked_whisper.sae.files.load import load_sae
from hooked_whisper.sae.files.save import save_sae

__all__ = ["load_sae", "save_sae"]
