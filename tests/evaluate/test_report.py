"""The page: complete, self-contained, and right in a browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from nestling.errors import InputError
from nestling.evaluate.report import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
FLAGS += ["--virtual-time-budget=3000"]
WIDTHS = (390, 1400)


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


def test_it_needs_nothing_but_itself(page):
    text = page.read_text()
    assert not re.search(r"<script|@import|url\(|src=", text)
    assert set(re.findall(r'href="([^"]*)"', text)) == {"data:,"}
    assert set(re.findall(r"https?://[^\s\"<]+", text)) == {"http://www.w3.org/2000/svg"}


def test_its_tags_match(page):
    class Check(HTMLParser):
        open_tags: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "link"):
                self.open_tags.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    check = Check()
    check.feed(page.read_text())
    assert check.open_tags == []


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


def browse(page, folder, *flags):
    """What the page looks like at both widths (a frame is a window to its media queries), and the browser's log."""
    source = html.escape(page.read_text(), quote=True)
    frames = "".join(f'<iframe srcdoc="{source}" width="{width}" height="900"></iframe>' for width in WIDTHS)
    script = """
      window.onload = () => {
        const facts = [...document.querySelectorAll("iframe")].map(frame => {
          const page = frame.contentDocument, shown = one => one.getBoundingClientRect().height > 0;
          return {
            overflow: page.documentElement.scrollWidth - frame.contentWindow.innerWidth,
            paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
            drawings: [...page.querySelectorAll("svg")].filter(shown).length,
            cut: [...page.querySelectorAll("svg text")].filter(shown).filter(text => {
              const own = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
              return own.left < all.left - 1 || own.right > all.right + 1;
            }).map(text => text.textContent),
          };
        });
        document.getElementById("facts").textContent = JSON.stringify(facts);
      };"""
    wrapper = folder / "frames.html"
    style = "<style>:root { color-scheme: light dark; }</style>"
    wrapper.write_text(f'<!doctype html>{style}<p id="facts"></p>{frames}<script>{script}</script>')
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    facts = re.search(r'<p id="facts">(.*?)</p>', done.stdout, re.DOTALL).group(1)
    return json.loads(html.unescape(facts)), done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("scheme", "flags"), [("light", ()), ("dark", ("--force-dark-mode",))])
def test_it_fits_narrow_and_wide_windows_in_light_and_dark(page, tmp_path, scheme, flags):
    facts, log = browse(page, tmp_path, *flags)
    assert "CONSOLE" not in log
    assert len(facts) == len(WIDTHS)
    for seen in facts:
        assert seen["overflow"] <= 0
        assert seen["cut"] == []
        assert seen["drawings"] == 4
        assert (int(re.findall(r"\d+", seen["paper"])[0]) > 128) == (scheme == "light")
