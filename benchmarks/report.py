"""A table for people and a JSON file for programs."""

from typing import Any

_HEAD = "| contestant | median | quartiles | ratio | quartiles of the rounds' ratios |"


def verdict(ratio: float, target: float) -> str:
    """Whether a target is met, and by how much it is missed."""
    if ratio <= target:
        return "met"
    return f"missed by {ratio - target:.3f} ({ratio / target - 1:.1%})"


def to_markdown(result: dict[str, Any]) -> str:
    """The whole result as one page."""
    lines = [f"# {result['title']}", "", *_conditions(result), "", *_targets(result)]
    for task in result["tasks"]:
        lines += ["", f"## {task['title']}", "", *_timings(task)]
        if task["agreement"]:
            lines += ["", task["agreement"]]
        if task["memory"]:
            lines += ["", *_memory(task)]
        if task["profile"]:
            lines += ["", *_profile(task)]
    return "\n".join(lines) + "\n"


def _conditions(result: dict[str, Any]) -> list[str]:
    facts = {**result["conditions"], **result["versions"]}
    return ["| what | value |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in facts.items())]


def _targets(result: dict[str, Any]) -> list[str]:
    lines = ["| target | ratio to | at most | measured | |", "| --- | --- | --- | --- | --- |"]
    for task in result["tasks"]:
        if task["target"] is not None:
            ratio = task["timings"][0]["ratio"]
            spread = f"{ratio['median']:.3f} ({ratio['q1']:.3f} to {ratio['q3']:.3f})"
            lines.append(
                f"| {task['title']} | {task['base']} | {task['target']} | {spread} "
                f"| {task['verdict']} |"
            )
    return lines


def _timings(task: dict[str, Any]) -> list[str]:
    lines = [_HEAD, "| --- | --- | --- | --- | --- |"]
    for row in task["timings"]:
        seconds, ratio = row["seconds"], row["ratio"]
        base = " (base)" if row["label"] == task["base"] else ""
        lines.append(
            f"| {row['label']}{base} | {_ms(seconds['median'])} "
            f"| {_ms(seconds['q1'])} to {_ms(seconds['q3'])} "
            f"| {ratio['median']:.3f} | {ratio['q1']:.3f} to {ratio['q3']:.3f} |"
        )
    return lines


def _memory(task: dict[str, Any]) -> list[str]:
    lines = ["| contestant | peak memory above the loaded model | ratio |", "| --- | --- | --- |"]
    for row in task["memory"]:
        lines.append(f"| {row['label']} | {row['bytes'] / 2**20:.1f} MiB | {row['ratio']:.2f} |")
    return lines


def _profile(task: dict[str, Any]) -> list[str]:
    lines = [
        f"Where the difference to {task['base']} is: time of each operator itself, in ms a run "
        "(wall clock, one after the other: not for a busy machine).",
        "",
        "| operator | ours | base | difference |",
        "| --- | --- | --- | --- |",
    ]
    for row in task["profile"]:
        ours, base = row["ours_ms"], row["base_ms"]
        lines.append(f"| {row['operator']} | {ours:.2f} | {base:.2f} | {ours - base:+.2f} |")
    return lines


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
