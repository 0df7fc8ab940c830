"""`hooked-whisper circuit`: the edges that carry a word, as numbers, a picture and a page."""

from pathlib import Path
from typing import Any

import click

from hooked_whisper.cli import options as opt
from hooked_whisper.cli.main import INTERRUPTED
from hooked_whisper.cli.pairs import MEASURED, RUNS, PatchRuns, check_runs, make_pairs

SCORES = "scores.safetensors"
FILES = (SCORES, "edges.csv", "circuit.json", "circuit.png", "circuit.html", "graph.json")


@opt.command(
    *RUNS,
    opt.option(
        "--method",
        type=click.Choice(["exact", "eap", "eap-ig-inputs", "eap-ig-activations"]),
        default="eap-ig-inputs",
        help="Edges patched one by one, or estimated from gradients.",
    ),
    opt.option(
        "--steps",
        type=opt.COUNT_FROM_1,
        help="Points of integrated gradients.  [default: 5, of activations 1]",
    ),
    opt.option(
        "--direction",
        type=click.Choice(["noising", "denoising"]),
        default="noising",
        help="Corrupted outputs into the clean run, or the other way round.",
    ),
    opt.option("--edges", type=opt.COUNT_FROM_1, default=100, help="Edges to choose."),
    opt.option(
        "--choose",
        type=click.Choice(["greedy", "top"]),
        default="greedy",
        help="Grown from the logits, or those with the greatest scores; dangling ones go.",
    ),
    opt.flag("--signed", help="Only edges that help, none that work against the metric."),
    *MEASURED,
    opt.option("--carried-s", type=opt.OVER_0, default=0.1, help="Seconds of a part of an edge."),
    opt.option("--top", type=opt.COUNT_FROM_1, default=10, help="Edges to print."),
    opt.flag("--resume", help="Go on with the unfinished scores in the folder."),
    out=("A folder for the scores, the circuit, its picture and page", "MODEL-circuit"),
    examples="""
    hooked-whisper circuit
    hooked-whisper circuit yes.wav no.wav --model tiny.en --out yes-no
    hooked-whisper circuit ask.wav --model tiny.en --corrupt silence --corrupt-word not
    hooked-whisper circuit pairs.csv --model tiny.en --corrupt noise --edges 200
    hooked-whisper circuit --method eap --choose top --signed --edges 50
    """,
)
def circuit(args: opt.Options) -> None:
    """Find the edges between heads, MLPs and embeddings that carry what is measured.

    CLEAN and CORRUPTED are recordings; both runs are given CLEAN's text. A manifest or a folder
    in CLEAN's place holds many pairs, corrupted alike or as its columns say: corrupted, corrupt,
    corrupt_word, corrupt_start, corrupt_end, swap_with, word, at, token, metric. The folder gets
    scores.safetensors and edges.csv with all edges, circuit.json with those that are chosen,
    circuit.png, circuit.html, on which a click on an edge plays the sound that it carries, and
    graph.json, which circuit-tracer and Neuronpedia read. After Ctrl-C or a kill, it has the
    scores that were done, and --resume does the rest.
    """
    check_runs(args)
    from hooked_whisper.circuits import EdgeScores, evaluate_circuits, find_circuit
    from hooked_whisper.io import make_folder

    folder = args.new_path("circuit", goes_on=args.resume)
    if args.resume:  # what is there and cannot be read is told before anything is loaded
        EdgeScores.load(folder / SCORES)
    model = args.load_model()
    pairs = make_pairs(model, args)
    args.begin_anew(folder, *FILES)
    for pair in pairs:
        args.note(f"clean: {pair.clean_name}; corrupted: {pair.corrupted_name}; {pair.measures}.")
    make_folder(folder)
    runs = [(pair.clean, pair.corrupted) for pair in pairs]
    metrics = [pair.metric for pair in pairs]
    scores = find_circuit(
        model,
        runs,
        metrics,
        args.method,
        direction=args.direction,
        n_steps=args.steps,
        progress=not args.quiet,
        save_to=folder / SCORES,
    )
    if not scores.complete:
        opt.note("unfinished: the same command with --resume does the rest.")
        raise SystemExit(INTERRUPTED)
    n = min(args.edges, len(scores.edges))
    choose = scores.greedy if args.choose == "greedy" else scores.top
    found = choose(n, absolute=not args.signed)
    faithfulness = float(
        evaluate_circuits(model, found, runs, metrics, progress=False).faithfulness()[0]
    )
    _save(model, scores, found, pairs[0], folder, args)
    _report(scores, found, pairs, faithfulness, folder, args)


