"""Where text comes from: files and folders, and data sets of the Hugging Face hub.

A `Source` yields documents, `(name, text)`, always in the same order. Files are ordered by a hash of their relative
name: the first part of a source is then a sample of all of it, so a size limit and a short evaluation represent it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nestling.errors import InputError

Document = tuple[str, str]
HUB_BYTES = 2**30
"""A hub data set is read up to this many bytes of text unless `max_bytes` says otherwise: some never end."""

_PASSED_OVER = {"__pycache__", "site-packages", "dist-packages"}


@dataclass
class Report:
    """What a pass over a source left out: `skipped` names what is not UTF-8 text, `duplicates` counts exact copies."""

    skipped: list[str] = field(default_factory=list)
    duplicates: int = 0


@dataclass(frozen=True)
class Source:
    """Named text: `documents(report)` yields it, `fingerprint` changes whenever a file's path, size or time does.

    `size`: bytes to read, None where unknown. `limit`: bytes of text to take unless the caller sets one, None for all.
    """

    name: str
    fingerprint: str
    documents: Callable[[Report], Iterator[Document]]
    size: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Entry:
    """One file of a listing: `name` relative to its root with forward slashes, size in bytes, time in nanoseconds."""

    name: str
    path: str
    size: int
    time: int


def digest(*parts: object) -> str:
    """Hexadecimal SHA-256 of the parts' text."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()


def listing(root: str | Path, wanted: Callable[[str], bool] = lambda name: True, prefix: str = "") -> list[Entry]:
    """Files under `root` whose relative name is `wanted`; names get `prefix`.

    Hidden files and folders, caches, installed packages and links to folders are left out.
    """
    root, found = os.fspath(root), []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _PASSED_OVER]
        base = folder[len(root) :].strip(os.sep).replace(os.sep, "/")
        for file in files:
            name = f"{base}/{file}" if base else file
            path = os.path.join(folder, file)
            if not file.startswith(".") and wanted(name) and os.path.isfile(path):
                found.append(_entry(path, prefix + name))
    return found


def _entry(path: str, name: str) -> Entry:
    status = os.stat(path)
    return Entry(name, path, status.st_size, status.st_mtime_ns)


def from_entries(name: str, entries: Iterable[Entry]) -> Source:
    """Source over a listing, in the order of the names' hashes; exact copies and files without text are left out."""
    ordered = sorted(entries, key=lambda entry: digest("order", entry.name))
    fingerprint = digest(name, *((e.path, e.size, e.time) for e in ordered))
    return Source(name, fingerprint, lambda report: _read(ordered, report), sum(e.size for e in ordered))


def _read(entries: list[Entry], report: Report) -> Iterator[Document]:
    seen = set()
    for entry in entries:
        try:
            raw = Path(entry.path).read_bytes()
            text = raw.decode()
        except (OSError, UnicodeDecodeError):
            report.skipped.append(entry.name)
            continue
        if "\0" in text:  # binary; and byte 0 is the separator of documents
            report.skipped.append(entry.name)
        elif text.strip():
            key = hashlib.sha256(raw).digest()
            report.duplicates += key in seen
            if key not in seen:
                seen.add(key)
                yield entry.name, text


def from_path(data: str) -> Source:
    """Source over one file, or over every file of a folder and its subfolders, whatever their suffix.

    Raises InputError where the path is missing, or holds no file.
    """
    path = os.path.realpath(os.path.expanduser(data))
    if not data or not (os.path.isdir(path) or os.path.isfile(path)):
        raise InputError(
            f"data: '{data}' is no file or folder; give python, cpp, english, hub:NAME, or the path of text files."
        )
    entries = listing(path) if os.path.isdir(path) else [_entry(path, os.path.basename(path))]
    if not entries:
        raise InputError(f"data: the folder '{data}' holds no files; give a file or folder of UTF-8 text.")
    return from_entries(data, entries)


def from_hub(spec: str) -> Source:
    """Source over the column `text` of the train split of a hub data set (`NAME` or `NAME:CONFIG`), streamed.

    `NAME` is whatever `datasets.load_dataset` accepts, a local folder of JSON files included. Rows without text, or
    with a zero byte, are skipped. The fingerprint is the name alone, so a store once built needs no network.
    Raises InputError (when read) where the data set cannot be reached, or has no column `text`.
    """
    name, _, config = spec.partition(":")
    if not name:
        raise InputError("data: 'hub:' names no data set; write hub:NAME or hub:NAME:CONFIG.")

    def documents(report: Report) -> Iterator[Document]:
        for index, row in enumerate(_rows(name, config)):
            if "text" not in row:
                raise InputError(
                    f"data: 'hub:{spec}' has the columns {', '.join(row)}; choose a data set with a column 'text'."
                )
            text = row["text"]
            if not isinstance(text, str) or "\0" in text:
                report.skipped.append(f"row {index}")
            elif text.strip():
                yield f"row {index}", text

    return Source(f"hub:{spec}", digest("hub", spec), documents, limit=HUB_BYTES)


def _rows(name: str, config: str) -> Iterator[dict]:
    import datasets  # slow to import

    try:
        yield from datasets.load_dataset(name, config or None, split="train", streaming=True)
    except Exception as error:  # datasets, huggingface_hub, httpx and parsers raise types without a common base
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"data: 'hub:{name}{config and ':' + config}' cannot be read ({type(error).__name__}: {reason}); "
            "check the name, its configuration and the network, or give a local path."
        ) from error
