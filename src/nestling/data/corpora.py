"""Three corpora that every machine with this package has: no download, nothing stored in the repository.

- `python`: the standard library's source of the running interpreter
- `cpp`: the headers inside the installed torch
- `english`: licences and descriptions of installed packages, docstrings of the standard library and of the packages
  this one needs, and Python's help topics; a paragraph that occurs twice, as those of licences do, is kept once

Their content follows the installed versions, so figures compare between machines only when the versions agree.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from nestling.data.sources import Document, Entry, Source, from_entries, from_hub, from_path, listing
from nestling.errors import InputError

DOCUMENTED = ("torch", "numpy", "datasets", "matplotlib")
"""Packages whose docstrings are part of `english`: all are requirements of this one, so every machine has them.

transformers is left out: most of its docstrings are near copies of one another, which held-out files would share.
"""

SHORTEST = 200
"""Characters: a docstring, and what is left of a document of `english`, is kept from this length on."""

_TOPICS = "pydoc_data/topics.py"
_DOCSTRING = re.compile(r'(?:\A|:[ \t]*\n)\s*[rRuU]?("""|\'\'\')(.*?)\1', re.DOTALL)
_PROSE = re.compile(r"(^|/)(metadata|licen[cs]e|copying|notice|readme|authors)[^/]*$|\.(md|rst)$", re.IGNORECASE)
_TESTS = re.compile(r"(^|/)(tests?|idle_test)/")


def _stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _package(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(f"data: the package '{name}' is not installed; install it, or give another corpus.")
    return Path(spec.origin).parent


def python() -> Source:
    """Source of the standard library, tests included; the few files in other encodings count as skipped."""
    return from_entries("python", listing(_stdlib(), lambda name: name.endswith(".py")))


def cpp() -> Source:
    """C++ and CUDA headers that torch installs."""
    return from_entries(
        "cpp", listing(_package("torch") / "include", lambda name: name.endswith((".h", ".hpp", ".cuh")))
    )


def english() -> Source:
    """Prose in English: licences, package descriptions, docstrings, help topics; repeated paragraphs are kept once."""
    source = from_entries("english", _english_files())
    return dataclasses.replace(source, documents=lambda report: _prose(source.documents(report)), size=None)


def _english_files() -> Iterator[Entry]:
    paths = sysconfig.get_paths()
    for site in sorted({paths["purelib"], paths["platlib"], str(_package("torch").parent)}):
        for folder in sorted(Path(site).glob("*.dist-info")):
            yield from listing(folder, lambda name: bool(_PROSE.search(name)), f"{folder.name}/")
    yield from listing(_stdlib(), _is_library, "python/")
    for name in DOCUMENTED:
        yield from listing(_package(name), _is_library, f"{name}/")


def _is_library(name: str) -> bool:
    return name.endswith(".py") and not _TESTS.search(name)


def _prose(documents: Iterator[Document]) -> Iterator[Document]:
    seen: set[int] = set()
    for name, text in documents:
        for part, prose in _extract(name, text):
            fresh = _fresh_paragraphs(prose, seen)
            if len(fresh) >= SHORTEST:
                yield part, fresh


def _extract(name: str, text: str) -> Iterator[Document]:
    """Documents of prose in one file: help topics, a module's docstrings, a package's description, or all of it."""
    if name.endswith(_TOPICS):
        yield from ((f"{name}#{topic}", help_text) for topic, help_text in _topics(text).items())
    elif name.endswith(".py"):
        found = (inspect.cleandoc(match[2]) for match in _DOCSTRING.finditer(text))
        yield name, "\n\n".join(part for part in found if len(part) >= SHORTEST)
    elif name.endswith("/METADATA"):
        yield name, text.partition("\n\n")[2]
    else:
        yield name, text


def _topics(source: str) -> dict[str, str]:
    """The literal dictionary that the module of help topics assigns."""
    values = (node.value for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return next((ast.literal_eval(value) for value in values if isinstance(value, ast.Dict)), {})


def _fresh_paragraphs(text: str, seen: set[int]) -> str:
    """Paragraphs not seen before, whatever their spacing; short ones (headings) stay, they repeat for a reason."""
    kept = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        words = " ".join(paragraph.split()).lower()
        key = hash(words)
        if len(words) < 60 or key not in seen:
            kept.append(paragraph)
        seen.add(key)
    return "\n\n".join(kept).strip()


CORPORA = {"python": python, "cpp": cpp, "english": english}


def find_source(data: str) -> Source:
    """The source that `data` names: `python`, `cpp`, `english`, `hub:NAME[:CONFIG]`, or a path (./python, if need be).

    Raises InputError for a path that is missing or holds no files.
    """
    if data in CORPORA:
        return CORPORA[data]()
    return from_hub(data.removeprefix("hub:")) if data.startswith("hub:") else from_path(data)
