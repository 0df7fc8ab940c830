"""Write the tables of these pages that come from the code itself.

    python docs/tables.py

The hook names with their shapes (docs/hooks.md), the tree of errors (docs/errors.md), the axes
(docs/glossary.md), the rooms of the package (docs/architecture.md). Each stands between two
comments; `tests/contract/test_docs_tables.py` fails when one is no longer what this writes.
"""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import torch

from hooked_whisper import HookedWhisper, HookedWhisperConfig, config, errors
from hooked_whisper.config import Stack

DOCS = Path(__file__).parent
BEGIN, END = "<!-- {}: written by docs/{} -->", "<!-- end -->"

MEANING = {
    "encoder.hook_mel": "the log-mel spectrogram",
    "encoder.hook_conv1": "after the first convolution and its GELU",
    "encoder.hook_conv2": "after the second convolution and its GELU",
    "encoder.hook_embed": "the embedded sound",
    "decoder.hook_embed": "the embedded tokens",
    "*.hook_pos_embed": "the positions added to it",
    "*.hook_resid_pre": "the residual stream before the block",
    "*.hook_attn_in": "what self-attention reads, a copy for each head",
    "*.hook_q_input": "what the queries read",
    "*.hook_k_input": "what the keys read",
    "*.hook_v_input": "what the values read",
    "*.ln1.hook_scale": "what the LayerNorm before self-attention divides by",
    "*.ln1.hook_normalized": "its result, weight and bias included",
    "*.attn.hook_q": "queries",
    "*.attn.hook_k": "keys",
    "*.attn.hook_v": "values",
    "*.attn.hook_attn_scores": "scores: after the mask, before the softmax",
    "*.attn.hook_pattern": "the pattern: after the softmax",
    "*.attn.hook_z": "values, mixed by the pattern",
    "*.attn.hook_result": "what each head adds",
    "*.hook_attn_out": "what self-attention adds",
    "*.hook_resid_mid": "resid_pre + attn_out",
    "*.hook_cross_attn_in": "what cross-attention's queries read, for each head",
    "*.hook_cross_q_input": "what cross-attention's queries read",
    "*.hook_cross_k_input": "what its keys read: the encoder's output",
    "*.hook_cross_v_input": "what its values read: the encoder's output",
    "decoder.*.ln2.hook_scale": "what the LayerNorm before cross-attention divides by",
    "decoder.*.ln2.hook_normalized": "its result, weight and bias included",
    "*.cross_attn.hook_q": "queries: from the text",
    "*.cross_attn.hook_k": "keys: from the sound",
    "*.cross_attn.hook_v": "values: from the sound",
    "*.cross_attn.hook_attn_scores": "scores, before the softmax",
    "*.cross_attn.hook_pattern": "the pattern: after the softmax",
    "*.cross_attn.hook_z": "values, mixed by the pattern",
    "*.cross_attn.hook_result": "what each head adds",
    "*.hook_cross_attn_out": "what cross-attention adds",
    "*.hook_resid_mid_cross": "resid_mid + cross_attn_out",
    "*.hook_mlp_in": "what the MLP reads",
    "*.ln[23].hook_scale": "what the LayerNorm before the MLP divides by",
    "*.ln[23].hook_normalized": "its result, weight and bias included",
    "*.mlp.hook_pre": "neurons before the GELU",
    "*.mlp.hook_post": "neurons after the GELU",
    "*.hook_mlp_out": "what the MLP adds",
    "*.hook_resid_post": "the residual stream after the block",
    "*.ln_final.hook_scale": "what the last LayerNorm divides by",
    "encoder.ln_final.hook_normalized": "its result: what the decoder hears",
    "decoder.ln_final.hook_normalized": "its result, weight and bias included",
    "decoder.hook_logits": "the logits, in float32",
}
"""What each hook is, by the first glob that fits, in the order in which hooks fire."""


def hook_table(stack: Stack, behind_switch: bool = False) -> str:
    """Every hook of one stack: a glob over its layers, its axes, its shape in Tiny, what it is."""
    with torch.device("meta"):
        model = HookedWhisper(HookedWhisperConfig.for_release("tiny"))
    rows = {}
    for name, point in model.hook_dict.items():
        if not name.startswith(stack) or (point.flag is not None) != behind_switch:
            continue
        shape = ", ".join(
            axis if size is None else str(size)
            for axis, size in zip(point.axes, model.axis_sizes(name), strict=True)
        )
        order, text = next(
            (number, text)
            for number, (glob, text) in enumerate(MEANING.items())
            if fnmatch(name, glob)
        )
        cells = [f"`{re.sub(r'[.][0-9]+[.]', '.*.', name)}`", " ".join(point.axes), f"`[{shape}]`"]
        cells += [text, f"`{point.flag}`"] if behind_switch else [text]
        rows[order] = f"| {' | '.join(cells)} |"
    head = ["name", "axes", "shape in Tiny", "what it is"] + ["switch"] * behind_switch
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [rows[order] for order in sorted(rows)])


def error_tree() -> str:
    """The tree of errors, as the docstring of errors.py draws it."""
    lines = (errors.__doc__ or "").splitlines()
    tree = [line[4:] for line in lines if line.startswith("    ")]
    return "\n".join(["```text", *tree, "```"])


def axes_table() -> str:
    """The names of axes, as the docstring of config.py lists them."""
    rows = re.findall(r"^    (\w+) +(.+)$", config.__doc__ or "", re.MULTILINE)
    return "\n".join(
        ["| axis | what it counts |", "|---|---|", *(f"| `{a}` | {b} |" for a, b in rows)]
    )


def rooms_table() -> str:
    """The rooms in their lines, from the top down, each with the first line of its docstring."""
    source = (DOCS.parent / "tests/contract/test_imports.py").read_text()
    [lines] = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LINES"
    ]
    rows = ["| line | room | what it is |", "|---|---|---|"]
    for number, rooms in enumerate(line for line in lines[1:] if line):
        for room in sorted(rooms):
            path = DOCS.parent / "hooked_whisper" / room
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            first = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()[0]
            link = f"[{room}](../{file.relative_to(DOCS.parent).as_posix()})"
            rows.append(f"| {len(lines) - 1 - number} | {link} | {first} |")
    return "\n".join(rows)


TABLES = {
    "encoder hooks": ("hooks.md", lambda: hook_table("encoder")),
    "decoder hooks": ("hooks.md", lambda: hook_table("decoder")),
    "encoder hooks behind a switch": ("hooks.md", lambda: hook_table("encoder", True)),
    "decoder hooks behind a switch": ("hooks.md", lambda: hook_table("decoder", True)),
    "errors": ("errors.md", error_tree),
    "axes": ("glossary.md", axes_table),
    "rooms": ("architecture.md", rooms_table),
}
"""What is written: by name, the page that it is in and the function that makes it."""


def with_table(text: str, name: str, table: str, by: str = "tables.py") -> str:
    """A page's text with the table between its comments, which say what wrote it."""
    begin = BEGIN.format(name, by)
    before, found, rest = text.partition(begin)
    if not found:
        raise ValueError(f"no comment {begin!r} in the page.")
    return f"{before}{begin}\n\n{table}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    for name, (page, make) in TABLES.items():
        path = DOCS / page
        path.write_text(with_table(path.read_text(), name, make()))


if __name__ == "__main__":
    main()
