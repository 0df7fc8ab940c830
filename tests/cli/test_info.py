"""`hooked-whisper info`."""

import json
from collections.abc import Callable

from click.testing import Result

from hooked_whisper import HookedWhisper

Run = Callable[..., Result]


def test_every_hook_has_the_shape_that_a_run_gives(run: Run, digits_model: HookedWhisper) -> None:
    told = json.loads(run("info", "--json", "--quiet").stdout)
    assert told["config"] == digits_model.cfg.to_dict()
    assert told["n_parameters"] == sum(each.numel() for each in digits_model.parameters())
    assert [each["name"] for each in told["hooks"]] == digits_model.hook_names()
    pattern = next(each for each in told["hooks"] if "cross_attn.hook_pattern" in each["name"])
    assert pattern["axes"] == ["batch", "head", "query", "key"]
    assert pattern["shape"] == [None, 6, None, 1500]


def test_layers_are_listed_once(run: Run) -> None:
    done = run("info")
    assert "d_model                 96\n" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if ".attn.hook_z" in line if "enc" in line]
    assert line.split() == [
        *("encoder.blocks.*.attn.hook_z", "batch", "pos", "head", "d_head"),
        *("[batch,", "1500,", "6,", "16]", "4"),
    ]
    assert "68 more fire only while a flag is on" in done.stderr
    assert "flag is on" not in run("info", "--quiet").stderr


def test_names_that_are_asked_for_are_written_out(run: Run) -> None:
    done = run("info", "--hook", "encoder.blocks.*.attn.hook_z", "--hook", "decoder.hook_logits")
    assert "encoder.blocks.3.attn.hook_z" in done.stdout
    assert "decoder.hook_logits" in done.stdout and "hook_resid_post" not in done.stdout


def test_what_is_switched_off_comes_with_its_flag(run: Run) -> None:
    done = run("info", "--switched-off")
    (line,) = [each for each in done.stdout.splitlines() if "encoder.blocks.*.hook_mlp_in" in each]
    assert line.endswith("use_hook_mlp_in")
    hooks = json.loads(run("info", "--switched-off", "--json", "--quiet").stdout)["hooks"]
    assert {each["flag"] for each in hooks} > {None, "use_attn_result", "use_attn_in"}
