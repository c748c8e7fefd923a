"""The paper, equation by equation: what it states, the code that cites it, the tests that run it, and a status.

`make paper` writes docs/paper.md from three sources: docs/paper.toml (one line an equation), the citations "Eq. n",
"Definition n" and "Algorithm n" in the docstrings under src, and the marks `@pytest.mark.paper("Eq. n", ...)` of the
tests. Nothing is imported; the sources are parsed. tests/paper/test_table.py fails where the three disagree.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES, TABLE = ROOT / "docs/paper.toml", ROOT / "docs/paper.md"
KINDS = ("computed", "notation", "asserted")
LAST_EQUATION, LAST_DEFINITION = 121, 7

INTRODUCTION = """# The paper, executed

Every numbered statement of *Nested Learning* (Behrouz, Razaviyayn, Zhong, Mirrokni, arXiv 2512.24695), the code that
computes it, and the tests that run it. `make paper` writes this file from docs/paper.toml, from the citations in the
code's docstrings and from the marks of the tests; a test fails when it is out of date.

| status | means | rows |
|---|---|---|
"""
STATUSES = {
    "implemented and tested": "the code that computes it, ours or torch's, is tested against the statement",
    "tested as an identity": "nothing needs it as code; a test holds its two sides against each other",
    "tested in a corrected form": "as printed it does not hold; the slip is named, and the right form is tested",
    "tested in part": "what is missing is named",
    "not built yet": "nothing computes it; the reason is named",
    "asserted": "the paper names it without deriving it",
    "notation": "it names things and states nothing to compute",
}


@dataclass(frozen=True)
class Line:
    """One statement of the paper: a line of docs/paper.toml."""

    name: str
    section: str
    kind: str
    says: str
    slip: str = ""
    missing: str = ""
    torch: str = ""

    def status(self, implemented: bool, tested: bool) -> str:
        """A key of STATUSES."""
        if self.kind != "computed":
            return self.kind
        if self.missing:
            return "tested in part" if tested else "not built yet"
        if self.slip:
            return "tested in a corrected form"
        return "implemented and tested" if implemented or self.torch else "tested as an identity"

    @property
    def remark(self) -> str:
        """The slip, or what is missing."""
        return "; ".join(filter(None, (self.slip, self.missing)))


@dataclass(frozen=True)
class Place:
    """A function, class or module of ours, or a test; and the text in which it refers to the paper."""

    path: Path
    name: str
    text: str

    @property
    def link(self) -> str:
        """To its file, from docs."""
        return f"[{self.name}](../{self.path.relative_to(ROOT).as_posix()})"


def lines() -> dict[str, Line]:
    """All statements, in the paper's order."""
    sections = tomllib.loads(LINES.read_text())
    return {name: Line(name, section, **fields) for section, rows in sections.items() for name, fields in rows.items()}


_NUMBERS = r"\d+(?:-\d+)?"
_CITATION = re.compile(rf"\b(Eq|Equation|Definition|Algorithm)s?\.? ({_NUMBERS}(?:(?:, | and ){_NUMBERS})*)")


def cited(text: str) -> list[str]:
    """Names of the statements that a text cites: "Eq. 64-66, 88 and 90", "Definitions 2-3", "Algorithm 1"."""
    names = []
    for word, numbers in _CITATION.findall(" ".join(text.split())):
        word = "Eq." if word.startswith("Eq") else word
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", numbers):
            names += [f"{word} {number}" for number in range(int(first), int(last or first) + 1)]
    return names


