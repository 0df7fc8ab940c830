"""The sweeps' page for people."""

from typing import Any

from benchmarks.floor import ELEMENTWISE, UNITS

_MIB = 2**20


def to_markdown(result: dict[str, Any]) -> str:
    """The whole result as one page."""
    facts = {**result["conditions"], **result["versions"]}
    lines = [f"# {result['title']}", "", "| what | value |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    lines += ["", *_summary(result["sweeps"])]
    for sweep in result["sweeps"]:
        lines += ["", f"## {sweep['title']}", "", *_timings(sweep)]
        lines += ["", _agreement(sweep["agreement"]), "", *_floors(sweep), "", *_work(sweep)]
    lines += ["", _NOTES]
    return "\n".join(lines) + "\n"


_NOTES = """The floor is the model's own matrix products, attention calls and convolutions behind
each patch, plus the clean and the corrupted run, at the speeds that this machine showed in the same
rounds. The strict floor leaves out what can be read off the two runs. The formulas are in
`benchmarks/floor.py`."""


def _summary(sweeps: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| sweep | times faster than the fastest plain loop | at least | times the floor | "
        "times the strict floor | memory (bound) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for sweep in sweeps:
        faster, target = sweep["times_faster"], sweep["target"]
        verdict = "met" if faster >= target else "missed"
        floors = {row["label"]: row["ratio"]["median"] for row in sweep["floors"]}
        lines.append(
            f"| {sweep['title']} | {faster:.1f} | {target:g}: {verdict} | {floors['floor']:.2f} "
            f"| {floors['floor, strict']:.2f} | {_memory(sweep['memory'])} |"
        )
    return lines


def _memory(memory: dict[str, int] | None) -> str:
    if memory is None:
        return "not measured"
    sweep, run, bound = (memory[key] / _MIB for key in ("sweep", "run", "bound"))
    return f"{sweep:.0f} MiB ({bound:.0f}); a plain run {run:.0f}"


def _timings(sweep: dict[str, Any]) -> list[str]:
    n, timed = sweep["n_patches"], sweep["n_timed"]
    lines = [
        f"Seconds of the whole sweep of {n} patches. Ours ran whole; of the others, preparation "
        f"+ {n} x the mean of {timed} random patches, others in each round.",
        "",
        "| contestant | median | quartiles | a patch | times ours | quartiles of the rounds' |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in sweep["timings"]:
        whole, ratio = row["seconds"], row["ratio"]
        quartiles = f"{whole['q1']:.2f} to {whole['q3']:.2f} s"
        lines.append(
            f"| {row['label']} | {whole['median']:.2f} s | {quartiles} "
            f"| {1000 * whole['median'] / n:.1f} ms | {ratio['median']:.2f} "
            f"| {ratio['q1']:.2f} to {ratio['q3']:.2f} |"
        )
    return lines


def _agreement(agreement: dict[str, Any]) -> str:
    parts = [f"{label} {value:.1e}" for label, value in agreement["differences"].items()]
    return (
        f"Greatest difference from the plain loop, of {agreement['n_checked']} patches: "
        f"{'; '.join(parts)}. {agreement['n_effects']} patches move the metric by more than 1e-4, "
        f"at most by {agreement['greatest_effect']:.2g}."
    )


def _floors(sweep: dict[str, Any]) -> list[str]:
    lines = [
        "| floor | median | ours is so many times it | quartiles |",
        "| --- | --- | --- | --- |",
    ]
    for row in sweep["floors"]:
        ratio = row["ratio"]
        lines.append(
            f"| {row['label']} | {row['seconds']['median']:.2f} s | {ratio['median']:.2f} "
            f"| {ratio['q1']:.2f} to {ratio['q3']:.2f} |"
        )
    return lines


def _work(sweep: dict[str, Any]) -> list[str]:
    lines = [
        "| work | amount, floor | strict | speed | seconds, floor | strict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in sweep["work"]:
        name, unit_s = row["name"], row["unit_s"]["median"]
        amounts = [_amount(name, row[which]) for which in ("floor", "strict")]
        taken = [f"{unit_s * row[which]:.2f}" for which in ("floor", "strict")]
        beside = " (beside the floor)" if name in ELEMENTWISE else ""
        lines.append(
            f"| {name}{beside} | {amounts[0]} | {amounts[1]} | {_speed(name, unit_s)} "
            f"| {taken[0]} | {taken[1]} |"
        )
    return lines


def _amount(name: str, amount: int) -> str:
    unit = UNITS.get(name, "rows")
    return f"{amount / 1e9:.1f} GFLOP" if unit == "FLOP" else f"{amount} {unit}"


def _speed(name: str, unit_s: float) -> str:
    unit = UNITS.get(name, "rows")
    if unit == "FLOP":
        return f"{1e-9 / unit_s:.0f} GFLOP/s"
    if unit == "rows":
        return f"{1e6 * unit_s:.2f} us a row"
    return f"{1000 * unit_s:.1f} ms"
