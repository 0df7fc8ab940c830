"""Which latents of the encoder stand for a spoken digit, and what changes when they do.

    python examples/sae_study.py

Splices the shipped autoencoder of the encoder's last layer, with its error term, into the
digits model. For every digit: the latent that tells it best; whether setting a few latents,
in the second in which a digit is spoken, to what they are for another digit turns this digit
of the transcript into that one and leaves the others; whether removing the latents that
belong to a digit alone, everywhere, changes this digit alone. Draws the digits' latents over time.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hooked_whisper import HookedWhisper, Mel
from hooked_whisper.digits import SpokenDigits, recordings
from hooked_whisper.figures import plot_latents
from hooked_whisper.interventions import Clamp, Edit, Interventions, Site, ZeroAblation
from hooked_whisper.sae import SAE, latents_by_speech, load_suite

STEP = 3
"""The digit to turn into is the third next one in the alphabet."""


@dataclass
class Spoken:
    """One digit in one recording, with what its latents are on average."""

    recording: int
    place: int
    word: str
    window_s: tuple[float, float]
    latents: Tensor


class Study:
    """The model, the autoencoder, the recordings, and their latents."""

    def __init__(self, site: str) -> None:
        self.model, self.site = HookedWhisper.from_pretrained("digits"), site
        self.sae: SAE = load_suite("digits")[site]
        self.latents = f"{site}.hook_sae_acts_post"
        self.recordings: list[SpokenDigits] = recordings()
        self.mels = [self.model.to_mel(each.path) for each in self.recordings]
        _, cache = self.model.run_with_cache_with_saes(
            Mel.cat(self.mels), saes={site: self.sae}, names_filter=self.latents
        )
        self.acts = cache[self.latents]
        self.texts = [text.split() for text in self.model.generate(Mel.cat(self.mels)).texts]
        self.spoken = [
            Spoken(i, place, word.word, (word.start_s, word.end_s), self._mean(i, word))
            for i, each in enumerate(self.recordings)
            for place, word in enumerate(each.words)
        ]
        self.words = sorted({each.word for each in self.spoken})
        self.mean = {
            word: torch.stack([s.latents for s in self.spoken if s.word == word]).mean(dim=0)
            for word in self.words
        }

    def _mean(self, recording: int, word: object) -> Tensor:
        start, end = (round(50 * getattr(word, each)) for each in ("start_s", "end_s"))
        return self.acts[recording, start : end + 1].mean(dim=0)

    def other(self, word: str) -> str:
        """The digit that a digit is to be turned into."""
        return self.words[(self.words.index(word) + STEP) % len(self.words)]

    def own_latents(self, word: str, n: int) -> list[int]:
        """The latents that are active for a digit more than for any other."""
        others = torch.stack([mean for each, mean in self.mean.items() if each != word])
        return (self.mean[word] - others.amax(dim=0)).topk(n).indices.tolist()

    def turn(self, spoken: Spoken, n: int) -> list[Edit]:
        """The latents in which two digits differ most, as they are for the other one."""
        target = self.mean[self.other(spoken.word)]
        top = (target - self.mean[spoken.word]).abs().topk(n).indices.tolist()
        return [
            Clamp(Site(self.latents, latent=each, window_s=spoken.window_s), float(target[each]))
            for each in top
        ]

    def remove(self, spoken: Spoken, n: int) -> list[Edit]:
        """Without the latents that belong to a digit alone, wherever they are active."""
        return [ZeroAblation(Site(self.latents, latent=self.own_latents(spoken.word, n)))]

    def transcripts(
        self, edits: Callable[[Spoken, int], Sequence[Edit]], n: int, chosen: Sequence[Spoken]
    ) -> list[list[str]]:
        """What is written with the edits for each spoken digit."""
        found = []
        for each in chosen:
            with (
                self.model.saes({self.site: self.sae}, use_error_term=True),
                Interventions(self.model, *edits(each, n)),
            ):
                result = self.model.generate(self.mels[each.recording], max_new_tokens=12)
            found.append(result.texts[0].split())
        return found


def only_this_changed(before: list[str], after: list[str], place: int) -> bool:
    """Whether a digit was lost or became another, and all others stayed."""
    if after == before[:place] + before[place + 1 :]:
        return True
    return len(after) == len(before) and all(
        (a == b) == (i != place) for i, (a, b) in enumerate(zip(before, after, strict=True))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--n", type=int, default=10, help="latents of an edit")
    parser.add_argument("--digits", type=int, default=24, help="spoken digits to try")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    study = Study(f"encoder.blocks.{args.layer}.hook_resid_post")

    told = latents_by_speech(study.sae, study.model, study.recordings, study.site, progress=False)
    best = told.selectivity(level="word")["word"].best()
    print("digit    latent  AUROC (over the shipped recordings' digits)")
    for word, latent, auroc in best:
        print(f"{word:<8} {latent:>6}  {auroc:.3f}")

    chosen = [
        each for each in study.spoken if study.texts[each.recording][each.place] == each.word
    ][: args.digits]
    turned = study.transcripts(study.turn, args.n, chosen)
    removed = study.transcripts(study.remove, args.n, chosen)
    head = f"{args.n} clamped", f"{args.n} own removed"
    print(f"\n{'spoken':<28} {'edited':<8} {head[0]:<28} {head[1]}")
    n_turned = n_removed = 0
    for each, one, two in zip(chosen, turned, removed, strict=True):
        before = study.texts[each.recording]
        wanted = list(before)
        wanted[each.place] = study.other(each.word)
        n_turned += one == wanted
        n_removed += only_this_changed(before, two, each.place)
        print(f"{' '.join(before):<28} {each.word:<8} {' '.join(one):<28} {' '.join(two)}")
    print(f"\nturned into the wanted digit, all others left: {n_turned} of {len(chosen)}")
    print(f"changed by removing its own latents, all others left: {n_removed} of {len(chosen)}")

    index = 6
    recording = study.recordings[index]
    own = {word: study.own_latents(word, 1)[0] for word in study.words}
    n_pos, columns = round(50 * recording.duration_s), list(own.values())
    figure = plot_latents(
        study.acts[index, :n_pos, columns],
        [f"{word}: {latent}" for word, latent in own.items()],
        words=[(word.word, word.start_s, word.end_s) for word in recording.words],
        peaks=study.acts[:, :, columns].amax(dim=(0, 1)),
        title="For each digit, the latent that is most active for it alone",
    )
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "latents.png", dpi=120)
    print(f"\npicture: {args.out / 'latents.png'}")


if __name__ == "__main__":
    main()
