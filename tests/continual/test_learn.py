"""`nestling learn`: reads, notes, saves, and goes on after any stop as if there had been none."""

import io
import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import transformers

from continual.tiny import tiny
from nestling import cli
from nestling.continual import intake
from nestling.continual import run as running
from nestling.continual.intake import Intake, Place
from nestling.continual.learner import Learner
from nestling.continual.level import Level
from nestling.continual.presets import LEVELS, levels
from nestling.data import ByteTokenizer, train_bpe
from nestling.errors import InputError
from nestling.metrics import read

TWO = ["--levels", "fast=128:1e-3", "slow=512:1e-3"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Short pieces and many lines, so that short texts have several; no progress bars of transformers."""
    monkeypatch.setattr(intake, "PIECE", 500)
    monkeypatch.setattr(running, "LINE", 1000)
    # The program asks for this through the environment, which is too late once a test has imported transformers.
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a tiny model that reads bytes."""
    path = tmp_path_factory.mktemp("model")
    tiny("transformer++", 256).save_pretrained(path)
    ByteTokenizer().save(path / "tokenizer.json")
    return path


@pytest.fixture
def texts(tmp_path):
    """A folder of three documents, 3.6 kB in all."""
    path = tmp_path / "texts"
    path.mkdir()
    for name in "abc":
        lines = (f"{name} {i}: {'the cat sat on the mat '[: i % 23]}é\n" for i in range(60))
        (path / f"{name}.txt").write_text("".join(lines))
    return path


def answer(capsys, *arguments):
    """The JSON object that `nestling learn ARGUMENTS` prints."""
    capsys.readouterr()
    assert cli.main(["learn", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def mistake(capsys, *arguments):
    """The one sentence with which it ends with exit code 2."""
    capsys.readouterr()
    assert cli.main(["learn", *map(str, arguments)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    return said[0]


def memory(folder):
    """All that was saved, and what was noted but for the speed."""
    noted = [
        {name: value for name, value in line.items() if name != "tokens_per_second"}
        for line in read(folder / "metrics.jsonl")
    ]
    names = sorted(path.name for path in folder.iterdir())
    return (folder / "learner.json").read_bytes(), names, noted


def same(one, other):
    """Whether two memories are, down to how far the text was read; a stop adds a line to what was noted."""
    a, b = (json.loads((folder / "learner.json").read_text()) for folder in (one, other))
    places = [about["extra"]["progress"]["place"] for about in (a, b)]
    return all(a[name] == b[name] for name in ("tensors", "state", "levels")) and places[0] == places[1]


def feed(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def stop_at(monkeypatch, segment):
    """Ctrl-C arrives in the middle of a segment."""
    learn, seen = running.Learner._learn, []

    def interrupted(self, ids):
        seen.append(ids)
        if len(seen) == segment:
            signal.raise_signal(signal.SIGINT)
        return learn(self, ids)

    monkeypatch.setattr(running.Learner, "_learn", interrupted)


def test_it_reads_notes_and_shows(folder, texts, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # so that a long path is not folded
    old = tmp_path / "old.txt"
    old.write_text("What was known before.\n" * 20)
    there = tmp_path / "memory"
    before = (folder / "model.safetensors").read_bytes()
    found = answer(
        capsys, folder, "--memory", there, "--read", texts, *TWO, "--held-out", old, "--score-every", 1500, "--limit", 1
    )
    size = sum(len(path.read_bytes()) + 1 for path in texts.iterdir())
    assert found["finished"]
    assert found["tokens"] == found["position"] == size // 128 * 128
    assert found["pending"] == size % 128
    assert [one["updates"] for one in found["levels"]] == [size // 512, size // 128]
    assert 0 < found["levels"][1]["distance"] <= 1
    score = found["held_out"][str(old)]
    model = Learner(*running_model(folder), [Level("fast", 128)])
    assert score["before"] == pytest.approx(model.score(old.read_text(), fresh=True).bits_per_byte)
    assert score["now"] != score["before"]
    lines = read(there / "metrics.jsonl")
    assert sum(line.get("tokens", 0) for line in lines) == found["tokens"]
    assert sum(line.get("updates", {}).get("fast", 0) for line in lines) == size // 128
    assert len([line for line in lines if "held_out" in line]) == 2 + found["position"] // 1500
    assert (folder / "model.safetensors").read_bytes() == before
    assert answer(capsys, folder, "--memory", there) == found
    assert cli.main(["learn", str(folder), "--memory", str(there)]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("fast", "slow", str(there), "old.txt", "next due", "All of the text"))


def running_model(folder):
    from nestling.models import load_any

    return load_any(folder)


def test_it_learns_what_a_learner_learns(folder, texts, tmp_path, capsys):
    answer(capsys, folder, "--memory", tmp_path / "memory", "--read", texts, *TWO)
    learner = Learner(*running_model(folder), [Level("fast", 128), Level("slow", 512)])
    for _, file in Intake([str(texts)]).documents():
        learner.read(file.read(), end=True)
    saved = Learner.load(tmp_path / "memory", *running_model(folder))
    for name in ("fast", "slow"):
        ours, theirs = saved.memory[name].factors, learner.memory[name].factors
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


KILLER = """
import os, random, sys, time
import torch
import nestling.continual.run, nestling.models, nestling.train.machine  # once, for all attempts
from nestling import cli

torch.set_num_threads(1)
saved, arguments, draw, kills = sys.argv[1], sys.argv[2:], random.Random(0), 0
stamp = lambda: os.stat(saved).st_mtime_ns if os.path.exists(saved) else 0
while True:
    before, child = stamp(), os.fork()
    if not child:
        os._exit(cli.main(arguments))
    while stamp() == before and not (done := os.waitpid(child, os.WNOHANG)[0]):
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.15) if kills < 8 else 0)
    if kills < 8 and not done and not os.waitpid(child, os.WNOHANG)[0]:
        os.kill(child, 9)
        os.waitpid(child, 0)
        kills += 1
        continue
    if not done:
        os.waitpid(child, 0)
    print(kills)
    break
"""


def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(3):
        (texts / f"{number}.txt").write_text("".join(f"{i * i} of {number}\n" for i in range(800 + number)))
    old = tmp_path / "old.txt"
    old.write_text("What was known before.\n" * 5)
    levels = ["--levels", "fast=256:1e-3", "slow=512:1e-3", "--replay", 0.5]
    how = ["--read", texts, *levels, "--held-out", old, "--save-every", 1, "--score-every", 9000]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = ["learn", folder, "--memory", killed, *how, "--resume", "--json"]
    script = [sys.executable, "-c", KILLER, killed / "learner.json", *arguments]
    done = subprocess.run(list(map(str, script)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 3, "it ended too soon to be killed often"
    answer(capsys, folder, "--memory", whole, *how)
    assert memory(killed) == memory(whole)


def test_ctrl_c_saves_and_says_how_to_go_on(folder, texts, tmp_path, capsys, monkeypatch):
    there, whole = tmp_path / "memory", tmp_path / "whole"
    with monkeypatch.context() as patch:
        stop_at(patch, 20)
        assert cli.main(["learn", str(folder), "--memory", str(there), "--read", str(texts), *TWO]) == 130
    said = capsys.readouterr().err
    assert f"nestling learn {folder} --memory {there} --resume" in said
    part = answer(capsys, folder, "--memory", there)
    assert not part["finished"]
    assert part["position"] >= 20 * 128
    assert answer(capsys, folder, "--memory", there, "--resume") == answer(
        capsys, folder, "--memory", whole, "--read", texts, *TWO
    ) | {"memory": str(there)}
    assert same(there, whole)
    assert answer(capsys, folder, "--memory", there, "--resume")["position"] > part["position"]


def test_standard_input_is_gone_on_with_where_it_begins_alike(folder, tmp_path, capsys, monkeypatch):
    text = "".join(f"line {i} ü\n" for i in range(250))
    there, whole = tmp_path / "memory", tmp_path / "whole"
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        feed(patch, text)
        assert cli.main(["learn", str(folder), "--memory", str(there), "--read", "-", *TWO]) == 130
    assert "same standard input" in capsys.readouterr().err
    feed(monkeypatch, text.replace("line 3", "Line 3"))
    assert "the beginning of 'standard input'" in mistake(capsys, folder, "--memory", there, "--resume")
    feed(monkeypatch, text[:100])
    assert "the beginning of 'standard input'" in mistake(capsys, folder, "--memory", there, "--resume")
    feed(monkeypatch, text)
    answer(capsys, folder, "--memory", there, "--resume")
    feed(monkeypatch, text)
    answer(capsys, folder, "--memory", whole, "--read", "-", *TWO)
    assert same(there, whole)
    feed(monkeypatch, "\udcff and more".encode("utf-8", "surrogateescape").decode("latin-1") * 30)
    more = answer(capsys, folder, "--memory", there, "--read", "-", "--more")
    assert more["position"] > more["tokens"] > 0


def test_a_changed_text_is_refused_and_the_memory_stays(folder, texts, tmp_path, capsys, monkeypatch):
    there = tmp_path / "memory"
    with monkeypatch.context() as patch:
        stop_at(patch, 15)
        assert cli.main(["learn", str(folder), "--memory", str(there), "--read", str(texts), *TWO]) == 130
    before = (there / "learner.json").read_bytes()
    first, second, third = (name for name, _ in Intake([str(texts)]).documents())
    kept = {name: (texts / name).read_text() for name in (first, second, third)}
    (texts / first).write_text(kept[first].replace("7", "8"))
    assert "before document 2" in mistake(capsys, folder, "--memory", there, "--resume")
    (texts / first).write_text(kept[first])
    (texts / second).write_text("X" + kept[second])
    assert f"the beginning of '{second}'" in mistake(capsys, folder, "--memory", there, "--resume")
    assert (there / "learner.json").read_bytes() == before
    (texts / second).write_text(kept[second])
    (texts / third).write_text("Nobody has read this yet.")
    assert answer(capsys, folder, "--memory", there, "--resume")["finished"]


def test_a_memory_is_only_replaced_on_purpose(folder, texts, tmp_path, capsys):
    there, other = tmp_path / "memory", texts / "a.txt"
    arguments = [folder, "--memory", there, "--read", texts, *TWO]
    first = answer(capsys, *arguments)
    assert "add --resume" in mistake(capsys, *arguments)
    assert answer(capsys, *arguments, "--resume") == first
    assert "--more" in mistake(capsys, folder, "--memory", there, "--read", other, "--resume")
    for wanted in (["--levels", "fast=128:2e-3", "slow=512:1e-3"], ["--limit", 3], ["--replay", 3]):
        said = mistake(capsys, folder, "--memory", there, "--resume", *wanted)
        assert str(wanted[0]).removeprefix("--") in said
    more = answer(capsys, folder, "--memory", there, "--read", other, "--more", "--recall", "mixture")
    assert more["position"] > first["position"] > more["tokens"]
    assert read(there / "metrics.jsonl")[-1]["position"] == more["position"]
    assert answer(capsys, *arguments, "--restart") == first
    assert read(there / "metrics.jsonl")[-1]["position"] == first["position"]


def test_generate_uses_a_memory(folder, texts, tmp_path, capsys):
    there = tmp_path / "memory"
    answer(capsys, folder, "--memory", there, "--read", texts, "--levels", "fast=128:3e-2")
    greedy = ["generate", str(folder), "--prompt", "a 1", "--max-new-tokens", "8", "--temperature", "0", "--json"]

    def text(*rest):
        assert cli.main([*greedy, *map(str, rest)]) == 0
        return json.loads(capsys.readouterr().out)["text"]

    learner = Learner.load(there, *running_model(folder))
    assert text("--memory", there) == learner.generate("a 1", 8, 0)
    assert text("--memory", there, "--fresh") == learner.generate("a 1", 8, 0, fresh=True)
    assert len({text(), text("--memory", there)}) == 2
    assert cli.main([*greedy, "--fresh"]) == 2
    assert cli.main([*greedy, "--memory", str(tmp_path)]) == 2


def test_a_folder_of_transformers(texts, tmp_path, capsys):
    home, there = tmp_path / "llama", tmp_path / "memory"
    train_bpe([path.read_text() for path in texts.iterdir()], 300).save(tmp_path / "tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(home)
    assert "llama" in mistake(capsys, home, "--read", texts)
    tiny("llama", 300).save_pretrained(home)
    found = answer(capsys, home, "--memory", there, "--read", texts, *TWO)
    assert found["levels"][1]["updates"] == found["position"] // 128 > 5
    assert 0 < found["bits_per_byte"] < 20
    assert cli.main(["generate", str(home), "--memory", str(there), "--prompt", "a 1", "--json"]) == 0
    (home / "model.safetensors").write_bytes(b"")
    assert "safetensors" in mistake(capsys, home, "--memory", there)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "holds none; give --read"),
        (["--resume"], "holds none; give --read"),
        (["--restart", "--more", "--read", "x"], "exclude each other"),
        (["--read", "/no/such/text"], "'/no/such/text' is no file or folder"),
        (["--read", "EMPTY"], "there is no text in"),
        (["--read", "BYTES"], "is not UTF-8"),
        (["--read", "x", "--held-out", "-"], "-: standard input"),
        (["--read", "TEXT", "--held-out", "EMPTY"], "held_out: there is no text"),
        (["--read", "TEXT", "--levels", "fast"], "levels: 'fast' is no level"),
        (["--read", "TEXT", "--levels", "fast=8:1:gd:2"], "too many parts"),
        (["--read", "TEXT", "--levels", '{"nam": 1}'], "is no level"),
        (["--read", "TEXT", "--levels", "fast=8:1:adom"], "rule='adom'"),
        (["--read", "TEXT", "--levels", "fast=64", "slow=100"], "no multiple"),
        (["--read", "TEXT", "--limit", "0"], "limit=0"),
        (["--read", "TEXT", "--replay", "-1"], "replay: -1"),
        (["--read", "TEXT", "--recall", "some"], "recall: 'some'"),
        (["--read", "TEXT", "--save-every", "0"], "save_every: 0"),
        (["--read", "TEXT", "--device", "tpu"], "device: 'tpu'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence(folder, tmp_path, capsys, arguments, said):
    files = {"EMPTY": b"", "BYTES": b"\xff\xfe", "TEXT": b"some text"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    arguments = [str(tmp_path / one) if one in files else one for one in arguments]
    assert said in mistake(capsys, folder, "--memory", tmp_path / "memory", *arguments)


def test_a_folder_that_is_missing_or_no_model(tmp_path, capsys):
    assert "does not exist" in mistake(capsys, tmp_path / "nothing", "--read", "x")
    assert "config.json" in mistake(capsys, tmp_path, "--read", "x")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "learner.json").write_text("{")
    assert "learner.json" in mistake(capsys, tmp_path, "--resume")


def test_a_memory_of_another_program_is_gone_on_with(folder, texts, tmp_path, capsys):
    learner = Learner(*running_model(folder), [Level("only", 64)])
    learner.read("Read by hand. " * 10)
    learner.save(tmp_path / "memory")
    arguments = [folder, "--memory", tmp_path / "memory"]
    assert answer(capsys, *arguments)["position"] == 128
    assert "--more" in mistake(capsys, *arguments, "--read", texts, "--resume")
    assert answer(capsys, *arguments, "--read", texts, "--more")["position"] > 128


def test_levels_in_a_few_characters():
    assert levels() == list(LEVELS)
    assert levels(["fast=512:1e-3", "slow=4096:3e-4:gd", "last=8192"]) == [
        Level("fast", 512, 1e-3),
        Level("slow", 4096, 3e-4, "gd"),
        Level("last", 8192),
    ]
    assert levels(['[{"name": "a", "every": 8, "where": [0, 1]}]', "b=16"], limit=0.5) == [
        Level("a", 8, where=(0, 1), limit=0.5),
        Level("b", 16, limit=0.5),
    ]


def test_the_standard_levels_fit_together(folder):
    learner = Learner(*running_model(folder), LEVELS)
    assert [one["name"] for one in learner.report()] == [one.name for one in LEVELS]


def test_pieces_go_on_from_every_place(tmp_path):
    (tmp_path / "one.txt").write_text("ä" * 5000)
    (tmp_path / "two.txt").write_text("x" * 9000)
    intake = Intake([str(tmp_path / "one.txt"), str(tmp_path)])
    pieces = list(intake.pieces(Place()))
    assert "".join(piece.text for piece in pieces if not piece.end).count("ä") == 10_000
    assert sum(piece.end for piece in pieces) == 3
    assert pieces[-1].after.size == 2 * 10_000 + 9000
    for number, piece in enumerate(pieces):
        assert list(intake.pieces(piece.after)) == pieces[number + 1 :]
    shutil.copy(tmp_path / "one.txt", tmp_path / "two.txt")
    with pytest.raises(InputError, match="no longer"):
        list(intake.pieces(pieces[-1].after))
