"""Massive activations of Whisper's encoder: where they are, who writes them, what without them.

    python examples/massive_activations.py tiny.en.pt sentences/manifest.csv --out massive

Prints the numbers, and writes OUT.json and OUT.png. `--alignments` is a folder of files with the
times of words (TextGrid, CTM, CSV), by which positions are in a word or between words;
`--first` takes so many recordings; `--no-removals` and `--no-transcripts` leave out what takes
the most time.
"""

import argparse
from collections import Counter
from pathlib import Path

from hooked_whisper import HookedWhisper
from hooked_whisper.data import add_alignments, as_recordings
from hooked_whisper.lenses import massive_activations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("--hook", help="default: behind the last encoder block")
    parser.add_argument("--alignments", type=Path)
    parser.add_argument("--first", type=int)
    parser.add_argument("--no-removals", action="store_true")
    parser.add_argument("--no-transcripts", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("massive"))
    args = parser.parse_args()
    model = HookedWhisper.from_pretrained(args.model)
    hook = args.hook or f"encoder.blocks.{model.cfg.n_audio_layers - 1}.hook_resid_post"
    recordings = list(
        as_recordings(args.recordings[0] if len(args.recordings) == 1 else args.recordings)
    )
    recordings = recordings[: args.first]
    if args.alignments is not None:
        recordings = add_alignments(recordings, args.alignments)
    options = {"removals": not args.no_removals, "transcripts": not args.no_transcripts}
    found = massive_activations(model, recordings, hook, **options)
    print(found)
    heard = Counter(position.recording for position in found.positions)
    most = max(heard.values(), default=0)
    print(f"{len(heard)} of {found.n_recordings} recordings have some, at most {most}")
    print(f"dimensions {found.top_dimensions}, in the quietest quarter {found.quiet_share:.1%}")
    words = [position.word for position in found.positions if position.word is not None]
    if words:
        print(f"between words {words.count('')} of {len(words)}")
    for name, share in [*list(found.writers.items())[:4], *list(found.neurons.items())[:5]]:
        print(f"written by {name}: {share:.3f}")
    for name, each in found.removals.items():
        print(f"without: {name}: {each}")
    found.save(args.out.with_suffix(".json"))
    found.plot().savefig(args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
