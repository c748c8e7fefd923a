"""`metrics.jsonl`: one JSON object a line, for what a run did and for evaluations."""

import json
import os
from pathlib import Path
from typing import Any

from nestling.errors import InputError
from nestling.files import replacing


class Metrics:
    """Appends lines to `path`. A line is on disk when `sync` has returned; runs sync before each checkpoint."""

    def __init__(self, path: Path):
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def write(self, **values: Any) -> None:
        """Append one line and hand it to the operating system, so that readers can follow a run."""
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Return when everything written so far has reached the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Every complete line of a `metrics.jsonl`, in order; a last line cut off by a kill is left out.

    Raises InputError for a complete line that is no JSON.
    """
    with open(path, encoding="utf-8") as file:
        complete = [line for line in file if line.endswith("\n")]
    try:
        return [json.loads(line) for line in complete]
    except json.JSONDecodeError as error:
        raise InputError(f"metrics: '{path}' holds a line that is not JSON ({error.msg}); remove that line") from error


def rewind(path: Path, step: int) -> None:
    """Drop what comes after `step`, so that a run resumed there neither loses nor doubles a line."""
    _rewrite(path, [line for line in read(path) if line["step"] <= step] if path.exists() else [])


def shorten(path: Path, lines: int) -> None:
    """Keep the first `lines` lines, for a run that counts them."""
    _rewrite(path, read(path)[:lines] if path.exists() else [])


def _rewrite(path: Path, kept: list[dict[str, Any]]) -> None:
    with replacing(path) as scratch:
        scratch.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
