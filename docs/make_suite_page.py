"""Write the tables and pictures of docs/whisper_tiny_en.md from what `make suite-tiny-en` found.

    python docs/make_suite_page.py [build/suite_tiny_en/results.json]

With a file, it becomes benchmarks/results/suite-tiny-en.json first, without what no table shows.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from tables import with_table

from hooked_whisper.figures import plot_learning_curve, style

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / "benchmarks/results/suite-tiny-en.json"
PAGE, PICTURES = HERE / "whisper_tiny_en.md", HERE / "pictures"
NAMES = {
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "relu": "ReLU",
    "transcoder": "transcoder of the MLP",
    "untrained": "untrained TopK",
    "dimensions": "dimensions",
    "components": "principal components",
    "neurons": "neurons of the MLP",
}
"""Features, as the tables call them."""
SHOWN = (
    "topk",
    "batchtopk",
    "jumprelu",
    "relu",
    "neurons",
    "dimensions",
    "components",
    "untrained",
)
PROBED_KS = (2, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="?")
    args = parser.parse_args()
    if args.results is not None:
        text = json.dumps(rounded(without_values(json.loads(args.results.read_text()))), indent=0)
        KEPT.write_text(text + "\n", encoding="utf-8")
    found = json.loads(KEPT.read_text())["found"]
    text = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        text = with_table(text, name, make(found), Path(__file__).name)
    PAGE.write_text(text, encoding="utf-8")
    for name, draw in FIGURES.items():
        draw(found).savefig(PICTURES / f"suite_{name}.png")


def without_values(results: dict[str, Any]) -> dict[str, Any]:
    """Without the single phones of all features but those of TopK and the dimensions."""
    for place, numbers in results["found"].items():
        if place.startswith(("phones/", "speakers/")):
            numbers.pop("by_value", None)
            if not place.startswith(("phones/topk", "phones/dimensions")):
                numbers.pop("auroc_by_value", None)
    return results


def rounded(value: Any) -> Any:
    """With four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


# What was found


def seeds(found: Mapping[str, Any], kind: str, architecture: str, hook: str) -> list[Any]:
    """Of every seed."""
    return [
        each
        for place, each in found.items()
        if place.startswith(f"{kind}/{architecture}/") and place.rpartition("/")[2] == hook
    ]


def one(found: Mapping[str, Any], kind: str, architecture: str, hook: str) -> Any:
    """Of the first seed; None if it was not looked for."""
    return next(iter(seeds(found, kind, architecture, hook)), None)


def hooks(found: Mapping[str, Any], kind: str, stack: str, architecture: str = "*") -> list[str]:
    """In which places there is something, in the order in which they run."""
    names = {
        place.rpartition("/")[2]
        for place in found
        if place.startswith(f"{kind}/{'' if architecture == '*' else architecture}")
    }
    of_stack = [name for name in names if name.startswith(stack)]
    return sorted(of_stack, key=lambda name: (".ln_final." in name, name))


def short(hook: str) -> str:
    """A hook as tables name it."""
    if ".ln_final." in hook:
        return "output"
    return f"block {hook.split('.')[2]}"


def spliced(found: Mapping[str, Any], architecture: str, hook: str) -> Mapping[str, Any]:
    """What it does to speech; empty if that was not tried."""
    return found.get(f"spliced/{architecture}/{hook}", {})


# Tables


def lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *body])


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def given_back(found: Mapping[str, Any], stack: str) -> str:
    """What autoencoders give back, and what they do to speech."""
    head = ["hook", "autoencoder", "seeds", "FVU", "without massive", "normalised", "L0"]
    head += ["never active", "CE recovered", "WER", "the model's"]
    rows = []
    for architecture in (*SHOWN[:4], "transcoder"):
        for hook in hooks(found, "given back", stack, architecture + "/"):
            every = seeds(found, "given back", architecture, hook)
            means = {key: mean(each[key] for each in every) for key in every[0]}
            speech = spliced(found, architecture, hook)
            row = [short(hook), NAMES[architecture], str(len(every))]
            row += [number(means[k]) for k in ("fvu", "fvu_without_massive", "fvu_normalized")]
            row += [number(means["l0"], 1), f"{100 * means['dead_share']:.1f} %"]
            row += [number(speech.get(key)) for key in ("ce_recovered", "wer", "wer_model")]
            rows.append(row)
    return lines(head, rows)


