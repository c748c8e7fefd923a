"""What every page of ours keeps to, by parsing it."""

import re
from html.parser import HTMLParser

VOID = ("meta", "link", "br")
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


class Page(HTMLParser):
    """Checks the balance of tags; collects ids, links within the page, and the texts of all table rows."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.rows = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.collect(attrs)

    def handle_startendtag(self, tag, attrs):
        self.collect(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def collect(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href") and not value.startswith(("data:,", "data:image/png;")):
                assert value.startswith("#")
                self.links.append(value[1:])


def check(text):
    """Tags match, ids are unique, links lead somewhere on the page, nothing comes from elsewhere; returns the Page."""
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.links) <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert not re.search(r"<script|@import|url\([^#]|\bsrc=", text)
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= NAMESPACES
    return page
