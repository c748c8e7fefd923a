"""Text to be read piece by piece, that can be gone on with at any piece, as long as what was read has not changed."""

import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from nestling.data.corpora import find_source
from nestling.data.sources import Report
from nestling.errors import InputError

PIECE = 4096
"""Characters."""
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Place:
    """How far the text was read.

    document: documents read to their end. characters: of the next one. size: bytes in all. before, within: SHA-256 of
    the finished documents and of the characters of the next one; empty where there are none.
    """

    document: int = 0
    characters: int = 0
    size: int = 0
    before: str = ""
    within: str = ""


@dataclass(frozen=True)
class Piece:
    """text: of one document. end: the document ends behind it. after: the place once it was read."""

    text: str
    end: bool
    after: Place


class Intake:
    """Documents of files, folders, corpora and standard input, one after the other.

    Args:
        names: what `nestling.data` knows as text, or - for standard input, a single document.

    Raises:
        InputError: a name that is no text.
    """

    def __init__(self, names: Sequence[str]):
        self.sources = [None if name == STANDARD_INPUT else find_source(name) for name in names]
        self.report = Report()
        sizes = [None if source is None else source.size for source in self.sources]
        known = [size for size in sizes if size is not None]
        self.size = sum(known) if len(known) == len(sizes) else None

    def documents(self) -> Iterator[tuple[str, TextIO]]:
        """Names and open texts."""
        for source in self.sources:
            if source is None:
                yield "standard input", _standard_input()
            else:
                for name, text in source.documents(self.report):
                    yield name, io.StringIO(text, newline="")

    def pieces(self, start: Place) -> Iterator[Piece]:
        """What follows `start`.

        Raises:
            InputError: what precedes it is not what was read.
        """
        documents, place, before, passed = self.documents(), start, "", 0
        while passed < start.document and (document := next(documents, None)):
            before, passed = _chained(before, _skip(document[1], None)), passed + 1
        _check(passed == start.document and before == start.before, f"what comes before document {passed + 1:,}")
        for name, file in documents:
            content = _skip(file, place.characters)
            _check(not place.characters or content.hexdigest() == place.within, f"the beginning of '{name}'")
            for piece in _rest(file, content, place):
                place = piece.after
                yield piece
        _check(place is not start or not start.characters, "the last document")


def _rest(file: TextIO, content: "hashlib._Hash", place: Place) -> Iterator[Piece]:
    """What follows `place` in one document; `content` is the hash of what precedes it there."""
    while text := file.read(PIECE):
        raw = _bytes(text)
        content.update(raw)
        characters, size = place.characters + len(text), place.size + len(raw)
        place = Place(place.document, characters, size, place.before, content.hexdigest())
        yield Piece(text, False, place)
    yield Piece("", True, Place(place.document + 1, 0, place.size, _chained(place.before, content)))


def _chained(before: str, content: "hashlib._Hash") -> str:
    return hashlib.sha256((before + content.hexdigest()).encode()).hexdigest()


def _skip(file: TextIO, characters: int | None) -> "hashlib._Hash":
    """Read past so many characters, or all; the hash of what was there."""
    content, left = hashlib.sha256(), characters
    while left != 0 and (text := file.read(PIECE if left is None else min(left, PIECE))):
        content.update(_bytes(text))
        left = None if left is None else left - len(text)
    return content


def _check(same: bool, what: str) -> None:
    if not same:
        raise InputError(
            f"read: {what} is no longer the text that was learnt from; bring it back, go on with other text by --more, "
            "or begin anew by --restart"
        )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _standard_input() -> TextIO:
    """Bytes that are not UTF-8 become U+FFFD, line ends stay as they are."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace", newline="")
    return sys.stdin
