"""Studies on the page: every row, the paper's numbers marked, what is missing, everything escaped."""

from dataclasses import replace

import pytest

from nestling.errors import InputError
from nestling.evaluate.markup import inlined
from nestling.evaluate.report import report
from nestling.evaluate.studies import LISTED, SHOWN, contents, section, settings
from pages import check


@pytest.fixture
def page(studies, tmp_path):
    return report([], tmp_path / "report.html", studies).read_text()


def test_it_has_all_rows_of_all_tables(page, studies):
    rows = check(page).rows
    for study in studies:
        assert list(study.columns) in rows
        assert all([value.strip() for value in row] in rows for row in study.rows)


def test_the_contents_lead_to_every_study_and_to_the_runs(runs, studies, tmp_path):
    text = report(runs, tmp_path / "report.html", studies).read_text()
    page = check(text)
    assert {"table5", "table5-gpu", "runs"} <= set(page.links)
    assert "<h1>2 studies of Nested Learning and 2 runs</h1>" in text
    assert "<h2>Hope and Transformer++ on python</h2>" in text
    assert "<h3>Results</h3>" in text
    assert "<h2>Results</h2>" not in text


def test_it_escapes_what_recipes_and_results_say(page):
    for said in (
        "&lt;b&gt;bold&lt;/b&gt; &amp; co",
        "formal &lt;languages&gt;",
        "Accuracy &amp; more",
        "Width &lt; 32.",
    ):
        assert said in page
    for said in ("runs &lt;what&gt;", "results/&lt;x&gt;.jsonl", "lr 2: &lt;inf&gt;", "&lt;Hope&gt; &amp; others"):
        assert said in page
    assert not any(raw in page for raw in ("<b>bold", "<languages>", "<what>", "<x>", "<inf>", "<Hope>", "< 32"))


def test_the_papers_rows_and_columns_are_marked_and_ours_are_not(studies):
    text = section(studies[0])
    assert text.count('<tr class="paper">') == 1
    assert '<th scope="row">in the <span class="badge">paper</span></th>' in text
    assert '<td class="paper">100</td>' in text
    assert "of another scale" in text
    ours = replace(studies[0], columns=["model", "a", "b"], rows=studies[0].rows[:2])
    assert "badge" not in section(ours)
    assert 'class="paper"' not in section(ours)


def test_a_spread_stands_behind_its_mean(studies):
    assert '99.1<span class="spread"> ± 0.3</span>' in section(studies[0])


def test_a_finished_study_says_what_ran_where_and_when(studies):
    text = section(studies[0])
    assert "complete: 3 runs · Some Processor &lt;8 cores&gt; · commit 4c486f0aa1 · 24 November 2026" in text
    assert "24 November 2026 to 25 November 2026 (2 runs; of the others not recorded)" in text
    assert "2.0 hours" in text
    assert "2 rows of settings that are not wanted any more" in text
    assert "nestling recipe x --scale gpu" in text
    assert "Missing" not in text


def test_an_unfinished_study_says_what_is_missing_and_what_failed(studies):
    text = section(studies[1])
    assert "unfinished: 1 run, 1 failed, 100 missing" in text
    assert "Missing: 100 runs" in text
    rows = check(text + contents(studies[1:])).rows
    assert ["0.0", "1"] in rows  # the rate and the seed, in which the missing runs differ
    assert [f"and {100 - LISTED} more", ""] in rows
    assert "Failed: 1 run" in text
    assert "4c486f0aa1 (2 runs), 0123456789-dirty (1 run)" in text
    assert "commit 4c486f0aa1 and 1 other" in text
    assert "not recorded" in text


def test_a_study_that_has_not_begun_is_a_section_too(studies):
    text = section(replace(studies[1], cells=(), rows=(), machines=(), failed=(), figure=None))
    assert "not begun: 100 missing" in text
    assert "Nothing has been found yet" in text
    assert "<svg" not in text


def test_settings_are_named_once_and_many_values_in_short(studies):
    cells = studies[1].missing
    said = dict(settings(cells))
    assert said["model"] == ["hope"]
    assert said["fields"] == ['{"chunk_size": 16}']
    assert said["seed"] == ["1, 2, 3, 4, 5"]
    assert said["lr"] == ["20 values from 0.0 to 0.019"]
    names = dict(settings([{"name": f"n{i}"} for i in range(SHOWN + 3)]))["name"][0]
    assert names.endswith(f"n{SHOWN - 1} and 3 more")


def test_a_drawing_with_a_picture_keeps_its_colours(painting):
    text = inlined(painting, "mine", "a drawing")
    assert "var(" not in text
    assert 'xlink:href="data:image/png;base64,' in text


def test_a_drawing_takes_the_pages_colours_and_brings_no_rules(drawing):
    text = inlined(drawing, "mine", "a drawing")
    assert "var(--ink)" in text
    assert "#000000" not in text
    assert "<style" not in text
    assert "metadata" not in text
    assert 'class="broad drawn"' in text
    with pytest.raises(InputError, match="'mine'"):
        inlined("no drawing", "mine", "a drawing")
