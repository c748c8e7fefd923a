"""The corpora of this machine and of the hub."""

import json

import pytest

from nestling.data import CORPORA, open_store
from nestling.data.corpora import _extract, _fresh_paragraphs, find_source
from nestling.data.sources import Report
from nestling.errors import InputError

LIMIT = 400_000


@pytest.mark.parametrize(("name", "typical"), [("python", "def "), ("cpp", "#pragma once"), ("english", " the ")])
def test_embedded_corpora_open(name, typical, tmp_path):
    store = open_store(name, cache=tmp_path, max_bytes=LIMIT)
    splits = store.info["splits"]
    assert sum(split["bytes"] - split["files"] for split in splits.values()) == pytest.approx(LIMIT, abs=4)
    assert 0 < splits["valid"]["bytes"] < LIMIT / 2
    texts = list(store.texts("train"))
    assert len(texts) > 10
    assert sum(typical in text for text in texts) > len(texts) / 3


@pytest.mark.parametrize("name", CORPORA)
def test_sources_are_large_and_always_in_the_same_order(name):
    one, other = find_source(name), find_source(name)
    assert one.fingerprint == other.fingerprint
    firsts = [next(iter(source.documents(Report()))) for source in (one, other)]
    assert firsts[0] == firsts[1]


def test_no_installed_package_is_in_the_standard_library():
    size = find_source("python").size
    assert size is not None
    assert 8e6 < size < 80e6


def test_prose_is_extracted():
    docstring = " ".join(["Say what it does, at length."] * 10)
    code = f'"""{docstring}"""\n\ndef f():\n    """Short."""\n    x = """{docstring}no docstring"""\n'
    assert dict(_extract("a/b.py", code)) == {"a/b.py": docstring}
    assert dict(_extract("a.dist-info/METADATA", "Name: a\nVersion: 1\n\nA text.")) == {
        "a.dist-info/METADATA": "A text."
    }
    topics = dict(_extract("python/pydoc_data/topics.py", "# generated\ntopics = {'assert': 'The statement.'}"))
    assert topics == {"python/pydoc_data/topics.py#assert": "The statement."}
    assert dict(_extract("a/LICENSE", "Do as you like.")) == {"a/LICENSE": "Do as you like."}


def test_repeated_paragraphs_are_kept_once():
    seen: set[int] = set()
    clause = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software"
    assert _fresh_paragraphs(f"MIT\n\n{clause}", seen) == f"MIT\n\n{clause}"
    assert _fresh_paragraphs(f"MIT\n \n{clause.replace(' ', '  ').upper()}\n\nEnd", seen) == "MIT\n\nEnd"


@pytest.fixture
def offline(monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def hub_folder(folder, rows):
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"hub:{folder}"


@pytest.mark.usefixtures("offline")
def test_hub_rows_become_documents(tmp_path):
    rows = [{"text": f"row {i} of the data set"} for i in range(40)] + [{"text": None}, {"text": ""}, {"text": "\0"}]
    store = open_store(hub_folder(tmp_path / "rows", rows), cache=tmp_path / "cache")
    texts = [*store.texts("train"), *store.texts("valid")]
    assert sorted(texts) == sorted(row["text"] for row in rows[:40])
    assert store.info["skipped"] == 2
    assert store.info["max_bytes"] == 2**30
    few = open_store(f"hub:{tmp_path / 'rows'}", cache=tmp_path / "cache", max_bytes=100)
    assert sorted([*few.texts("train"), *few.texts("valid")])[0] == "row 0 of the data set"
    assert sum(split["bytes"] - split["files"] for split in few.info["splits"].values()) == 100


@pytest.mark.usefixtures("offline")
def test_hub_mistakes_are_sentences(tmp_path):
    for data, word in [
        ("hub:", "names no data set"),
        (hub_folder(tmp_path / "other", [{"content": "x", "id": 1}]), "has the columns content, id"),
        ("hub:nobody/has-this", "cannot be read"),
        ("hub:nobody/has-this:config", "nobody/has-this:config"),
        (f"hub:{tmp_path / 'missing'}", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=word):
            open_store(data, cache=tmp_path / "cache")
