"""metrics.jsonl: lines survive, half a line does not, and a rewind drops what came later."""

import pytest

from nestling.errors import InputError
from nestling.metrics import Metrics, read, rewind


def written(path, steps):
    metrics = Metrics(path)
    for step in steps:
        metrics.write(step=step, loss=0.1 + step)
    metrics.sync()
    metrics.close()


def test_lines_are_appended_and_readable_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.write(step=1, loss=1 / 3)
    assert read(path) == [{"step": 1, "loss": 1 / 3}]
    metrics.close()
    written(path, [2])
    assert [line["step"] for line in read(path)] == [1, 2]


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, [1, 2])
    with open(path, "a") as file:
        file.write('{"step": 3, "lo')
    assert [line["step"] for line in read(path)] == [1, 2]
    rewind(path, 2)
    written(path, [3])
    assert [line["step"] for line in read(path)] == [1, 2, 3]


def test_rewind_keeps_up_to_the_step_byte_for_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path, [1, 2])
    before = path.read_bytes()
    written(path, [3, 4])
    rewind(path, 2)
    assert path.read_bytes() == before


def test_a_damaged_line_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(InputError, match="not JSON"):
        read(path)


def test_rewind_of_no_file_is_an_empty_file(tmp_path):
    rewind(tmp_path / "metrics.jsonl", 5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_value_that_is_no_number_is_never_written(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        metrics.write(loss=float("nan"))
    metrics.close()
