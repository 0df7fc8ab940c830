"""What commands print."""

import json
from pathlib import Path

import pytest
import torch

from hooked_whisper.cli.options import echo_json, echo_table


def test_json_has_no_nan_and_no_paths(capsys: pytest.CaptureFixture[str]) -> None:
    echo_json({"a": float("nan"), "b": [torch.tensor(1.5), float("inf")], "c": Path("x/y")})
    told = capsys.readouterr().out
    assert json.loads(told) == {"a": None, "b": [1.5, None], "c": "x/y"}
    echo_json({"text": "größer"})
    assert "größer" in capsys.readouterr().out


def test_tables_align_numbers_on_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    echo_table([{"name": "a", "n": 5, "x": 0.123456}, {"name": "bcd", "n": None, "x": 1234.5}])
    assert capsys.readouterr().out == ("name  n       x\na     5  0.1235\nbcd   -   1,234\n")
    echo_table([])
    assert capsys.readouterr().out == ""
