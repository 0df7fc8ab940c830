"""The command line, `hooked-whisper`: one file a command, each of which calls the package."""

from hooked_whisper.cli.main import main

__all__ = ["main"]
