"""`nestling report` of studies: found by file, folder or name; unfinished, damaged and unknown ones."""

import json
from dataclasses import asdict

import pytest

from nestling import cli
from nestling.commands import report as command
from nestling.errors import InputError
from nestling.recipes import RECIPES, fig4, gather, learning
from nestling.recipes.cells import key, read
from nestling.recipes.scales import SCALES
from pages import check

SHORT = {"VALLEYS": ((1.0, 1.0, 2.0),), "MOMENTA": (0.9, 0.5), "RATES": (0.03, 0.06), "STEPS": 5, "TOLERANCE": 100.0}
BENCH = {
    "date": "2026-11-25T10:00:00+00:00",
    "machine": {"processor": "P", "device": "cpu", "commit": "0123456789abcdef"},
    "shape": {"hidden_size": 128},
    "rows": [{"contestant": "hope", "length": 512, "batch_size": 4, "tokens_per_second": 1234.0, "ratio": 0.5}],
}


@pytest.fixture(scope="module")
def everything():
    return gather.everything()


@pytest.fixture
def home(monkeypatch, tmp_path, everything):
    """A folder with the results of a short fig4, and the place where those of named recipes lie."""
    for name, value in SHORT.items():
        monkeypatch.setattr(fig4, name, value)
    folder = tmp_path / "results"
    fig4.fig4(folder)
    monkeypatch.setattr(command, "results_folder", lambda: folder)
    monkeypatch.setattr(gather, "everything", lambda: everything)
    return folder


def report(capsys, *arguments):
    """What the program says of its page, and the page."""
    assert cli.main(["report", *map(str, arguments), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    with open(result["page"], encoding="utf-8") as file:
        return result, file.read()


def refused(capsys, *arguments):
    """The one sentence with which the program refuses."""
    assert cli.main(["report", *map(str, arguments)]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("nestling: ")
    return line


def test_every_recipe_of_cells_is_known_by_the_name_of_its_study(everything):
    names = [one.study.name for one in everything]
    assert len(set(names)) == len(names)
    assert {one.recipe for one in everything} == set(RECIPES)
    assert {"table5", "table5-gpu", "table5-paper", "fig4", "learning-text"} <= set(names)


def test_every_recipe_has_a_table_before_its_first_run_and_where_all_runs_fail(everything, tmp_path, monkeypatch):
    (tmp_path / "squad").mkdir()
    monkeypatch.setenv("NESTLING_DATA", str(tmp_path))
    for one in (one for one in everything if one.scale == SCALES[0]):
        assert one.study.table({}).columns
        found = {}
        for _ in range(2):  # a search goes on after its first failure
            found |= {key(cell): cell | {"failed": "no"} for cell in list(one.study.cells(found))}
        assert one.study.table(found).columns


def test_without_arguments_all_results_are_on_the_page(home, tmp_path, capsys):
    (home / "bench.jsonl").write_text(json.dumps(BENCH) + "\n")
    (home / "strange.jsonl").write_text("{}\n")
    result, text = report(capsys, "--out", tmp_path / "page.html")
    assert result["studies"] == {"fig4": "complete: 4 runs", "bench": "complete: 1 run"}
    assert result["left_out"] == [str(home / "strange.jsonl")]
    rows = fig4.table(read(home / "fig4.jsonl")).rows
    assert all(f">{value}<" in text for row in rows for value in row)
    assert "1,234" in text
    assert "Fig. 4: momentum against delta momentum" in text
    assert "nestling recipe fig4 --out runs/again" in text
    assert text.count("<svg") == 1


def test_a_file_a_folder_and_a_name_of_one_study_are_one_section(home, tmp_path, capsys):
    result, text = report(capsys, home / "fig4.jsonl", home, "fig4", "--out", tmp_path / "page.html")
    assert result["studies"] == {"fig4": "complete: 4 runs"}
    assert text.count("<section") == 1
    assert cli.main(["report", "fig4", "--out", str(tmp_path / "page.html")]) == 0
    assert "The page of 1 study: " in capsys.readouterr().out


def test_one_study_in_two_folders_is_two_sections(home, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "fig4.jsonl").write_text((home / "fig4.jsonl").read_text())
    result, text = report(capsys, home, tmp_path / "other", "--out", tmp_path / "page.html")
    assert list(result["studies"]) == ["fig4", "fig4 (2)"]
    check(text)


def test_runs_and_studies_share_a_page(home, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"train": {"model": "hope", "data": "python"}}))
    result, text = report(capsys, tmp_path / "run", "fig4", "--out", tmp_path / "page.html")
    assert (result["runs"], list(result["studies"])) == (1, ["fig4"])
    assert "1 study of Nested Learning and 1 run" in text


def test_an_unfinished_study_says_what_is_missing(home, tmp_path, capsys):
    lines = (home / "fig4.jsonl").read_text().splitlines(keepends=True)
    old = json.dumps({"key": "of an earlier setting", "loss": 1.0}) + "\n"
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "fig4.jsonl").write_text("".join(lines[:1]) + old)
    result, text = report(capsys, elsewhere / "fig4.jsonl", "--out", tmp_path / "page.html")
    assert result["studies"] == {"fig4": "unfinished: 1 run, 3 missing"}
    assert "Missing: 3 runs" in text
    assert "1 row of settings that are not wanted any more" in text
    assert f"nestling recipe fig4 --out &#x27;{elsewhere}&#x27;" in text