def told(found: Mapping[str, Any], label: str) -> str:
    """Phones or speakers, by what they are told; means over seeds."""
    head = ["hook", "features", "n", "AUROC", "F1", "precision at recall 0.5"]
    head += [f"F1 of {k}" for k in PROBED_KS]
    rows = []
    for hook in hooks(found, f"{label}s", "encoder"):
        for features in SHOWN:
            every = seeds(found, f"{label}s", features, hook)
            if not every:
                continue
            row = [short(hook), NAMES[features], f"{every[0]['n_features']:,}"]
            for key in ("auroc", "f1", "precision_at_half"):
                row.append(number(mean(each[key] for each in every)))
            for k in PROBED_KS:
                row.append(number(mean(probed(each, k) for each in every)))
            rows.append(row)
    return lines(head, rows)


def probed(numbers: Mapping[str, Any], k: int) -> float:
    """F1 of the probe of k features."""
    return next(float(each["f1"]) for each in numbers["probes"] if each["k"] == k)


def stability(found: Mapping[str, Any]) -> str:
    """Cosines of matched decoder rows."""
    head = ["hook", "autoencoder", "pairs of seeds", "mean cosine of partners", "over 0.7"]
    rows = []
    for architecture in NAMES:
        for stack in ("encoder", "decoder"):
            for hook in hooks(found, "seeds", stack, architecture + "/"):
                every = seeds(found, "seeds", architecture, hook)
                row = [f"{stack} {short(hook)}", NAMES[architecture], str(len(every))]
                row += [number(mean(each["mean_matched"] for each in every), 2)]
                row += [f"{100 * mean(each['share_above_0.7'] for each in every):.0f} %"]
                rows.append(row)
    return lines(head, rows)


TABLES = {
    "suite, encoder": lambda found: given_back(found, "encoder"),
    "suite, decoder": lambda found: given_back(found, "decoder"),
    "suite, phones": lambda found: told(found, "phone"),
    "suite, speakers": lambda found: told(found, "speaker"),
    "suite, seeds": stability,
}


# Pictures


@style.styled
def draw_probes(found: Mapping[str, Any]) -> Any:
    """F1 of phones over the number of features that are read, at each hook."""
    places = hooks(found, "phones", "encoder", "topk/")
    figure = style.new_figure(2.3 * len(places), 3.0)
    every = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
    for axes, hook in zip(every, places, strict=True):
        for i, features in enumerate(("topk", "neurons", "dimensions", "components", "untrained")):
            numbers = one(found, "phones", features, hook)
            if numbers is None:
                continue
            points = [(each["k"], each["f1"]) for each in numbers["probes"]]
            axes.plot(*zip(*points, strict=True), label=NAMES[features], **style.line_style(i))
        axes.set_xscale("log", base=2)
        axes.set_xticks([k for k, _ in points], [str(k) for k, _ in points])
        axes.set_title(short(hook))
        axes.set_xlabel("features read")
        axes.grid(axis="y")
    every[0].set_ylabel("mean F1 over phones")
    every[0].set_ylim(bottom=0)
    every[0].legend()
    return figure


@style.styled
def draw_aurocs(found: Mapping[str, Any]) -> Any:
    """AUROC and F1 of the single best feature for each phone, by hook."""
    places = hooks(found, "phones", "encoder", "topk/")
    figure = style.new_figure(8.0, 3.0)
    for axes, key, name in zip(
        figure.subplots(1, 2), ("auroc", "f1"), ("AUROC", "F1"), strict=True
    ):
        for i, features in enumerate(("topk", "neurons", "dimensions", "components", "untrained")):
            values = [(one(found, "phones", features, hook) or {}).get(key) for hook in places]
            axes.plot(range(len(places)), values, label=NAMES[features], **style.line_style(i))
        axes.set_xticks(range(len(places)), [short(hook) for hook in places])
        axes.set_ylabel(f"mean {name}, best single feature")
        axes.grid(axis="y")
    figure.axes[0].legend()
    return figure


def draw_curve(found: Mapping[str, Any]) -> Any:
    """What is left unexplained, over the minutes of sound."""
    points = next(each for place, each in found.items() if place.startswith("curve/"))
    return plot_learning_curve(points)


FIGURES = {"probes": draw_probes, "features": draw_aurocs, "curve": draw_curve}

if __name__ == "__main__":
    main()
