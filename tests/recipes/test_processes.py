"""Models side by side: one that fails ends all, and its last words are passed on."""

import json
import subprocess
import sys
import time

import pytest

from nestling.errors import InputError
from nestling.recipes import processes

STEPS = {"a": 3, "b": 3}


@pytest.fixture
def out(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({name: {"threads": 1} for name in STEPS}))
    return tmp_path


@pytest.fixture
def run(out, monkeypatch):
    """Run a small program for each of a and b in place of the training."""

    def side_by_side(**programs):
        monkeypatch.setattr(processes, "command", lambda folder, name: [sys.executable, "-c", programs[name]])
        processes.side_by_side(out, STEPS, progress=False)

    return side_by_side


def test_both_finish(run, out):
    write = "import pathlib; pathlib.Path(r'{}').write_text('done')"
    run(a=write.format(out / "a.txt"), b=write.format(out / "b.txt"))
    assert (out / "a.txt").exists()
    assert (out / "b.txt").exists()


def test_a_refusal_is_passed_on_and_the_other_is_ended(run):
    begun = time.monotonic()
    with pytest.raises(InputError, match="b: data: it is empty"):
        run(a="import time; time.sleep(60)", b="import sys; sys.exit('data: it is empty')")
    assert time.monotonic() - begun < 30


def test_a_bug_is_shown_as_one(run):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run(a="1 / 0", b="")


def test_the_bars_follow_the_metrics(out):
    (out / "a").mkdir()
    lines = [{"step": step, "loss": 3.0 - step / 100} for step in range(1, 101)]
    (out / "a" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"st')
    with processes.Progress(disable=True) as bars:
        task = bars.add_task("a", total=200, loss="")
        processes._advance(bars, task, out / "a" / "metrics.jsonl", 200)
        assert bars.tasks[0].completed == 100
        assert bars.tasks[0].fields["loss"] == "loss 2.000"


def test_the_real_program_refuses_with_one_sentence(out):
    (out / "plan.json").write_text("{")
    done = subprocess.run(processes.command(out, "a"), capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot be read" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
