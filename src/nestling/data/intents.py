"""Intent classification from the original files: CLINC150 and Banking77.

Folders hold the files as their authors publish them, or those compressed with xz (`train.csv.xz`). Nothing is
normalised. Row counts are checked against the published ones.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nestling.errors import InputError

Example = tuple[str, str]
"""A text and its label."""

CLINC150 = {"train": 15_000, "val": 3_000, "test": 4_500, "oos_train": 100, "oos_val": 100, "oos_test": 1_000}
"""Rows of `data_full.json` as published: 150 intents, and questions out of scope."""

BANKING77 = {"train": 10_003, "test": 3_080}
"""Rows of `train.csv` and `test.csv` as published: 77 intents; no validation set."""


@dataclass(frozen=True)
class Intents:
    """Labelled texts, each split in the order of its file; `labels` is sorted. `valid` is empty where none exists."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]


def clinc150(folder: str | Path, oos: bool = False) -> Intents:
    """CLINC150 (Larson et al. 2019, arXiv 1909.02027) from `data_full.json`, of the repository clinc/oos-eval.

    With `oos`, questions out of scope are a class of their own, `oos`; by default they are left out. Raises InputError
    where the file is missing or damaged, or its row counts are not the published ones.
    """
    path, text = _read(folder, "data_full.json")
    try:
        content = json.loads(text)
        rows = {split: [(str(said), str(label)) for said, label in content[split]] for split in CLINC150}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    _check_counts(path, rows, CLINC150)
    parts = ({split: rows[split] + rows[f"oos_{split}"] for split in ("train", "val", "test")}) if oos else rows
    return _intents("clinc150", parts)


def banking77(folder: str | Path) -> Intents:
    """Banking77 (Casanueva et al. 2020, arXiv 2003.04807) from `train.csv` and `test.csv`.

    They are in `banking_data` of the repository PolyAI-LDN/task-specific-datasets. Raises InputError where a file is
    missing or damaged, or its row count is not the published one.
    """
    rows = {}
    for split in BANKING77:
        path, text = _read(folder, f"{split}.csv")
        rows[split] = _csv(path, text)
        _check_counts(path, {split: rows[split]}, {split: BANKING77[split]})
    return _intents("banking77", rows)


def _read(folder: str | Path, name: str) -> tuple[Path, str]:
    """Path and text of a file of the folder, unpacked or as .xz."""
    plain = Path(folder).expanduser() / name
    packed = plain.with_name(f"{name}.xz")
    if not (plain.is_file() or packed.is_file()):
        raise InputError(f"folder: '{folder}' holds neither {name} nor {name}.xz; give the original files' folder.")
    path = plain if plain.is_file() else packed
    try:
        raw = path.read_bytes()
        return path, (raw if path == plain else lzma.decompress(raw)).decode()
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _csv(path: Path, text: str) -> list[Example]:
    """Rows of `text,category` below a line that says so; quoted texts may hold commas and line ends."""
    try:
        rows = [tuple(row) for row in csv.reader(io.StringIO(text, newline=""), strict=True)]
        if rows[:1] != [("text", "category")]:
            raise ValueError("its first line is not 'text,category'")
        return [(said, label) for said, label in rows[1:]]
    except (ValueError, csv.Error) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"'{path}' is damaged ({type(error).__name__}: {error}); fetch the original file again.")


def _check_counts(path: Path, rows: Mapping[str, list[Example]], published: Mapping[str, int]) -> None:
    found = {split: len(rows[split]) for split in published}
    if found != dict(published):
        said = ", ".join(f"{split} {found[split]:,} (published: {published[split]:,})" for split in published)
        raise InputError(f"'{path}' has not the published row counts: {said}; fetch the original file again.")


def _intents(name: str, rows: Mapping[str, list[Example]]) -> Intents:
    train, valid, test = (tuple(rows.get(split, ())) for split in ("train", "val", "test"))
    return Intents(name, tuple(sorted({label for _, label in train})), train, valid, test)
