"""Text that arrives in pieces, as token ids that do not depend on where the pieces end."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nestling.errors import InputError

LONGEST_LINE = 2**16
"""Characters: a longer line is encoded in pieces of this length."""
_BLOCK = 2**20
_SEEN = 8
"""Tokens that may share a character with the next one."""

Text = str | Path | Tensor | np.ndarray | Iterable[Any]


class Encoder:
    """Token ids of a stream of text.

    A tokenizer whose tokens are bytes encodes what it gets. Any other encodes line by line, so that the ids are the
    same however the text is cut: the last, unfinished line waits in `waiting`.

    Args:
        tokenizer: one of ours, or of transformers; None: only ids can be read.
        vocab_size: ids are below this.
    """

    def __init__(self, tokenizer: Any, vocab_size: int):
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.bytewise = getattr(tokenizer, "fingerprint", None) == "bytes"
        self.waiting = ""

    @property
    def start(self) -> int | None:
        """The id from which a document's first token is predicted; None if there is none."""
        return self._special("eos_id", "bos_token_id", "eos_token_id")

    @property
    def stop(self) -> int | None:
        """The id that ends a document; None if there is none."""
        return self._special("eos_id", "eos_token_id", "bos_token_id")

    def _special(self, *names: str) -> int | None:
        """The first of these ids that the tokenizer has."""
        found = [one for name in names if isinstance(one := getattr(self.tokenizer, name, None), int)]
        if found and not 0 <= found[0] < self.vocab_size:
            raise InputError(
                f"tokenizer marks documents by id {found[0]}, but the model knows 0..{self.vocab_size - 1}: give the "
                "tokenizer that the model was trained with."
            )
        return found[0] if found else None

    def pieces(self, text: Text) -> Iterator[Tensor]:
        """Ids (n,) int64, piece by piece, of a text, ids, a file's path, or an iterable of such.

        Raises:
            InputError: ids out of range or of a wrong shape, a file that can't be read, text without a tokenizer.
        """
        if isinstance(text, str):
            yield self._encoded(text)
        elif isinstance(text, Path):
            for block in _blocks(text):
                yield self._encoded(block)
        elif isinstance(text, Tensor | np.ndarray):
            ids = torch.as_tensor(text)
            if ids.is_floating_point() or ids.is_complex():
                raise InputError(f"ids are {str(ids.dtype).removeprefix('torch.')}: give whole numbers.")
            yield self._checked(ids.to("cpu", torch.int64, copy=True))
        elif isinstance(text, bytes | bytearray):
            raise InputError("text is bytes: decode them first, or give the Path of a file.")
        elif isinstance(text, Iterable):
            parts = list(text) if isinstance(text, list | tuple) else text
            if isinstance(parts, list) and parts and all(isinstance(one, int) for one in parts):
                yield self._checked(torch.tensor(parts))
            else:
                for part in parts:
                    yield from self.pieces(part)
        else:
            raise InputError(f"text is a {type(text).__name__}: give a string, ids, a Path, or an iterable of them.")

    def end(self) -> Tensor:
        """Ids of the unfinished line; from then on nothing waits."""
        ids = self.encode(self.waiting)
        self.waiting = ""
        return ids

    def encode(self, text: str) -> Tensor:
        """Ids (n,) of a text on its own; nothing waits."""
        if not text:
            return torch.empty(0, dtype=torch.int64)
        if self.tokenizer is None:
            raise InputError("text was given, but no tokenizer: give Learner(..., tokenizer=...), or token ids.")
        if hasattr(self.tokenizer, "eos_id"):
            ids = self.tokenizer.encode(text)
        else:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        return self._checked(torch.as_tensor(np.asarray(ids, dtype=np.int64)))

    def decode(self, ids: Tensor) -> str:
        """The text of ids (n,)."""
        if self.tokenizer is None:
            raise InputError("there is no tokenizer to decode with: give Learner(..., tokenizer=...).")
        return self.tokenizer.decode(ids.tolist())

    def size(self, ids: Tensor, before: Tensor | None = None) -> int | None:
        """Bytes that ids (n,) add to the text of the ids `before` them; None without a tokenizer.

        Over a stream cut anywhere, characters too, sizes add up to that of the text.
        """
        if self.bytewise:
            return len(ids)
        if self.tokenizer is None:
            return None
        known = ids[:0] if before is None else before[-_SEEN:].to(ids.device)
        return self._bytes(torch.cat((known, ids))) - self._bytes(known)

    def _bytes(self, ids: Tensor) -> int:
        return len(self.decode(ids).encode("utf-8", "replace"))

    def _encoded(self, text: str) -> Tensor:
        if self.bytewise:
            return self.encode(text)
        *lines, waiting = (self.waiting + text).split("\n")
        lines = [line + "\n" for line in lines]
        whole = len(waiting) // LONGEST_LINE * LONGEST_LINE
        lines.append(waiting[:whole])
        cut = (line[i : i + LONGEST_LINE] for line in lines for i in range(0, len(line), LONGEST_LINE))
        ids = torch.cat([torch.empty(0, dtype=torch.int64), *map(self.encode, cut)])
        self.waiting = waiting[whole:]
        return ids

    def _checked(self, ids: Tensor) -> Tensor:
        if ids.ndim != 1:
            raise InputError(f"ids have the shape {tuple(ids.shape)}: give one stream, of shape (n,).")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise InputError(
                f"ids lie in {int(ids.min())}..{int(ids.max())}, but the model knows 0..{self.vocab_size - 1}."
            )
        return ids


def _blocks(path: Path) -> Iterator[str]:
    """A UTF-8 file's text in blocks; bytes that are not UTF-8 become U+FFFD."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            while block := file.read(_BLOCK):
                yield block
    except OSError as error:
        raise InputError(f"'{path}' can't be read ({error.strerror}): give a file of text.") from None
