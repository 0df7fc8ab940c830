"""`python -m hooked_whisper`: the command line."""

from hooked_whisper.cli import main

if __name__ == "__main__":
    main()
