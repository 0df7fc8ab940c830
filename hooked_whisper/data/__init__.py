"""From recordings to batches that a model runs on: the one meaning of "recordings"."""

from hooked_whisper.data.recordings import Recording, as_recordings

__all__ = ["Recording", "as_recordings"]
