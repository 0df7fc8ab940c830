"""Where a transcript comes from: the lenses on the eight shipped recordings, with pictures.

    python examples/lens_study.py [--out out]

After how many encoder layers the transcript is there (with the encoder's final LayerNorm and
without), where in the decoder each digit becomes the likeliest token, which components add to its
logit, and from which part of the recording it was read.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from hooked_whisper import HookedWhisper
from hooked_whisper.digits import SpokenDigits, recordings
from hooked_whisper.lenses import (
    direct_attribution,
    encoder_lens,
    logit_lens,
    source_attribution,
    token_trajectories,
)

DIGITS = "zero one two three four five six seven eight nine".split()
N_OTHERS = len(DIGITS) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = HookedWhisper.from_pretrained("digits", device="cpu")
    spoken = recordings()
    study_encoder(model, spoken, out)
    decodings = [
        model.generate(model.to_mel(each.path), return_cache=True, names_filter="decoder.*")
        for each in spoken
    ]
    study_decoder(model, spoken, decodings)
    study_parts(model, spoken, decodings)
    draw(model, spoken[0], decodings[0], out)
    print(f"pictures: {out}")


def study_encoder(model: Any, spoken: list[SpokenDigits], out: Path) -> None:
    """After how many encoder layers the transcripts are right, in both conventions."""
    texts = [each.text for each in spoken]
    mel = model.to_mel([each.path for each in spoken])
    tokens = model.to_tokens([" " + text for text in texts], append_eot=True)
    for final_ln in (True, False):
        lens = encoder_lens(model, mel, tokens, final_ln=final_ln, max_new_tokens=16)
        right = [sum(a == b for a, b in zip(each, texts, strict=True)) for each in lens.texts]
        probs = [round(each, 3) for each in lens.mean_logprobs.mean(dim=1).exp().tolist()]
        print(f"\nencoder lens, {'with' if final_ln else 'without'} the final LayerNorm")
        print(f"  layers run:                           {list(lens.layers)}")
        print(f"  transcripts right, of {len(texts)}:               {right}")
        print(f"  probability of a reference token:     {probs}")
        print(f"  layers after which it is there:       {lens.emerges_at(texts)}")
        if final_ln:
            lens.plot(title=texts[0]).savefig(out / "encoder_lens.png")


def study_decoder(model: Any, spoken: list[SpokenDigits], decodings: list[Any]) -> None:
    """From which site on each digit is the likeliest token."""
    found: Counter[str] = Counter()
    for decoding, recording in zip(decodings, spoken, strict=True):
        lens = logit_lens(model, decoding, pos=steps(decoding, recording))
        for ranks in lens.target_ranks[:, 0].T.tolist():
            wrong = [place for place, rank in enumerate(ranks) if rank > 0]
            found[lens.labels[wrong[-1] + 1 if wrong else 0]] += 1
    print("\nlogit lens, the likeliest token from here on")
    for label, n in sorted(found.items()):
        print(f"  {label:15s} {n} of {found.total()} digits")


def study_parts(model: Any, spoken: list[SpokenDigits], decodings: list[Any]) -> None:
    """What adds to a digit's logit, less that of each other digit; and from where it was read."""
    ids = model.to_tokens([" " + digit for digit in DIGITS], prepend_sot=False)[:, 0].tolist()
    added: Counter[str] = Counter()
    n_digits = n_right = 0
    own = read = 0.0
    for decoding, recording in zip(decodings, spoken, strict=True):
        words = [(word.start_s, word.end_s) for word in recording.words]
        where = steps(decoding, recording)
        by_word: Any = 0
        for other in ids:  # a digit less itself adds nothing
            parts = direct_attribution(model, decoding, versus=other, pos=where)
            assert parts.error < 1e-4
            for part, value in zip(parts.components, parts.values.sum(dim=(1, 2)), strict=True):
                layer = f" of layer {part.layer}" if part.kind == "cross_attn" else ""
                added[part.kind + layer] += float(value) / N_OTHERS  # type: ignore[assignment]
            source = source_attribution(model, decoding, windows_s=words, versus=other, pos=where)
            by_word = by_word + source.window_values[:, 0] / N_OTHERS
            read += float(source.head_values.sum()) / N_OTHERS
        n_digits += len(words)
        n_right += sum(place == word for word, place in enumerate(by_word.argmax(dim=0).tolist()))
        own += float(by_word.diagonal().sum())
    print("\ndirect attribution: a digit's logit less the mean of the other digits'")
    for name, total in sorted(added.items()):
        print(f"  {name:22s} {total / n_digits:+6.2f}")
    print("\nsource attribution")
    print(f"  read most from its own time: {n_right} of {n_digits} digits")
    print(f"  from its own time: {own / n_digits:.2f} of {read / n_digits:.2f}\n")


def steps(decoding: Any, recording: SpokenDigits) -> slice:
    """The decoder positions that predict the digits."""
    first = decoding.n_prompt - 1
    return slice(first, first + len(recording.words))


def draw(model: Any, recording: SpokenDigits, decoding: Any, out: Path) -> None:
    """One recording's pictures."""
    spans = [(word.start_s, word.end_s, word.word) for word in recording.words]
    pictures = {
        "logit_lens": logit_lens(model, decoding).plot(title=recording.text),
        "trajectories": token_trajectories(
            model, decoding, of=[f" {digit}" for digit in ("three", "two", "one", "four")]
        ).plot(0, title=f"the first token of {recording.text!r}"),
        "attribution": direct_attribution(model, decoding, by="head", versus=" seven").plot(pos=0),
        "sources": source_attribution(model, decoding, windows_s=0.1, versus=" seven").plot(
            spans_s=spans
        ),
    }
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png")


if __name__ == "__main__":
    main()
