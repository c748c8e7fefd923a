"""The pieces of a page: the document around it, tables of facts, values as text; everything said is escaped."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from nestling.errors import InputError

_INKS = {
    "#ffffff": "--paper",
    "#000000": "--ink",
    "#111111": "--ink",
    "#e6e6e6": "--line",
    "#cccccc": "--line",
    "#999999": "--muted",
    "#7f7f7f": "--muted",
    "#393b79": "--deep",
}
"""Colours of a drawing that would be lost on a dark page, by the page's own for the same."""


def document(title: str, body: str) -> str:
    """A page that needs nothing but itself."""
    style = files("nestling.evaluate").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "</main>\n</body>\n</html>\n"
    )


def facts(rows: Iterable[tuple[str, Sequence[str]]], columns: Sequence[str] = (), corner: str = "") -> str:
    """A table of names and what is to be said of them; columns: headings of the values; corner: that of the names."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    head = f"<thead><tr><td>{escape(corner)}</td>{head}</tr></thead>" if columns or corner else ""
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
        for name, values in rows
    )
    return f'<table class="facts">{head}<tbody>{body}</tbody></table>'


def scroll(table: str, label: str) -> str:
    """A table that scrolls within its own box where the window is narrower; by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'


def details(summary: str, body: str, unfolded: bool = False) -> str:
    """Something to unfold."""
    return f"<details{' open' * unfolded}><summary>{escape(summary)}</summary>{body}</details>"


def written(value: Any) -> str:
    """A value as people write it."""
    if value is None:
        return "-"
    if dataclasses.is_dataclass(value) or isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def inlined(svg: str, name: str, label: str) -> str:
    """The text of an SVG file as a part of the page.

    Its ids, which would clash with those of other drawings, begin with `name`; its white, black and grey are the
    page's, unless there are pictures in it; what it says of itself and its rules for everything around it are left out.
    It keeps most of its width in a narrow window, where it scrolls. InputError for a text that is no such drawing.
    """
    body = svg[max(svg.find("<svg"), 0) :]
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="|xlink:href="#|url\(#', lambda found: f"{found[0]}{name}-", body)
    painted = "<image" in body  # what is written on a picture suits the picture's colours and not the page's
    if not painted:
        body = re.sub("#[0-9a-f]{6}\\b", lambda ink: f"var({_INKS[ink[0]]})" if ink[0] in _INKS else ink[0], body)
    head = re.match(r'<svg\b[^>]*?width="([\d.]+)(pt)?"[^>]*?viewBox="([^"]*)"[^>]*>', body)
    if head is None:
        raise InputError(f"svg: the drawing of '{name}' has no width or no view box; draw it again.")
    width = float(head[1]) * (4 / 3 if head[2] else 1)
    opening = (
        f'<svg class="{"broad" if width > 1100 else "slim"} {"painted" if painted else "drawn"}" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{head[3]}" '
        f'width="{width:.0f}" style="min-width: {0.6 * width:.0f}px" role="img" aria-label="{escape(label)}">'
    )
    return opening + body[head.end() :].strip()
