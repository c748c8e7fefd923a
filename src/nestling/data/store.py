"""Token stores: a source, tokenized once, split by file and mapped into memory.

A store is a folder with `train.bin` and `valid.bin` (plain arrays of uint8, uint16 or uint32, each document followed by
the separator), `tokenizer.json` and `store.json` (counts, held-out and skipped names, content hash). It is built beside
its place and renamed into it, under a lock, so no reader ever sees half of one and processes build it once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nestling.data.build import FORMAT, HELD_OUT, build
from nestling.data.corpora import find_source
from nestling.data.sources import Source, digest
from nestling.data.tokenizer import ByteTokenizer, Tokenizer, id_type, load_tokenizer
from nestling.errors import InputError

Tokens = np.ndarray
"""Token ids of one split: a read-only memory-mapped array `(N,)`, unsigned."""

Split = Literal["train", "valid"]


@dataclass(frozen=True, eq=False)
class Store:
    """Tokens of both splits, their tokenizer, and `info`, the content of `store.json`."""

    folder: Path
    info: dict
    tokenizer: Tokenizer
    train: Tokens
    valid: Tokens

    def bytes_per_token(self, split: Split = "train") -> float:
        """Bytes of text a token stands for, a separator counted as one byte: 1 exactly for the byte tokenizer.

        Loss in nats a token, divided by `ln 2` and by this, is bits per byte, comparable between tokenizers.
        """
        counts = self.info["splits"][split]
        return counts["bytes"] / counts["tokens"]

    def texts(self, split: Split = "train") -> Iterator[str]:
        """The documents of a split."""
        tokens = getattr(self, split)
        start = 0
        for end in np.flatnonzero(tokens == self.tokenizer.eos_id):
            yield self.tokenizer.decode(tokens[start:end])
            start = end + 1


def open_store(
    data: str,
    tokenizer: Tokenizer | str | Path | None = None,
    cache: str | Path | None = None,
    max_bytes: int | None = None,
) -> Store:
    """Store of a corpus, built on first use, and again whenever files change or the store is damaged.

    Args:
        data: `python`, `cpp`, `english`, the path of a text or a folder of them, or `hub:NAME[:CONFIG]`.
        tokenizer: a tokenizer, the path of a tokenizer.json, or None for bytes.
        cache: folder that keeps stores; $NESTLING_CACHE, or ~/.cache/nestling by default.
        max_bytes: at most this many bytes of text, a sample over the files; of a hub data set, its first ones.

    About 5% of the files are held out by a hash of their relative names, at least one; of a single file, its tail.
    Files that are not UTF-8 are skipped, counted and reported. Raises InputError where there is no text.
    """
    if max_bytes is not None and max_bytes < 1:
        raise InputError(f"max_bytes: {max_bytes} is too small; give at least 1, or leave it out for everything.")
    if tokenizer is None:
        tokenizer = ByteTokenizer()
    elif isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(tokenizer)
    source = find_source(data)
    limit = source.limit if max_bytes is None else max_bytes
    folder = _place(source, tokenizer, cache, limit)
    try:
        with _lock(folder):
            return _ready(folder) or _install(source, tokenizer, folder, limit)
    except OSError as error:
        raise InputError(
            f"cache: '{folder.parent}' cannot hold the store of '{data}' ({error}); free space, or set NESTLING_CACHE."
        ) from error


def load_store(folder: str | Path) -> Store:
    """Store in a folder; raises InputError where a file is missing, damaged or of another size than recorded."""
    folder = Path(folder)
    try:
        info = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        _check(info, tokenizer)
        train, valid = (_map(folder, split, info) for split in ("train", "valid"))
        return Store(folder, info, tokenizer, train, valid)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"store: '{folder}' is damaged ({type(error).__name__}: {error}); delete it and open its source again."
        ) from error


def _check(info: dict, tokenizer: Tokenizer) -> None:
    if info["format"] != FORMAT:
        raise ValueError(f"its format is {info['format']}, this version reads {FORMAT}")
    if (info["tokenizer"], info["dtype"]) != (tokenizer.fingerprint, id_type(tokenizer.vocab_size).name):
        raise ValueError("tokenizer.json is not the one its tokens are from")


def _map(folder: Path, split: Split, info: dict) -> Tokens:
    tokens = np.memmap(folder / f"{split}.bin", info["dtype"], "r")
    if len(tokens) != info["splits"][split]["tokens"]:
        raise ValueError(f"{split}.bin has {len(tokens)} tokens, store.json says {info['splits'][split]['tokens']}")
    return tokens


def _ready(folder: Path) -> Store | None:
    """The store, if it is there and whole; a damaged one is reported."""
    if not folder.exists():
        return None
    try:
        return load_store(folder)
    except InputError as error:
        logging.getLogger("nestling.data").warning("%s It is rebuilt now.", error)
        return None


def cache_folder() -> Path:
    """Where what can be made again is kept: $NESTLING_CACHE, or ~/.cache/nestling."""
    return Path(os.environ.get("NESTLING_CACHE") or Path.home() / ".cache" / "nestling").expanduser()


def _place(source: Source, tokenizer: Tokenizer, cache: str | Path | None, limit: int | None) -> Path:
    root = Path(cache).expanduser() if cache else cache_folder()
    key = digest(FORMAT, source.fingerprint, tokenizer.fingerprint, limit, HELD_OUT)[:16]
    label = re.sub(r"[^A-Za-z0-9]+", "-", source.name)[-40:].strip("-")
    return root / f"{label}-{key}"


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(source: Source, tokenizer: Tokenizer, folder: Path, limit: int | None) -> Store:
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        build(source, tokenizer, scratch, limit)
        if folder.exists():  # damaged; whoever has it mapped keeps what they mapped
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return load_store(folder)
