"""One HTML page from studies and run folders: what was measured, how it compares, how to do it again.

Of a run: results, curves, levels, a sample of the model, configuration. Of a study: see `nestling.evaluate.studies`.
"""

import datetime
import json
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import nestling
from nestling.evaluate.charts import Line, chart, thinned
from nestling.evaluate.compare import measures, verdict
from nestling.evaluate.markup import details, document, facts, scroll, written
from nestling.evaluate.runs import Run, load, title
from nestling.evaluate.studies import Finding, contents, counted, section
from nestling.files import replacing
from nestling.levels import System

_SERIES = 6  # colours in page.css
_WIDE, _NARROW = 480, 350


def report(runs: Sequence[Path], out: Path, studies: Sequence[Finding] = ()) -> Path:
    """Write the page of these studies and runs to `out` and return that path; an earlier page is replaced as a whole.

    The page needs nothing but itself. See `nestling.evaluate.runs` for the files that are read. Sections without data
    are left out. Raises InputError for a folder that holds no readable run, and where there is neither run nor study.
    """
    page = render(load(runs) if runs or not studies else [], studies)
    with replacing(out) as scratch:
        scratch.write_text(page, encoding="utf-8")
    out.chmod(0o644)
    return out


def render(runs: Sequence[Run], studies: Sequence[Finding] = ()) -> str:
    """The page as text: all about the runs, or an overview, the studies, and the runs as one more section."""
    parts = (_results, _curves, _levels, _samples, _settings, _origin)
    about = "\n".join(piece for part in parts if runs for piece in part(runs))
    if not studies:
        return document(_title(runs), "\n".join([*_head(runs), about]))
    heading = f"{counted(len(studies), 'study', 'studies')} of Nested Learning"
    if runs:
        heading += f" and {counted(len(runs), 'run')}"
        about = re.sub("<(/?)h([23])", lambda tag: f"<{tag[1]}h{int(tag[2]) + 1}", about)
        about = f'<section class="study" id="runs"><h2>{escape(_title(runs))}</h2>{about}</section>'
    day = datetime.date.today().strftime("%-d %B %Y")
    made = f'<p class="quiet">{day} · nestling {escape(nestling.__version__)}</p>'
    others = [("runs", _title(runs), counted(len(runs), "run"))] if runs else []
    head = f"<header><h1>{escape(heading)}</h1>{made}</header>"
    return document(heading, "\n".join([head, contents(studies, others), *map(section, studies), about]))


def _title(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(title(_model(run)) for run in runs))
    data = list(dict.fromkeys(str(run.train.get("data", "")) for run in runs))
    on = f" on {' and '.join(data)}" if any(data) else ""
    return f"{' and '.join(names) if len(names) < 4 else f'{len(names)} models'}{on}"


def _head(runs: Sequence[Run]) -> Iterator[str]:
    machine = runs[0].config.get("machine", {})
    facts = [
        datetime.date.today().strftime("%-d %B %Y"),
        machine.get("processor") if machine.get("device") == "cpu" else machine.get("device"),
        f"nestling {machine['nestling']}" if "nestling" in machine else None,
        f"commit {machine['commit'][:10]}" if machine.get("commit") else None,
    ]
    yield f"<header><h1>{escape(_title(runs))}</h1>"
    yield f'<p class="quiet">{escape(" · ".join(fact for fact in facts if fact))}</p></header>'


def _results(runs: Sequence[Run]) -> Iterator[str]:
    if said := verdict(runs):
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
        yield f'<ul class="findings">{items}</ul>'
    head = "".join(f'<th scope="col">{_chip(i)}{escape(run.name)}</th>' for i, run in enumerate(runs))
    rows = []
    for row in measures(runs):
        best = row.best()
        cells = (_cell(text, i in best) for i, text in enumerate(row.texts()))
        rows.append(f'<tr><th scope="row">{escape(row.name)}</th>{"".join(cells)}</tr>')
    if rows:
        yield "<h2>Results</h2>"
        table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        yield scroll(table, "Results")
        if len({_model(run) for run in runs}) == len(runs) > 1:
            yield '<p class="quiet note">One run of each: another seed moves the losses a little.</p>'


def _curves(runs: Sequence[Run]) -> Iterator[str]:
    figures = [*_loss(runs), *_positions(runs)]
    if not figures:
        return
    yield "<h2>Curves</h2>"
    items = "".join(f"<li>{_chip(i)}{escape(run.name)}</li>" for i, run in enumerate(runs))
    yield f'<ul class="legend">{items}</ul><div class="grid-2">{"".join(figures)}</div>'


