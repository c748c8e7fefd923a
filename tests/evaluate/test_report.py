"""The page: complete, self-contained, and right in a browser."""

import re

import pytest

from browser import CHROMIUM, WIDTHS, browse
from nestling.errors import InputError
from nestling.evaluate.report import report
from pages import check


@pytest.fixture
def page(runs, tmp_path):
    return report(runs, tmp_path / "report.html")


def test_it_has_every_section(page):
    text = page.read_text()
    for word in ("Results", "Curves", "Levels", "In their own words", "Configuration", "To do it again"):
        assert f"<h2>{word}</h2>" in text
    for fact in ("Hope and Transformer++ on python", "2.100", "1,204,000", "4c486f0aa1", "nestling demo --data python"):
        assert fact in text
    assert text.count('class="levels"') == 4


def test_it_escapes_what_models_and_machines_say(page):
    text = page.read_text()
    assert "return &lt;x&gt; &amp;" in text
    assert "Some Processor &lt;8 cores&gt;" in text
    assert "<x>" not in text


def test_its_tags_match_and_it_needs_nothing_but_itself(page):
    check(page.read_text())


def test_a_run_without_results_is_enough(tmp_path, write_run):
    text = report([write_run(tmp_path / "a", results=False)], tmp_path / "one.html").read_text()
    assert "<h2>Curves</h2>" in text
    assert "<h2>Levels</h2>" not in text
    assert "nestling train --model hope --size nano" in text
    assert "--set chunk_size=16" in text


def test_a_run_that_has_only_begun_is_enough(tmp_path, write_run):
    folder = write_run(tmp_path / "a", results=False)
    (folder / "metrics.jsonl").write_text("")
    assert "<h2>Curves</h2>" not in report([folder], tmp_path / "one.html").read_text()


def test_an_earlier_page_survives_a_mistake(page, tmp_path):
    before = page.read_text()
    with pytest.raises(InputError):
        report([tmp_path / "nowhere"], page)
    assert page.read_text() == before


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("scheme", "flags"), [("light", ()), ("dark", ("--force-dark-mode",))])
def test_it_fits_narrow_and_wide_windows_in_light_and_dark(runs, studies, tmp_path, scheme, flags):
    page = report(runs, tmp_path / "report.html", studies)
    facts, log = browse(page, tmp_path, *flags)
    assert "CONSOLE" not in log
    assert len(facts) == len(WIDTHS)
    for seen in facts:
        assert seen["overflow"] <= 0
        assert seen["cut"] == []
        assert seen["drawings"] == 4 + len(studies)
        assert (int(re.findall(r"\d+", seen["paper"])[0]) > 128) == (scheme == "light")
