"""Data: text sources, tokenizers, memory-mapped token stores, batches and synthetic tasks."""

from nestling.data.batches import batch, windows
from nestling.data.corpora import CORPORA
from nestling.data.store import Store, Tokens, load_store, open_store
from nestling.data.synthetic import moded_store, moded_store_vocab
from nestling.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer, train_bpe

__all__ = [
    "CORPORA",
    "BPETokenizer",
    "ByteTokenizer",
    "Store",
    "Tokenizer",
    "Tokens",
    "batch",
    "load_store",
    "load_tokenizer",
    "moded_store",
    "moded_store_vocab",
    "open_store",
    "train_bpe",
    "windows",
]