def _save(
    model: Any, scores: Any, found: Any, pair: PatchRuns, folder: Path, args: opt.Options
) -> None:
    """Everything that is in the folder beside the scores; pictures are of the first pair."""
    from hooked_whisper.circuits import draw_circuit, save_attribution_graph
    from hooked_whisper.circuits.carried import carried_seconds
    from hooked_whisper.interventions.aligned_words import spoken_words
    from hooked_whisper.io import write_whole
    from hooked_whisper.reports import circuit_page

    found.save(folder / "circuit.json")
    text = scores.to_dataframe().to_csv(index=False)
    write_whole(folder / "edges.csv", lambda file: file.write(text.encode()))
    times = carried_seconds(
        model, (pair.clean, pair.corrupted), pair.metric, found, window_s=args.carried_s
    )
    words = [
        (*word.window_s, word.word.strip())
        for word in spoken_words(model, pair.clean, model.to_tokens("").shape[1])
    ]
    title = f"{pair.clean_name} against {pair.corrupted_name}: {pair.measures}"
    figure = draw_circuit(found, mel=pair.clean.mel, words=words, times=times, title=title)
    write_whole(folder / "circuit.png", lambda file: figure.savefig(file, format="png"))
    circuit_page(
        model, found, pair.audio, folder / "circuit.html", times=times, words=words, text=title
    )
    save_attribution_graph(
        folder / "graph.json", model, found, pair.clean, pos=_measured_at(pair), times=times
    )


def _measured_at(pair: PatchRuns) -> int:
    """The token at which the metric reads the logits; the last one where there are many."""
    from hooked_whisper.metrics.base import resolve_positions

    positions = resolve_positions(pair.metric, pair.clean.n_pos)
    return positions[-1] if positions else -1


def _report(
    scores: Any,
    found: Any,
    pairs: list[PatchRuns],
    faithfulness: float,
    folder: Path,
    args: opt.Options,
) -> None:
    """Print the greatest edges, or all of the circuit as JSON."""
    from hooked_whisper.circuits.drawing import drawn_edges

    edges = [{"edge": edge.name, "score": edge.score} for edge in drawn_edges(found)]
    clean, corrupted = float(scores.clean.mean()), float(scores.corrupted.mean())
    if args.as_json:
        opt.echo_json(
            {
                "pairs": [
                    {
                        "clean": pair.clean_name,
                        "corrupted": pair.corrupted_name,
                        "measures": pair.measures,
                    }
                    for pair in pairs
                ],
                "method": scores.method,
                "direction": scores.direction,
                "metric": scores.metric,
                "metric_clean": clean,
                "metric_corrupted": corrupted,
                "faithfulness": faithfulness,
                "edges": edges,
                "folder": folder,
            }
        )
        return
    click.echo(
        f"{scores.metric}: {clean:.4g} in the clean run, {corrupted:.4g} in the corrupted one"
    )
    counts = ", ".join(f"{found.count(kind)} {kind}" for kind in ("encoder", "cross", "decoder"))
    click.echo(
        f"{len(found)} of {len(scores.edges)} edges ({counts}) keep {faithfulness:.3f} of the "
        "difference by themselves"
    )
    opt.echo_table(edges[: args.top])
    args.note(
        "edges.csv, circuit.json, circuit.png, circuit.html, graph.json and scores.safetensors "
        f"are in {folder}."
    )
