"""Stores: what goes in, what is held out, when they are reused and rebuilt."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from nestling.data import ByteTokenizer, batch, load_store, open_store, train_bpe
from nestling.errors import InputError


@pytest.fixture
def texts(tmp_path):
    """A folder of 60 small files in two levels."""
    folder = tmp_path / "texts"
    for i in range(60):
        file = folder / f"{'abc'[i % 3]}" / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"file {i} says é\n" * (i + 1), encoding="utf-8")
    return folder


def opened(texts, tmp_path, **options):
    return open_store(str(texts), cache=tmp_path / "cache", **options)


def test_every_file_is_in_exactly_one_split(texts, tmp_path):
    store = opened(texts, tmp_path)
    train, valid = list(store.texts("train")), list(store.texts("valid"))
    assert sorted(train + valid) == sorted(p.read_text(encoding="utf-8") for p in texts.rglob("*.txt"))
    held = store.info["held_out"]
    assert held["by"] == "file"
    assert 1 <= len(held["names"]) == len(valid) < 10
    assert sorted(valid) == sorted((texts / name).read_text(encoding="utf-8") for name in held["names"])
    assert isinstance(store.train, np.memmap)
    assert store.train.dtype == np.uint8
    assert store.bytes_per_token("train") == store.bytes_per_token("valid") == 1
    assert len(store.train) + len(store.valid) == sum(p.stat().st_size + 1 for p in texts.rglob("*.txt"))
    assert batch(store.train, 0, 0, 0, 2, 16).shape == (2, 16)


def test_the_split_follows_names_not_places_or_contents(texts, tmp_path):
    held = opened(texts, tmp_path).info["held_out"]["names"]
    moved = texts.rename(tmp_path / "elsewhere")
    for file in moved.rglob("*.txt"):
        file.write_text(file.name + " changed")
    assert opened(moved, tmp_path).info["held_out"]["names"] == held


def test_new_files_move_none_between_the_splits(texts, tmp_path):
    held = set(opened(texts, tmp_path).info["held_out"]["names"])
    for i in range(60):
        (texts / f"new{i}.txt").write_text(f"new {i}")
    later = set(opened(texts, tmp_path).info["held_out"]["names"])
    assert {name for name in later if not name.startswith("new")} == held


def test_two_files_hold_one_out_and_one_file_its_tail(tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "a.txt").write_text("first " * 100)
    (folder / "b.txt").write_text("second " * 100)
    store = opened(folder, tmp_path)
    assert [store.info["splits"][split]["files"] for split in ("train", "valid")] == [1, 1]
    one = opened(folder / "a.txt", tmp_path)
    assert one.info["held_out"]["by"] == "tail of the only file"
    assert "".join([*one.texts("train"), *one.texts("valid")]) == "first " * 100
    assert 0.03 < len(one.valid) / len(one.train) < 0.08


def test_byte_counts_compare_tokenizers(texts, tmp_path):
    bytes_store = opened(texts, tmp_path)
    tokenizer = train_bpe(bytes_store.texts("train"), 300)
    tokenizer.save(tmp_path / "tokenizer.json")
    store = opened(texts, tmp_path, tokenizer=tmp_path / "tokenizer.json")
    assert store.folder != bytes_store.folder
    assert store.tokenizer.fingerprint == tokenizer.fingerprint
    assert store.train.dtype == np.uint16
    for split in ("train", "valid"):
        assert store.info["splits"][split]["bytes"] == bytes_store.info["splits"][split]["bytes"]
        assert list(store.texts(split)) == list(bytes_store.texts(split))
        assert store.bytes_per_token(split) > 1.5


def test_what_is_not_text_is_skipped_counted_and_reported(texts, tmp_path, caplog):
    (texts / "latin.txt").write_bytes("café".encode("latin-1"))
    (texts / "image.bin").write_bytes(b"\x00\x01\x02")
    (texts / "copy.txt").write_bytes((texts / "a" / "3.txt").read_bytes())
    (texts / "blank.txt").write_text(" \n")
    (texts / ".hidden").write_text("hidden")
    info = opened(texts, tmp_path).info
    assert info["skipped"] == 2
    assert sorted(info["skipped_names"]) == ["image.bin", "latin.txt"]
    assert info["duplicates"] == 1
    assert sum(split["files"] for split in info["splits"].values()) == 60
    assert "skipped 2 not in UTF-8" in caplog.text


def test_a_limit_samples_the_files(texts, tmp_path):
    store = opened(texts, tmp_path, max_bytes=3000)
    whole = opened(texts, tmp_path)
    assert store.folder != whole.folder
    size = sum(split["bytes"] - split["files"] for split in store.info["splits"].values())
    assert 2998 <= size <= 3000
    chosen = [int(text.split()[1]) for split in ("train", "valid") for text in store.texts(split)]
    assert len(chosen) > 2
    assert chosen != sorted(chosen)
    assert max(chosen) > 30
    assert opened(texts, tmp_path, max_bytes=3000).info == store.info


def test_reused_until_a_file_changes(texts, tmp_path):
    first = opened(texts, tmp_path)
    made = (first.folder / "store.json").stat().st_mtime_ns
    assert (opened(texts, tmp_path).folder / "store.json").stat().st_mtime_ns == made
    (texts / "a" / "0.txt").write_text("another text")
    again = opened(texts, tmp_path)
    assert again.folder != first.folder
    assert "another text" in [*again.texts("train"), *again.texts("valid")]


@pytest.mark.parametrize(
    "harm", ["truncate", "extend", "remove", "empty", "json", "format", "count", "type", "tokenizer"]
)
def test_a_damaged_store_is_refused_and_rebuilt(harm, texts, tmp_path, caplog):
    store = opened(texts, tmp_path)
    expected, folder = list(store.texts("valid")), store.folder
    info = json.loads((folder / "store.json").read_text())
    if harm in ("truncate", "empty"):
        os.truncate(folder / "valid.bin", 0 if harm == "empty" else 10)
    elif harm == "extend":
        (folder / "train.bin").write_bytes(bytes(store.train) + b"x")
    elif harm == "remove":
        (folder / "train.bin").unlink()
    elif harm == "tokenizer":
        (folder / "tokenizer.json").write_text("[]")
    else:
        info["format"] = 0 if harm == "format" else 1
        info["dtype"] = "float64" if harm == "type" else "uint8"
        info["splits"] = None if harm == "count" else info["splits"]
        (folder / "store.json").write_text("{" if harm == "json" else json.dumps(info))
    with pytest.raises(InputError, match="is damaged"):
        load_store(folder)
    assert list(opened(texts, tmp_path).texts("valid")) == expected
    assert "rebuilt" in caplog.text
    assert load_store(folder).info["sha256"] == store.info["sha256"]


def test_builders_at_once_build_once(texts, tmp_path, monkeypatch):
    built, stores = [], []
    original = ByteTokenizer.save
    monkeypatch.setattr(ByteTokenizer, "save", lambda self, path: (built.append(path), original(self, path)))
    threads = [threading.Thread(target=lambda: stores.append(opened(texts, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    assert len(built) == 1
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == sorted(
        [stores[0].folder.name, stores[0].folder.name + ".lock"]
    )


def test_an_interrupted_build_leaves_nothing(texts, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ByteTokenizer, "save", fail)
        with pytest.raises(InputError, match=r"cache: .*No space left"):
            opened(texts, tmp_path)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]
    assert len(opened(texts, tmp_path).train) > 0


def test_another_process_builds_the_same_and_draws_the_same(texts, tmp_path):
    code = (
        "import sys; from nestling.data import batch, open_store; store = open_store(sys.argv[1]);"
        "print(store.info['sha256'], batch(store.train, 7, 123, 2, 3, 5).tolist())"
    )
    environment = {**os.environ, "NESTLING_CACHE": str(tmp_path / "other")}
    command = [sys.executable, "-c", code, str(texts)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    store = opened(texts, tmp_path)
    assert out.strip() == f"{store.info['sha256']} {batch(store.train, 7, 123, 2, 3, 5).tolist()}"
    assert len(list((tmp_path / "other").glob("*/train.bin"))) == 1


def test_bad_input_is_a_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "file").write_text("text")
    for data, word in [
        ("", "is no file or folder"),
        (str(tmp_path / "missing"), "is no file or folder"),
        ("/dev/null", "is no file or folder"),
        (str(tmp_path / "folder"), "holds no files"),
        (str(tmp_path / "empty.txt"), "it is empty"),
        (str(tmp_path / "latin.txt"), "1 skipped as not UTF-8"),
    ]:
        with pytest.raises(InputError, match=word):
            opened(data, tmp_path)
    with pytest.raises(InputError, match="max_bytes: 0"):
        opened(tmp_path / "file", tmp_path, max_bytes=0)
    with pytest.raises(InputError, match="cache: "):
        open_store(str(tmp_path / "file"), cache=tmp_path / "file" / "cache")
    with pytest.raises(InputError, match="is damaged"):
        load_store(tmp_path / "missing")


@pytest.mark.parametrize("text", ["a", "é", "ab", "a\n"])
def test_the_smallest_texts(text, tmp_path):
    (tmp_path / "small.txt").write_text(text, encoding="utf-8")
    store = opened(tmp_path / "small.txt", tmp_path)
    assert "".join([*store.texts("train"), *store.texts("valid")]) == text
