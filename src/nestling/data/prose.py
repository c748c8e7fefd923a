"""Running text of any length, sentence by sentence, in bounded memory: what haystacks are made of."""

from __future__ import annotations

import codecs
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nestling.data.store import Split, open_store
from nestling.errors import InputError
from nestling.files import UNREADABLE, is_packed, open_bytes

BLOCK = 2**16
"""Bytes read at a time."""
LONGEST = 1000
"""Characters: what goes on for longer without an end, such as a table, is cut between two words."""

_END = re.compile(r"[.!?][\"'\u201d\u2019)\]]*\s+|\n\s*\n|\0")


def open_prose(data: str, split: Split = "train") -> np.ndarray:
    """Bytes `(N,)` uint8, mapped into memory, of a text.

    Args:
        data: one file of UTF-8 text (`\\0` may separate documents; a packed one is unpacked into an unnamed file),
            or anything that `open_store` takes: python, cpp, english, a folder, hub:NAME.
        split: of what `open_store` takes; a single file has no splits and is given whole.

    Raises:
        InputError: the file is empty or cannot be read, or `open_store` refuses.
    """
    path = Path(data).expanduser()
    if not path.is_file():
        return getattr(open_store(data), split)
    try:
        if not is_packed(path):
            return np.memmap(path, np.uint8, "r")
        with tempfile.TemporaryFile() as unpacked:
            with open_bytes(path) as packed:
                shutil.copyfileobj(packed, unpacked, 2**20)
            return np.memmap(unpacked, np.uint8, "r")
    except (*UNREADABLE, ValueError) as error:
        raise InputError(f"data: '{data}' cannot be read ({error}); give a file of UTF-8 text.") from None


def sentences(text: np.ndarray, start: int = 0) -> Iterator[str]:
    """Sentences of `text (N,)` from the first that begins after byte `start` on; endless: byte 0 follows the last one.

    White space inside a sentence becomes one blank. What ends a sentence: `.`, `!` or `?` before white space, an empty
    line, a zero byte. Raises InputError for a text without a word.
    """
    found = _split(_decoded(text, start))
    if start:
        next(found)  # may have begun before
    empty = 0
    for sentence in found:
        words = " ".join(sentence.split())
        empty = 0 if words else empty + len(sentence) + 1
        if empty > len(text):
            raise InputError("data: the text has no words; give another.")
        if words:
            yield words


def _decoded(text: np.ndarray, start: int) -> Iterator[str]:
    """Text from byte `start` on, block by block, round and round; a zero character at the end of each round."""
    if not len(text):
        raise InputError("data: the text is empty; give another.")
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    while True:
        for begin in range(start % len(text), len(text), BLOCK):
            yield decoder.decode(text[begin : begin + BLOCK].tobytes())
        yield decoder.decode(b"", final=True) + "\0"
        start = 0


def _split(blocks: Iterator[str]) -> Iterator[str]:
    """Sentences with their white space."""
    rest = ""
    for block in blocks:
        rest, at = rest + block, 0
        while True:
            match = _END.search(rest, at)
            if match and match.end() - at <= LONGEST:
                end = match.end()
            elif len(rest) - at > LONGEST:
                end = rest.rfind(" ", at + 1, at + LONGEST) + 1 or at + LONGEST
            else:
                break
            yield rest[at:end].replace("\0", " ")
            at = end
        rest = rest[at:]
