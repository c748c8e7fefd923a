"""Reading run folders."""

import json

import pytest

from nestling.errors import InputError
from nestling.evaluate.runs import load


def test_a_run_is_named_after_its_model(runs):
    assert [run.name for run in load(runs)] == ["Hope", "Transformer++"]


def test_runs_of_one_model_are_named_after_their_folders(tmp_path, write_run):
    folders = [write_run(tmp_path / f"seed-{i}" / "hope") for i in range(2)]
    assert [run.name for run in load(folders)] == ["seed-0/hope", "seed-1/hope"]


def test_without_results_the_last_evaluation_counts(tmp_path, write_run):
    (run,) = load([write_run(tmp_path / "a", results=False)])
    assert run.bits_per_byte == {256: run.evaluations[-1]["valid_bpb"]}
    assert run.bits == pytest.approx(1 / 0.6931471805599453)


def test_a_run_in_progress_may_end_in_half_a_line(tmp_path, write_run):
    folder = write_run(tmp_path / "a")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 201, "los')
    assert len(load([folder])[0].steps) == 200


def test_a_run_that_has_just_begun_has_no_lines(tmp_path, write_run):
    folder = write_run(tmp_path / "a", results=False)
    (folder / "metrics.jsonl").unlink()
    (run,) = load([folder])
    assert run.steps == []
    assert run.bits_per_byte == {}
    assert run.bits is None


def damage(folder, name, text):
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.json", "{"), ("config.json", "[]"), ("results.json", "no"), ("metrics.jsonl", "no\n")],
)
def test_damaged_files_are_named(tmp_path, name, text, write_run):
    with pytest.raises(InputError, match=name):
        load([damage(write_run(tmp_path / "a"), name, text)])


def test_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        load([])
    with pytest.raises(InputError, match=r"config\.json"):
        load([tmp_path])


def test_the_configuration_may_miss_parts(tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"parameters": 3}))
    assert load([folder])[0].name == "bare"
