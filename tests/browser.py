"""A headless Chromium, where there is one: what a page looks like at two widths, and what the browser says of it."""

import html
import json
import re
import shutil
import subprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
FLAGS += ["--virtual-time-budget=3000"]
WIDTHS = (390, 1400)
SCRIPT = """
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


def browse(page, folder, *flags):
    """What the page looks like at both widths (a frame is a window to its media queries), and the browser's log."""
    source = html.escape(page.read_text(), quote=True)
    frames = "".join(f'<iframe srcdoc="{source}" width="{width}" height="900"></iframe>' for width in WIDTHS)
    wrapper = folder / "frames.html"
    style = "<style>:root { color-scheme: light dark; }</style>"
    wrapper.write_text(f'<!doctype html>{style}<p id="facts"></p>{frames}<script>{SCRIPT}</script>')
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    facts = re.search(r'<p id="facts">(.*?)</p>', done.stdout, re.DOTALL).group(1)
    return json.loads(html.unescape(facts)), done.stderr
