"""The published study of Whisper-Tiny, for any Whisper and any recordings, in one call."""

from hooked_whisper.study.run import Study, study

__all__ = ["Study", "study"]