def _loss(runs: Sequence[Run]) -> Iterator[str]:
    """Training loss, smoothed, and validation, over tokens; in bits per byte where an evaluation gives the factor."""
    lines, unit = [], all(run.bits for run in runs)
    for i, run in enumerate(runs):
        factor = run.bits or 1.0 if unit else 1.0
        points = [(line["tokens"], line["loss"] * factor) for line in run.steps]
        settled = points[len(points) // 20 :]  # the first few steps would flatten all the rest
        valid = [(line["tokens"], line["valid_bpb"]) for line in run.evaluations]
        lines += [
            Line(f"{run.name}, training", i % _SERIES, thinned(settled, 400), "faint"),
            Line(f"{run.name}, training", i % _SERIES, thinned(settled, max(8, min(40, len(settled) // 10)))),
            Line(f"{run.name}, validation", i % _SERIES, valid if unit else [], "dots"),
        ]
    if any(line.points for line in lines):
        what = "bits per byte" if unit else "nats per token"
        note = f"Loss in {what}: training (line) and held-out text (dots)."
        yield _figure("Learning", note, lambda w, h: chart(lines, "tokens trained on", w, h))


def _positions(runs: Sequence[Run]) -> Iterator[str]:
    """Loss by position in the text, for the runs that have it."""
    lines = []
    for i, run in enumerate(runs):
        found = run.results.get("loss_by_position", {"positions": [], "loss": []})
        lines.append(Line(run.name, i % _SERIES, list(zip(found["positions"], found["loss"], strict=True))))
    if any(line.points for line in lines):
        trained = sorted({run.train["sequence_length"] for run in runs if "sequence_length" in run.train})
        note = "Bits per byte by position; dashed: the length trained at."
        marks = trained if len(trained) == 1 else []
        draw_it: Callable[[int, int], str] = lambda w, h: chart(lines, "tokens before", w, h, True, marks)  # noqa: E731
        yield _figure("Use of context", note, draw_it)


def _levels(runs: Sequence[Run]) -> Iterator[str]:
    """The drawing of each distinct nested system."""
    drawn: dict[str, tuple[list[str], System]] = {}
    for run in runs:
        if found := run.results.get("system") or run.config.get("system"):
            names, _ = drawn.setdefault(json.dumps(found), ([], System.from_dict(found)))
            names.append(run.name)
    if not drawn:
        return
    yield "<h2>Levels</h2>"
    yield (
        '<p class="quiet">What updates how often. A bar is an update; where bars would touch, the lane is filled. '
        "Attention recomputes everything from its context at each token, which is frequency infinity. Lines at the "
        "right show how knowledge passes.</p>"
    )
    for names, system in drawn.values():
        yield f"<h3>{escape(', '.join(names))}</h3><figure>"
        for name, width in (("wide", 1000), ("narrow", _NARROW)):
            yield f'<div class="{name}">{system.to_svg(width=width)}</div>'
        yield "</figure>"


def _samples(runs: Sequence[Run]) -> Iterator[str]:
    found = [(i, run, run.results["sample"]) for i, run in enumerate(runs) if run.results.get("sample")]
    if not found:
        return
    yield "<h2>In their own words</h2>"
    yield '<p class="quiet">The prompt is held-out text, in grey; the rest is the model\'s.</p><div class="grid-2">'
    for i, run, sample in found:
        text = f"<b>{escape(sample['prompt'])}</b>{escape(sample['text'])}"
        yield f'<section><h3>{_chip(i)}{escape(run.name)}</h3><pre class="sample" tabindex="0">{text}</pre></section>'
    yield "</div>"


def _settings(runs: Sequence[Run]) -> Iterator[str]:
    """What differs between runs, then everything they share."""
    flat = [{**_flat(run.train), **_flat(run.config.get("model", {}), "model.")} for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    texts = {key: [written(settings.get(key)) for settings in flat] for key in keys}
    different = [key for key in keys if len(set(texts[key])) > 1]
    shared = [key for key in keys if key not in different]
    if not keys:
        return
    yield "<h2>Configuration</h2>"
    if different:
        yield scroll(
            facts([(key, texts[key]) for key in different], [run.name for run in runs]), "Settings that differ"
        )
    if shared:
        title = "The same for all of them" if len(runs) > 1 else "All settings"
        rows = facts([(key, texts[key][:1]) for key in shared])
        yield details(f"{title}: {len(shared)} settings", rows, unfolded=not different)


def _origin(runs: Sequence[Run]) -> Iterator[str]:
    """Machine, data, commit, command."""
    machine = {key: written(value) for key, value in runs[0].config.get("machine", {}).items()}
    data = {f"data {key}": written(value) for key, value in runs[0].config.get("data", {}).items()}
    folders = {"runs": ", ".join(str(run.folder) for run in runs)}
    yield "<h2>To do it again</h2>"
    commands = list(dict.fromkeys(run.results.get("command") or _command(run) for run in runs))
    yield f"<pre>{escape(chr(10).join(commands))}</pre>"
    rows = facts([(key, [value]) for key, value in {**machine, **data, **folders}.items()])
    yield details("Machine and data", rows, unfolded=True)


def _figure(title: str, note: str, drawing: Callable[[int, int], str]) -> str:
    """A chart at both widths under its title."""
    return (
        f"<section><h3>{escape(title)}</h3>"
        f'<p class="quiet">{escape(note)}</p><figure><div class="wide">{drawing(_WIDE, 320)}</div>'
        f'<div class="narrow">{drawing(_NARROW, 270)}</div></figure></section>'
    )


def _command(run: Run) -> str:
    """The command line that trains such a run."""
    parts = ["nestling train"]
    for key, value in run.train.items():
        if key == "fields":
            parts += ["--set", *(f"{k}={json.dumps(v)}" for k, v in value.items())] if value else []
        elif value is True:
            parts.append(f"--{key.replace('_', '-')}")
        elif value is not None and value is not False:
            values = value if isinstance(value, list) else [value]
            parts += [f"--{key.replace('_', '-')}", *map(str, values)]
    return " ".join([*parts, "--out", str(run.folder)])


def _model(run: Run) -> str:
    return str(run.train.get("model", run.name))


def _chip(i: int) -> str:
    return f'<span class="chip s{i % _SERIES}"></span>'


def _cell(text: str, best: bool) -> str:
    return f'<td class="best">{escape(text)}</td>' if best else f"<td>{escape(text)}</td>"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
