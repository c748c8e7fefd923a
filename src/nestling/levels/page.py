"""A nested system in words: a table for a terminal, and an HTML page with the drawing that needs nothing but itself."""

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from nestling.levels.clock import KNOWLEDGE, Component
from nestling.levels.drawing import NARROW, draw
from nestling.levels.transfers import buses, sentence

if TYPE_CHECKING:
    from nestling.levels.system import System

_STYLE = """:root { color-scheme: light dark; --paper: #fbfaf8; --ink: #1c2128; --muted: #59636e; --line: #e0ddd6; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e8eb; --muted: #9aa4b0; --line: #2e353d; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1020px; margin: 0 auto; padding: 40px 24px 56px; }
h1 { font: 600 clamp(26px, 5vw, 36px)/1.2 Charter, Georgia, "DejaVu Serif", serif; margin: 0 0 8px; }
p { color: var(--muted); max-width: 72ch; margin: 0 0 28px; }
svg { display: block; max-width: 100%; height: auto; }
.narrow { display: none; }
dl { margin: 40px 0 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 26px 36px; }
dt { font-weight: 600; } dt small { color: var(--muted); font-weight: 400; margin-left: 6px; }
dd { margin: 3px 0 0; font-size: 14px; } dd b { color: var(--muted); font-weight: 400; }
@media (max-width: 720px) { .wide { display: none; } .narrow { display: block; } main { padding: 24px 14px 40px; } }
"""


def table(system: "System") -> str:
    """One row a component, fastest level first, and one line a way of knowledge transfer; as wide as the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    columns = ["level", "component", "updates a token", "numbers", "objective"]
    columns += ["context", "rule"] if console.width >= 110 else []
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in columns[2:4] else "left", overflow="fold")
    for number, level in enumerate(system.levels, 1):
        for one in level:
            facts = [one.objective, one.context, one.rule][: len(columns) - 4]
            level_number = str(number) if one is level[0] else ""
            row = [level_number, one.name, system.frequency(one), f"{one.parameters:,}", *facts]
            made.add_row(*row, end_section=one is level[-1])
    with console.capture() as text:
        console.print(made)
    lines = [line.rstrip() for line in text.get().splitlines()]
    return "\n".join([*lines, "", *(sentence(bus) for bus in buses(system))]).rstrip("\n")


def page(system: "System", title: str) -> str:
    """The page as text: the drawing, wide and narrow, then every component."""
    count = len(system.levels)
    about = (
        f"{count} level{'s' * (count != 1)}, fastest first; an optimizer step reads {system.step_tokens:,} "
        f"token{'s' * (system.step_tokens != 1)}. A bar is an update; where bars would touch, the lane is filled. "
        "Lines at the right lead from what knows to what learns of it."
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n<p>{about}</p>\n"
        f'<div class="wide">{draw(system)}</div>\n<div class="narrow">{draw(system, min(NARROW, 380))}</div>\n'
        f"<dl>\n{''.join(_entries(system))}</dl>\n</main>\n</body>\n</html>\n"
    )


def _entries(system: "System") -> Iterator[str]:
    for number, level in enumerate(system.levels, 1):
        for one in level:
            facts = [
                ("context", one.context),
                ("objective", one.objective),
                ("rule", one.rule),
                ("holds", f"{one.parameters:,} numbers" if one.parameters else ""),
                *(
                    (f"passes to {target}", ", ".join(KNOWLEDGE[kind] for kind in kinds))
                    for target, kinds in _passed(one)
                ),
            ]
            said = "".join(f"<dd><b>{escape(word)}:</b> {escape(text)}</dd>" for word, text in facts if text)
            head = f"level {number}, f = {system.frequency(one)}"
            yield f"<div><dt>{escape(one.name)}<small>{head}</small></dt>{said}</div>\n"


def _passed(one: Component) -> list[tuple[str, list[str]]]:
    """Targets of this component's knowledge, with the ways in which it gets there."""
    found: dict[str, list[str]] = {}
    for transfer in one.transfers:
        found.setdefault(transfer.target, []).append(transfer.kind)
    return list(found.items())
