"""Speed and memory against openai-whisper and transformers: `python -m benchmarks.run --help`."""
