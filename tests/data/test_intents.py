"""Intents from files in their original format: hand-made ones, and the real ones where NESTLING_DATA names a folder."""

import json
import lzma
import os
from collections import Counter
from pathlib import Path

import pytest

from nestling.data import intents
from nestling.errors import InputError

REAL = os.environ.get("NESTLING_DATA")
CLINC = {
    "oos_val": [["what is love", "oos"]],
    "val": [["tell me a joke", "joke"]],
    "train": [["how much is left", "balance"], ["make me laugh", "joke"]],
    "oos_test": [["who was first", "oos"], ["why", "oos"]],
    "test": [["be funny", "joke"], ["my balance", "balance"]],
    "oos_train": [["where to", "oos"]],
}
TRAIN = 'text,category\r\nWhere is it?,arrival\r\n"No, really,\nwhere?",arrival\r\n"Say ""now""",exchange\r\n'
TEST = "text,category\r\nIs it here,arrival\r\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(intents, "CLINC150", {split: len(rows) for split, rows in CLINC.items()})
    monkeypatch.setattr(intents, "BANKING77", {"train": 3, "test": 1})
    (tmp_path / "data_full.json").write_text(json.dumps(CLINC))
    (tmp_path / "train.csv").write_bytes(TRAIN.encode())
    (tmp_path / "test.csv").write_bytes(TEST.encode())
    return tmp_path


def test_clinc_in_scope_and_with_oos(folder):
    found = intents.clinc150(folder)
    assert found.labels == ("balance", "joke")
    assert found.train == (("how much is left", "balance"), ("make me laugh", "joke"))
    assert found.valid == (("tell me a joke", "joke"),)
    assert found.test == (("be funny", "joke"), ("my balance", "balance"))
    wider = intents.clinc150(folder, oos=True)
    assert wider.labels == ("balance", "joke", "oos")
    assert wider.train == (*found.train, ("where to", "oos"))
    assert wider.test == (*found.test, ("who was first", "oos"), ("why", "oos"))


def test_banking_reads_quotes_commas_and_line_ends(folder):
    found = intents.banking77(folder)
    assert found.train == (("Where is it?", "arrival"), ("No, really,\nwhere?", "arrival"), ('Say "now"', "exchange"))
    assert found.test == (("Is it here", "arrival"),)
    assert found.valid == ()
    assert found.labels == ("arrival", "exchange")


def test_packed_files_read_the_same(folder):
    plain = intents.clinc150(folder), intents.banking77(folder)
    for name in ("data_full.json", "train.csv", "test.csv"):
        path = folder / name
        path.with_name(f"{name}.xz").write_bytes(lzma.compress(path.read_bytes()))
        path.unlink()
    assert (intents.clinc150(folder), intents.banking77(folder)) == plain


@pytest.mark.parametrize("load", [intents.clinc150, intents.banking77])
def test_missing_files_are_named(load, tmp_path):
    with pytest.raises(InputError, match=r"holds neither (data_full\.json|train\.csv) nor"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "load"),
    [
        ("data_full.json", b'{"train": [', intents.clinc150),
        ("data_full.json", b'{"train": [["alone"]]}', intents.clinc150),
        ("data_full.json", b"[]", intents.clinc150),
        ("train.csv", b"a,b\n", intents.banking77),
        ("train.csv", b"", intents.banking77),
        ("train.csv", b"text,category\none,two,three\n", intents.banking77),
        ("train.csv", b'text,category\n"open,arrival\n', intents.banking77),
        ("train.csv", b"text,category\n\xff,arrival\n", intents.banking77),
    ],
)
def test_damaged_files_are_reported(folder, name, content, load):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        load(folder)


def test_a_cut_archive_is_reported(folder):
    (folder / "train.csv").unlink()
    (folder / "train.csv.xz").write_bytes(lzma.compress(TRAIN.encode())[:-20])
    with pytest.raises(InputError, match="is damaged"):
        intents.banking77(folder)


def test_other_counts_than_published_are_reported(folder):
    (folder / "test.csv").write_text(TEST + "And now,arrival\n")
    with pytest.raises(InputError, match=r"test 2 \(published: 1\)"):
        intents.banking77(folder)
    (folder / "data_full.json").write_text(json.dumps(CLINC | {"val": []}))
    with pytest.raises(InputError, match=r"val 0 \(published: 1\)"):
        intents.clinc150(folder)


@pytest.mark.skipif(not REAL, reason="NESTLING_DATA is not set")
def test_the_real_files():
    clinc = intents.clinc150(Path(REAL or "") / "clinc150")
    assert len(clinc.labels) == 150
    for split, each in (("train", 100), ("valid", 20), ("test", 30)):
        assert set(Counter(label for _, label in getattr(clinc, split)).values()) == {each}
    banking = intents.banking77(Path(REAL or "") / "banking77")
    assert len(banking.labels) == 77
    assert set(Counter(label for _, label in banking.test).values()) == {40}
