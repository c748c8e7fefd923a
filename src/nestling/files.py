"""Files that are never half-written, and files as they come: plain, or packed as .xz, .gz or .bz2."""

import bz2
import contextlib
import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError)
"""What opening and reading may raise."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a scratch path beside `path`; on success it is flushed to disk and takes `path`'s place.

    If the body raises (a full disk, an interrupt), the scratch file is removed and an earlier `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        with open(scratch, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        scratch.unlink(missing_ok=True)


def is_packed(path: Path) -> bool:
    """Whether the name says so."""
    return path.suffix in _OPENERS


def present(path: Path) -> Path | None:
    """`path`, or where it lies packed; None where it does not."""
    return next((p for suffix in ("", *_OPENERS) if (p := path.with_name(path.name + suffix)).is_file()), None)


def open_text(path: Path) -> IO[str]:
    """Its UTF-8 text, for reading."""
    return _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8", newline="")


def open_bytes(path: Path) -> IO[bytes]:
    """Its bytes, for reading."""
    return _OPENERS.get(path.suffix, open)(path, "rb")
