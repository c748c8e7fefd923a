"""Studies on the page: of each its table, its drawing, and what one must know to believe it and to do it again."""

import datetime
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from nestling.evaluate.markup import details, facts, inlined, scroll, written

SHOWN = 12
"""Values of a setting that are named; of more, a few."""
LISTED = 40
"""Missing runs, and failed ones, that are listed."""
_PLUS_MINUS = re.compile(r"(\s*±\s*\S+)")
_PAPER = (
    '<p class="quiet note"><span class="badge">paper</span> What the paper reports, for comparison of the direction '
    "only: its models, data and training are of another scale.</p>"
)


@dataclass(frozen=True)
class Finding:
    """What is known of a study, as plain data.

    Attributes:
        name: of the study, distinct on a page.
        title: what it is, in a line.
        caption, columns, rows, notes: its table. A row or a column of numbers that the paper reports has the word
            "paper" in one of its cells, or in its heading.
        commands: how to do it again, each command with what it does.
        results: where its rows lie.
        cells: what was run, one dictionary of settings each.
        missing: what is still wanted, in the same way; a search may want more afterwards.
        failed: reasons of the runs that failed.
        others: rows that lie there too, of settings that are not wanted any more.
        machines: what each run was made with, see `nestling.train.machine.describe`.
        dates: ISO 8601, of the runs that say when they ended.
        seconds: what the runs took, all together.
        figure: text of an SVG file.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    commands: Mapping[str, str]
    results: str
    notes: Sequence[str] = ()
    cells: Sequence[Mapping[str, Any]] = ()
    missing: Sequence[Mapping[str, Any]] = ()
    failed: Sequence[str] = ()
    others: int = 0
    machines: Sequence[Mapping[str, Any]] = ()
    dates: Sequence[str] = ()
    seconds: float | None = None
    figure: str | None = None

    @property
    def state(self) -> str:
        """How far it is."""
        runs, failed = counted(len(self.cells), "run"), f", {len(self.failed):,} failed" if self.failed else ""
        if not self.missing:
            return f"complete: {runs}{failed}"
        missing = f"{len(self.missing):,} missing"
        return f"unfinished: {runs}{failed}, {missing}" if self.cells else f"not begun: {missing}"


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def contents(studies: Sequence[Finding], others: Sequence[tuple[str, str, str]] = ()) -> str:
    """An overview with links; others: id, title and state of further sections."""
    entries = [(study.name, study.title, study.state) for study in studies] + list(others)
    rows = "".join(
        f'<li><a href="#{escape(_id(name))}">{escape(title)}</a><span class="quiet">{escape(state)}</span></li>'
        for name, title, state in entries
    )
    return f'<nav id="contents" aria-label="Contents"><ol>{rows}</ol></nav>'


def section(study: Finding) -> str:
    """All about one study."""
    parts = [
        f'<section class="study" id="{escape(_id(study.name))}"><h2>{escape(study.title)}</h2>',
        f'<p class="quiet about"><code>{escape(study.name)}</code> · {escape(" · ".join(_about(study)))}</p>',
        _unfinished(study),
        _table(study),
        "".join(f'<p class="quiet note">{escape(note)}</p>' for note in study.notes),
        _figure(study),
        "<h3>To do it again</h3>",
        f"<pre>{_commands(study.commands)}</pre>",
        details(f"Configuration of {counted(len(study.cells), 'run')}", facts(settings(study.cells)))
        if study.cells
        else "",
        details("Machine, commit, date", facts(origin(study))),
        '<p class="back quiet"><a href="#contents">Contents</a></p></section>',
    ]
    return "\n".join(part for part in parts if part)


def settings(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The values of every setting over some runs."""
    return [(name, [_values(values)]) for name, values in _distinct(cells).items()]


def origin(study: Finding) -> list[tuple[str, list[str]]]:
    """Where, with what and when the runs were made, and where their rows lie."""
    rows = []
    for name in dict.fromkeys(name for machine in study.machines for name in machine):
        counts = Counter(_brief(name, machine.get(name)) for machine in study.machines)
        several = len(counts) > 1
        said = [f"{value} ({counted(count, 'run')})" if several else value for value, count in counts.most_common()]
        rows.append((name, [", ".join(said)]))
    rows.append(("date", [_dates(study.dates, len(study.machines))]))
    if study.seconds is not None:
        rows.append(("time of all runs", [_duration(study.seconds)]))
    rows.append(("rows", [study.results]))
    if study.others:
        rows.append(("not shown", [f"{counted(study.others, 'row')} of settings that are not wanted any more"]))
    return rows


def _about(study: Finding) -> Iterator[str]:
    """How far it is, on what and when, in few words."""
    yield study.state
    devices = dict.fromkeys(m.get("processor") if m.get("device") == "cpu" else m.get("device") for m in study.machines)
    if any(devices):
        yield ", ".join(str(device) for device in devices if device)
    commits = [_brief("commit", m["commit"]) for m in study.machines if m.get("commit")]
    if commits:
        (most, _), *others = Counter(commits).most_common()
        yield f"commit {most}" + (f" and {counted(len(others), 'other')}" if others else "")
    if study.dates:
        yield _dates(study.dates, len(study.dates))


