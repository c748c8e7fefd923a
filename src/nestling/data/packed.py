"""Files as they come: plain, or packed as .xz, .gz or .bz2."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError)
"""What opening and reading may raise."""


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