def _python(folder: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, ast.parse(path.read_text())


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Qualified name and text of every docstring, those of attributes included; "" is the module."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        for child in getattr(node, "body", []):
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                if isinstance(child.value.value, str):
                    yield name, child.value.value
            elif isinstance(child, ast.ClassDef | ast.FunctionDef):
                yield from walk(child, f"{name}.{child.name}")

    return walk(tree, "")


def functions() -> list[Place]:
    """Everything in src that has a docstring."""
    places = []
    for path, tree in _python("src"):
        parts = path.relative_to(ROOT / "src/nestling").with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__") or "nestling"
        places += [Place(path, module + name, text) for name, text in _docstrings(tree)]
    return places


def _mark(node: ast.expr) -> list[str]:
    """Arguments of `pytest.mark.paper(...)`; none if the expression is something else."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) != "pytest.mark.paper":
        return []
    return [ast.literal_eval(argument) for argument in node.args]


def tests() -> list[Place]:
    """Every marked test, once an argument of its marks."""
    places = []
    for path, tree in _python("tests"):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                name = node.name.removeprefix("test_").replace("_", " ")
                places += [Place(path, name, text) for mark in node.decorator_list for text in _mark(mark)]
    return places


def _by_statement(places: Iterable[Place], known: Iterable[str]) -> dict[str, list[Place]]:
    """Places by the statements that they cite, each once. An argument may also be a statement's whole name."""
    known, found = set(known), defaultdict(dict)
    for place in places:
        for name in [place.text] if place.text in known else cited(place.text):
            found[name][place.path, place.name] = place
    return {name: list(group.values()) for name, group in found.items()}


def _specific(places: list[Place]) -> list[Place]:
    """Without modules and classes one of whose members is there too."""
    names = [place.name for place in places]
    return [p for p in places if not any(name.startswith(p.name + ".") for name in names)]


def problems() -> list[str]:
    """Where statements, code and tests disagree, in sentences."""
    all_lines, test_places = lines(), tests()
    tested, code = _by_statement(test_places, all_lines), _by_statement(functions(), ())
    expected = [f"Eq. {n + 1}" for n in range(LAST_EQUATION)] + ["Algorithm 1"]
    expected += [f"Definition {n + 1}" for n in range(LAST_DEFINITION)]
    found = [f"{name} has no line in {LINES.name}" for name in expected if name not in all_lines]
    for place in test_places:
        if place.text not in all_lines and not cited(place.text):
            found.append(f"{place.link} is marked {place.text!r}, which names no statement")
    for name, places in [*code.items(), *tested.items()]:
        if name not in all_lines:
            found.append(f"{places[0].link} cites {name}, which the paper does not have")
    for path, tree in _python("tests"):
        unknown = [name for _, text in _docstrings(tree) for name in cited(text) if name not in all_lines]
        found += [f"{path.name} speaks of {name}, which the paper does not have" for name in unknown]
    for name, line in all_lines.items():
        if line.kind not in KINDS:
            found.append(f"{name} has kind={line.kind!r}: choose one of {', '.join(KINDS)}")
        if line.kind == "computed" and name not in tested and not line.missing:
            found.append(f"{name} can be computed, but no test is marked with it and `missing` gives no reason")
        if line.kind != "computed" and (line.slip or line.missing or name in tested):
            found.append(f"{name} is {line.kind}, so it can have no slip, nothing missing, and no test")
    return found


def render() -> str:
    """The table as Markdown."""
    all_lines = lines()
    tested, code = _by_statement(tests(), all_lines), _by_statement(functions(), ())
    statuses = {name: line.status(name in code, name in tested) for name, line in all_lines.items()}
    counts = Counter(statuses.values())
    text = INTRODUCTION + "".join(f"| {name} | {means} | {counts[name]} |\n" for name, means in STATUSES.items())
    section = ""
    for name, line in all_lines.items():
        if line.section != section:
            section = line.section
            text += f"\n## {section}\n\n| | states | code | tests | status |\n|---|---|---|---|---|\n"
        where = [place.link for place in _specific(code.get(name, []))]
        where += [f"`{line.torch}`"] if line.torch else []
        run = [place.link for place in tested.get(name, [])]
        status = statuses[name] + (f": {line.remark}" if line.remark else "")
        cells = (name, line.says, ", ".join(where), ", ".join(run), status)
        text += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return text


if __name__ == "__main__":
    TABLE.write_text(render())
    print("\n".join([*problems(), f"{TABLE.relative_to(ROOT)} written"]))