def test_a_named_recipe_without_results_has_not_begun(home, tmp_path, capsys):
    result, text = report(capsys, "table5-gpu", "--out", tmp_path / "page.html")
    assert result["studies"] == {"table5-gpu": "not begun: 48 missing"}
    assert "Table 5: formal languages (scale gpu)" in text
    assert "nestling recipe table5 --scale gpu\n" in text


def test_of_a_shared_file_every_study_shows_its_own_rows(home, tmp_path, capsys):
    cells = [asdict(cell) for cell in learning.text_cells()][:3]
    rows = [{"key": key(cell), **cell, "loss": 2.0 + i, "quarters": [2.0]} for i, cell in enumerate(cells)]
    path = home / "learning.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, _ = report(capsys, path, "--out", tmp_path / "page.html")
    assert list(result["studies"]) == ["learning-text"]
    (cell,) = [asdict(cell) for cell in learning.moded_cells()][:1]
    with path.open("a") as file:
        file.write(json.dumps({"key": key(cell), **cell, "loss": 0.5, "accuracy": 0.7}) + "\n")
    result, text = report(capsys, path, "--out", tmp_path / "page.html")
    assert list(result["studies"]) == ["learning-text", "learning-moded"]
    assert "not wanted any more" not in text


def test_a_new_row_says_when_it_was_found(home):
    assert all(row["date"].endswith("+00:00") for row in read(home / "fig4.jsonl").values())


@pytest.mark.parametrize(
    ("name", "said"),
    [("fig44", "mean fig4 or"), ("tabel5", "table5"), ("qqqq", "nestling recipe --list"), ("lerning", "learning")],
)
def test_an_unknown_name_is_refused_with_near_ones(home, capsys, name, said):
    line = refused(capsys, name)
    assert f"'{name}' is no run folder, no file of results and no recipe" in line
    assert said in line


def test_files_and_folders_of_other_kinds_are_refused(home, tmp_path, capsys):
    (tmp_path / "fig44.jsonl").write_text("{}\n")
    line = refused(capsys, tmp_path / "fig44.jsonl")
    assert "holds no results of a recipe" in line
    assert "did you mean fig4" in line
    (tmp_path / "empty").mkdir()
    assert "holds neither a run" in refused(capsys, tmp_path / "empty")


def test_a_damaged_file_is_named_and_an_earlier_page_survives(home, tmp_path, capsys):
    page, path = tmp_path / "page.html", home / "fig4.jsonl"
    page.write_text("earlier")
    whole = path.read_text()
    path.write_text(whole + '{"key": "hal')
    assert f"'{path}': line 5" in refused(capsys, path, "--out", page)
    rows = [json.loads(line) for line in whole.splitlines()]
    path.write_text("".join(json.dumps(row | {"reached": [], "lr": None}) + "\n" for row in rows))
    assert "its rows lack what fig4 needs" in refused(capsys, path, "--out", page)
    (home / "bench.jsonl").write_text("{}\n")
    assert "its last line is no measurement of `nestling bench`" in refused(capsys, "bench", "--out", page)
    assert page.read_text() == "earlier"


def test_without_results_and_arguments_it_is_said_what_to_give(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "results_folder", lambda: tmp_path / "nowhere")
    assert "none was given" in refused(capsys)
    with pytest.raises(InputError, match="no recipe"):
        gather.gather([tmp_path / "nothing"], tmp_path)