def _unfinished(study: Finding) -> str:
    """What is missing and what failed."""
    parts = []
    if study.missing:
        head = f"Missing: {counted(len(study.missing), 'run')}, and those that follow from what these find"
        parts.append(details(head, scroll(_listed(study.missing), "Missing runs")))
    if study.failed:
        items = "".join(f"<li>{escape(reason)}</li>" for reason in study.failed[:LISTED])
        more = len(study.failed) - LISTED
        items += f"<li>and {more:,} more</li>" if more > 0 else ""
        parts.append(details(f"Failed: {counted(len(study.failed), 'run')}", f'<ul class="quiet">{items}</ul>'))
    return f'<div class="state">{"".join(parts)}</div>' if parts else ""


def _listed(cells: Sequence[Mapping[str, Any]]) -> str:
    """A line a run, with the settings in which they differ."""
    distinct = _distinct(cells)
    names = [name for name, values in distinct.items() if len(values) > 1] or list(distinct)
    rows = [(written(cell.get(names[0])), [written(cell.get(n)) for n in names[1:]]) for cell in cells[:LISTED]]
    more = [(f"and {len(cells) - LISTED:,} more", [""] * (len(names) - 1))] if len(cells) > LISTED else []
    return facts(rows + more, names[1:], names[0])


def _table(study: Finding) -> str:
    """The table; the paper's own rows and columns are marked."""
    if not study.rows:
        return '<p class="quiet">Nothing has been found yet.</p>'
    columns = {i for i, name in enumerate(study.columns) if _quoted(name)}
    texts = {i for i in range(1, len(study.columns)) if _words([row[i] for row in study.rows])}

    def cell(i: int, value: str, tag: str) -> str:
        looks = " ".join(["paper"] * (i in columns) + ["words"] * (i in texts))
        look = f' class="{looks}"' if looks else ""
        return f"<{tag}{look}>{_marked(value)}</{tag.split()[0]}>"

    head = "".join(cell(i, name, 'th scope="col"') for i, name in enumerate(study.columns))
    body = []
    for row in study.rows:
        first, *rest = (cell(i, value, "td" if i else 'th scope="row"') for i, value in enumerate(row))
        mark = ' class="paper"' if any(map(_quoted, row)) else ""
        body.append(f"<tr{mark}>{first}{''.join(rest)}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    has_paper = columns or any(_quoted(value) for row in study.rows for value in row)
    caption = f'<p class="quiet caption">{escape(study.caption)}</p>'
    return caption + scroll(table, study.caption) + (_PAPER if has_paper else "")


def _quoted(value: str) -> bool:
    return "paper" in value.split()


def _words(values: Sequence[str]) -> bool:
    """Whether a column holds words rather than numbers."""
    said = [value.strip() for value in values if value.strip() not in ("", "none", "paper")]
    return bool(said) and not any(value[0] in "0123456789+-." for value in said)


def _marked(value: str) -> str:
    """A cell's text: a spread steps back behind its mean."""
    if value == "none":
        return '<span class="spread">none</span>'
    said = _PLUS_MINUS.sub(r'<span class="spread">\1</span>', escape(value.strip()))
    return re.sub(r"(?<!\S)paper(?!\S)", '<span class="badge">paper</span>', said) if _quoted(value) else said


def _figure(study: Finding) -> str:
    if study.figure is None:
        return ""
    drawing = inlined(study.figure, _id(study.name), f"The drawing of {study.title}")
    return f'<figure class="scroll drawing" tabindex="0">{drawing}</figure>'


def _commands(commands: Mapping[str, str]) -> str:
    said = (f'<span class="quiet"># {escape(what)}</span>\n{escape(line)}' for line, what in commands.items())
    return "\n".join(said)


def _id(name: str) -> str:
    """An id without spaces and signs."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower())


def _distinct(cells: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The values of each setting, in the order in which they come; a setting may be missing in a run."""
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        for name, value in cell.items():
            found.setdefault(name, {})[json.dumps(value)] = value
    return {name: list(values.values()) for name, values in found.items()}


def _values(values: Sequence[Any]) -> str:
    if len(values) <= SHOWN:
        return ", ".join(map(written, values))
    if all(isinstance(value, int | float) for value in values):
        return f"{len(values)} values from {written(min(values))} to {written(max(values))}"
    return f"{', '.join(map(written, values[:SHOWN]))} and {len(values) - SHOWN:,} more"


def _brief(name: str, value: Any) -> str:
    """A fact about a machine; ten digits of a commit are enough to find it."""
    if name == "commit" and isinstance(value, str):
        digits, *dirty = value.split("-", 1)
        return "-".join([digits[:10], *dirty])
    return written(value)


def _dates(dates: Sequence[str], runs: int) -> str:
    if not dates:
        return "not recorded"
    days = sorted({datetime.datetime.fromisoformat(date).date() for date in dates})
    said = " to ".join(day.strftime("%-d %B %Y") for day in dict.fromkeys((days[0], days[-1])))
    return said if len(dates) >= runs else f"{said} ({counted(len(dates), 'run')}; of the others not recorded)"


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
