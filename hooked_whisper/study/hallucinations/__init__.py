"""What a Whisper writes where nobody speaks, which parts of it do so, and edits that stop them."""
