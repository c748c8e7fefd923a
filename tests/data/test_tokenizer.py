"""Tokenizers: every text comes back, files hold all there is to them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.data import BPETokenizer, ByteTokenizer, load_tokenizer, train_bpe
from nestling.data.tokenizer import END, id_type
from nestling.errors import InputError

TEXTS = ["the cat sat on the mat\n" * 20, "def f(x):\n    return x + 1\n" * 20, "naïve café 猫\n" * 5]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXTS, 300)


@given(st.text())
def test_bytes_round_trip(text):
    ids = ByteTokenizer().encode(text)
    assert ids.dtype == np.uint8
    assert ids.tobytes() == text.encode()
    assert ByteTokenizer().decode(ids) == text
    assert ByteTokenizer().decode(ids.tolist()) == text
    assert ByteTokenizer().decode(torch.from_numpy(ids).long()) == text


@given(st.text())
def test_bpe_round_trip(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


@given(st.lists(st.integers(0, 255)))
def test_any_bytes_decode(ids):
    assert ByteTokenizer().decode(ids) == bytes(ids).decode(errors="replace")


def test_lone_surrogates_are_question_marks(bpe):
    for tokenizer in (ByteTokenizer(), bpe):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_bpe_compresses_and_keeps_zero_for_the_separator(bpe):
    ids = bpe.encode(TEXTS[0])
    assert bpe.eos_id == 0
    assert bpe.vocab_size <= 300
    assert ids.dtype == np.uint16
    assert len(ids) < len(TEXTS[0]) / 2
    assert not (bpe.encode(f"a{END}b") == 0).any()
    assert bpe.decode(bpe.encode(f"a{END}b")) == f"a{END}b"


def test_long_texts_are_encoded_in_pieces(bpe, monkeypatch):
    whole = bpe.encode(TEXTS[0])
    monkeypatch.setattr("nestling.data.tokenizer._PIECE", 30)
    assert bpe.decode(bpe.encode(TEXTS[0])) == TEXTS[0]
    assert len(bpe.encode(TEXTS[0])) <= len(whole) + 20
    assert bpe.encode("").tolist() == []


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_saved_is_loaded(kind, bpe, tmp_path):
    tokenizer = ByteTokenizer() if kind == "bytes" else bpe
    tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        again = load_tokenizer(path)
        assert type(again) is type(tokenizer)
        assert (again.fingerprint, again.vocab_size, again.eos_id) == (
            tokenizer.fingerprint,
            tokenizer.vocab_size,
            tokenizer.eos_id,
        )
        assert again.encode(TEXTS[2]).tolist() == tokenizer.encode(TEXTS[2]).tolist()


def test_training_is_deterministic_and_told_apart(bpe):
    assert train_bpe(TEXTS, 300).fingerprint == bpe.fingerprint
    assert train_bpe(TEXTS, 290).fingerprint != bpe.fingerprint != ByteTokenizer().fingerprint


def test_tokenizers_from_elsewhere(tmp_path):
    from tokenizers import Tokenizer, models

    engine = Tokenizer(models.WordLevel({"</s>": 3, "a": 0, "?": 1}, unk_token="?"))
    engine.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).eos_id == 3
    assert load_tokenizer(tmp_path).vocab_size == 4
    with pytest.raises(InputError, match="has none of"):
        BPETokenizer(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())


def test_bad_files_and_ids_are_sentences(tmp_path, bpe):
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load_tokenizer(tmp_path / "missing.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load_tokenizer(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(json.dumps({"x": 1}))
    with pytest.raises(InputError, match="not in the tokenizers format"):
        load_tokenizer(tmp_path / "b.json")
    for tokenizer in (ByteTokenizer(), bpe):
        with pytest.raises(InputError, match="ids: 0 to 300"):
            tokenizer.decode([0, 300])
    with pytest.raises(InputError, match="vocab_size: 200"):
        train_bpe(TEXTS, 200)


@pytest.mark.parametrize(("size", "kind"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65537, "uint32")])
def test_narrowest_type(size, kind):
    assert id_type(size).name == kind
