"""Building a token store: read, tokenize, hold files out, write."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nestling.data.sources import Document, Report, Source, digest
from nestling.data.tokenizer import Tokenizer, id_type
from nestling.errors import InputError
from nestling.files import replacing

FORMAT = 1
"""Version of the layout of a store."""

HELD_OUT = 0.05
"""Share of the files that is held out."""


def build(source: Source, tokenizer: Tokenizer, folder: Path, limit: int | None) -> None:
    """Write `train.bin`, `valid.bin`, `tokenizer.json` and `store.json` into an empty folder.

    At most `limit` bytes of text are taken. Raises InputError where the source holds no text.
    """
    report, kind = Report(), id_type(tokenizer.vocab_size)
    documents = _limited(source.documents(report), limit)
    first = list(islice(documents, 2))
    only = len(first) == 1
    if only:
        first = _head_and_tail(*first[0])
    sizes = [size for size in (source.size, limit) if size is not None]
    with tqdm(
        desc=source.name, total=min(sizes, default=None), unit="B", unit_scale=True, disable=None, leave=False
    ) as bar:
        names, counts = _tokenize(chain(first, documents), tokenizer, folder / "all.bin", bar)
    _check_found(source, names, report)
    held = {names[-1]} if only else _held_out(names)
    splits, content = _split(folder, names, counts, held, kind)
    tokenizer.save(folder / "tokenizer.json")
    info = {
        "format": FORMAT,
        "source": source.name,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "dtype": kind.name,
        "max_bytes": limit,
        "splits": splits,
        "held_out": {"by": "tail of the only file" if only else "file", "names": sorted(held)},
        "skipped": len(report.skipped),
        "skipped_names": report.skipped,
        "duplicates": report.duplicates,
        "sha256": content,
    }
    with replacing(folder / "store.json") as scratch:
        scratch.write_text(json.dumps(info, indent=1), encoding="utf-8")


def _limited(documents: Iterator[Document], limit: int | None) -> Iterator[Document]:
    """Documents up to `limit` bytes of UTF-8, the last one cut after a whole character."""
    left = limit
    for name, text in documents:
        if left is None:
            yield name, text
            continue
        raw = text.encode("utf-8", "replace")[:left]
        if cut := raw.decode(errors="ignore"):
            yield name, cut
        left -= len(raw)
        if left <= 0:
            return


def _head_and_tail(name: str, text: str) -> list[Document]:
    """One document as two, for there is no other to hold out."""
    cut = min(int(len(text) * (1 - HELD_OUT)), len(text) - 1)
    return [(f"{name} (head)", text[:cut]), (f"{name} (tail)", text[cut:])]


def _tokenize(
    documents: Iterator[Document], tokenizer: Tokenizer, path: Path, bar: tqdm
) -> tuple[list[str], np.ndarray]:
    """Write every document and its separator; returns names and `(documents, 2)` counts of tokens and bytes."""
    kind = id_type(tokenizer.vocab_size)
    names, counts = [], []
    with open(path, "wb") as file:
        for name, text in documents:
            ids = np.append(tokenizer.encode(text), tokenizer.eos_id).astype(kind)
            file.write(ids.tobytes())
            size = len(text.encode("utf-8", "replace"))
            names.append(name)
            counts.append((len(ids), size + 1))
            bar.update(size)
    return names, np.array(counts, np.int64).reshape(-1, 2)


def _check_found(source: Source, names: list[str], report: Report) -> None:
    skipped = len(report.skipped)
    if not names:
        reason = f"{skipped} skipped as not UTF-8, the first '{report.skipped[0]}'" if skipped else "it is empty"
        raise InputError(f"data: '{source.name}' holds no text ({reason}); give a file or folder of UTF-8 text.")
    if skipped:
        logging.getLogger("nestling.data").warning(
            "%s: skipped %d not in UTF-8, the first '%s'.", source.name, skipped, report.skipped[0]
        )


def _held_out(names: list[str]) -> set[str]:
    """About 5% of the names, those with the lowest hashes: at least one, never all."""
    hashes = {name: int(digest("held-out", name), 16) / 2**256 for name in names}
    ranked = sorted(hashes, key=hashes.__getitem__)
    count = sum(value < HELD_OUT for value in hashes.values())
    return set(ranked[: min(max(count, 1), len(ranked) - 1)])


def _split(
    folder: Path, names: list[str], counts: np.ndarray, held: set[str], kind: np.dtype
) -> tuple[dict[str, dict[str, int]], str]:
    """Move `all.bin` into `train.bin` and `valid.bin`; returns the counts of each and the hash of their content."""
    everything = np.memmap(folder / "all.bin", kind, "r")
    ends = counts[:, 0].cumsum()
    out = np.array([name in held for name in names])
    content, splits = hashlib.sha256(), {}
    for split, chosen in (("train", np.flatnonzero(~out)), ("valid", np.flatnonzero(out))):
        with replacing(folder / f"{split}.bin") as scratch, open(scratch, "wb") as file:
            for i in chosen:
                piece = everything[ends[i] - counts[i, 0] : ends[i]].tobytes()
                content.update(piece)
                file.write(piece)
        tokens, size = counts[chosen].sum(0).tolist()
        splits[split] = {"tokens": tokens, "bytes": size, "files": len(chosen)}
    (folder / "all.bin").unlink()
    return splits, content.hexdigest()
