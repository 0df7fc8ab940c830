"""HookedWhisper: the network in the order of its parts, and what one does with it.

`layers`, `attention`, `blocks`, `encoder`, `decoder` compute what openai-whisper
computes, to the bit. `whisper` has the class, whose one base is `hooks.root`'s; `calls`
says what running it takes and returns; `generate`, `openai_api`, `processing` and
`describe` what its methods do.
"""
