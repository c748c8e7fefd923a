"""Text to token ids and back: bytes by default, byte-pair encoding through the `tokenizers` library.

In both, id `eos_id` (0 for bytes and for a vocabulary trained here) separates documents; it serves as end, start and
padding too. `encode` never adds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from nestling.data.sources import digest
from nestling.errors import InputError
from nestling.files import replacing

END = "<|endoftext|>"
_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_PIECE = 2**20


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        ...

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names vocabulary and rules."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Ids `(tokens,)` of a text, in the narrowest unsigned type; a lone surrogate is read as `?`."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids (list, array or CPU tensor); bytes that are not UTF-8 become U+FFFD."""
        ...

    def save(self, path: str | Path) -> None:
        """Write a JSON file that `load_tokenizer` reads."""
        ...


def id_type(vocab_size: int) -> np.dtype:
    """Narrowest of uint8, uint16 and uint32 for ids below `vocab_size`."""
    return np.dtype(np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32)


def _checked(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    array = np.asarray(ids if hasattr(ids, "__len__") else list(ids), dtype=np.int64)
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        raise InputError(
            f"ids: {array.min()} to {array.max()} were given, but the tokenizer knows 0 to {vocab_size - 1}; "
            "use the tokenizer that the model was trained with."
        )
    return array


class ByteTokenizer:
    """One token a byte of UTF-8; byte 0 separates documents."""

    vocab_size = 256
    eos_id = 0
    fingerprint = "bytes"

    def encode(self, text: str) -> np.ndarray:
        """Bytes `(tokens,)` uint8; every text of valid characters comes back exactly."""
        return np.frombuffer(bytearray(text.encode("utf-8", "replace")), np.uint8)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of byte values; what is not UTF-8 (a character cut in two) becomes U+FFFD."""
        return _checked(ids, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def save(self, path: str | Path) -> None:
        """Write the one line of JSON that says `bytes`."""
        with replacing(path) as scratch:
            scratch.write_text(json.dumps({"nestling": "bytes"}))


class BPETokenizer:
    """A vocabulary in the `tokenizer.json` format of the `tokenizers` library, trained here (`train_bpe`) or elsewhere.

    The text of special tokens inside a document is encoded as ordinary text, so no document can forge a separator.
    Raises InputError for text that is not such a file, or for a vocabulary without an end-of-text token.
    """

    def __init__(self, specification: str):
        import tokenizers  # slow to import

        try:
            self._engine = tokenizers.Tokenizer.from_str(specification)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"tokenizer: the file is not in the tokenizers format ({error}); give another.") from error
        self._engine.no_truncation()
        self._engine.no_padding()
        vocabulary = self._engine.get_vocab()
        end = next((token for token in _ENDS if token in vocabulary), None)
        if end is None:
            raise InputError(
                f"tokenizer: the vocabulary has none of {', '.join(_ENDS)}; add one to end documents with."
            )
        self._engine.encode_special_tokens = True
        self._specification = specification
        self.eos_id: int = vocabulary[end]
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.fingerprint = f"bpe-{digest(specification)[:16]}"

    def encode(self, text: str) -> np.ndarray:
        """Ids `(tokens,)`; a long text is encoded in pieces of whole lines of about a mebibyte, to bound memory."""
        text = text.encode("utf-8", "replace").decode()
        parts = self._engine.encode_batch_fast(list(_pieces(text)), add_special_tokens=False)
        return np.concatenate([np.asarray(part.ids, id_type(self.vocab_size)) for part in parts])

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens spelled out."""
        return self._engine.decode(_checked(ids, self.vocab_size).tolist(), skip_special_tokens=False)

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`, which transformers and tokenizers read too."""
        with replacing(path) as scratch:
            scratch.write_text(self._specification, encoding="utf-8")


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text) or start == 0:
        cut = text.find("\n", start + _PIECE) + 1 or len(text)
        yield text[start:cut]
        start = cut or 1


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Byte-level BPE with `vocab_size` tokens (at least 257: all bytes and the separator, id 0), learned from texts.

    Train on the held-in part only: `train_bpe(open_store(data).texts("train"), 4096)`.
    """
    if vocab_size < 257:
        raise InputError(
            f"vocab_size: {vocab_size} is too small for BPE; give at least 257, or use the byte tokenizer."
        )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator(texts, trainer)
    return BPETokenizer(engine.to_str())


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Tokenizer from a JSON file written by `save`, from any `tokenizer.json`, or from a folder that holds one.

    Raises InputError where the file is missing or is neither.
    """
    path = Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer: '{path}' cannot be read as JSON ({error}); give a tokenizer.json.") from error
    if content == {"nestling": "bytes"}:
        return ByteTokenizer()
    return BPETokenizer(text)
