"""The example runs, and what it prints is true."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "continual.py"


def test_the_example_learns_comes_back_and_loads(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path))
    runpy.run_path(str(EXAMPLE))
    said = capsys.readouterr().out
    before, after, back, loaded, _ = map(float, re.findall(r"([\d.]+) bits per byte", said))
    assert after < before - 0.1
    assert back == pytest.approx(before)
    assert loaded == pytest.approx(after)
    assert "updates {'fast': 125, 'slow': 15}" in said
