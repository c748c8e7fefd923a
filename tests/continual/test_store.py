"""A memory on disk is the old one or the new one, and nothing that is damaged, edited or foreign is taken for one."""

import copy
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from continual.learners import ids, make, model, read
from continual.saving import learners
from exact import same
from nestling.continual import store
from nestling.continual.learner import Learner
from nestling.errors import InputError

KILLS = 50


def test_killed_at_any_moment_the_old_or_the_new_memory_is_there(tmp_path):
    states = [learner.state() for learner in learners()]
    source, seen, left = random.Random(0), [0, 0], 0
    folder = tmp_path / "memory"
    run = _Saving(folder)
    for _ in range(KILLS):
        run.go()
        time.sleep(source.uniform(0, 6 * run.seconds))
        run.kill()
        loaded = Learner.load(folder, model("three")).state()
        which = [same(loaded, state) for state in states]
        assert sum(which) == 1
        seen[which.index(True)] += 1
        left += len(list(folder.iterdir())) > 2
    run.end()
    assert min(seen) > 0
    assert left > 0  # some were killed in the middle
    read(make("three"), [ids(20)]).save(folder)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]


class _Saving:
    """A process that forks to save in a loop, for starting one anew takes seconds; its forks are what is killed."""

    def __init__(self, folder):
        path = Path(__file__).with_name("saving.py")
        self.process = subprocess.Popen(
            [sys.executable, path, folder, path.parents[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.seconds = float(self.process.stdout.readline())

    def _say(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def go(self):
        assert self._say("go") == "going\n"

    def kill(self):
        assert self._say("kill") == f"killed {signal.SIGKILL.value}\n"

    def end(self):
        self.process.communicate("end\n", timeout=20)


@pytest.fixture
def saved(tmp_path):
    learner = read(make("three"), [ids(45)])
    learner.save(tmp_path / "memory")
    return tmp_path / "memory"


def edited(folder, change):
    about = json.loads((folder / "learner.json").read_text())
    change(about)
    (folder / "learner.json").write_text(json.dumps(about))


def refused(folder, match, name="three"):
    with pytest.raises(InputError, match=match) as error:
        Learner.load(folder, model(name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_truncated_files_are_refused(saved, keep):
    [tensors] = saved.glob("*.safetensors")
    for path, match in ((tensors, "damaged|changed"), (saved / "learner.json", "holds no readable learner.json")):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
        if keep == -1 and path.suffix == ".json":
            path.write_bytes(whole[:-3])
        refused(saved, match)
        path.write_bytes(whole)
    Learner.load(saved, model("three"))


def test_one_bit_is_noticed_wherever_it_is(saved):
    source = random.Random(0)
    for path in saved.iterdir():
        whole = path.read_bytes()
        for _ in range(12):
            at = source.randrange(len(whole) - 1)
            changed = bytearray(whole)
            changed[at] ^= 1 << source.randrange(3)
            path.write_bytes(changed)
            refused(saved, "damaged|changed|readable|format")
        path.write_bytes(whole)
    Learner.load(saved, model("three"))


def test_edited_and_foreign_files_are_refused(saved, tmp_path):
    copy = tmp_path / "copy"
    for change in (
        lambda about: about["levels"][0].update(lr=7.0),
        lambda about: about["state"].pop("pending"),
        lambda about: about.update(tensors="../other.safetensors"),
        lambda about: about.pop("checksum"),
        lambda about: about.pop("version"),
        lambda about: about.update(version=99),
    ):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(saved, copy)
        edited(copy, change)
        refused(copy, "changed|readable|format 99")
    for content in ("[]", "7", "null", "\udc80", "{}", '{"version": 1}'):
        (copy / "learner.json").write_text(content, errors="surrogateescape")
        refused(copy, "holds no readable learner.json")
    [tensors] = saved.glob("*.safetensors")
    values = load_file(tensors)
    save_file(values | {"memory/extra": torch.zeros(2)}, tensors)
    refused(saved, "was changed")
    save_file(values, tensors)
    Learner.load(saved, model("three"))
    tensors.unlink()
    refused(saved, "missing or damaged")
    refused(tmp_path / "none", "holds no readable learner.json")


def test_a_memory_belongs_to_its_model(saved):
    refused(saved, "belongs to a model with other weights", "llama")
    own = copy.deepcopy(model("three"))
    Learner.load(saved, own)
    weight = next(own.parameters())
    before = weight.detach().clone()
    for values, known in ((before + 1, False), (before, True)):
        with torch.no_grad():
            weight.copy_(values)
        if known:
            Learner.load(saved, own)
        else:
            with pytest.raises(InputError, match="belongs to a model with other weights"):
                Learner.load(saved, own)


def test_it_is_saved_while_isolated_as_at_any_time(tmp_path):
    learner = read(make("three"), [ids(45)])
    with learner.isolated():
        learner.save(tmp_path)
        twin = learner.branch()
    assert same(Learner.load(tmp_path, learner.model).state(), learner.state())
    assert twin.report() == learner.report()


@pytest.mark.parametrize("place", ["save_file", "write_text", "replace"])
def test_a_full_disk_leaves_the_old_memory(saved, monkeypatch, place):
    before = Learner.load(saved, model("three")).state()
    other = read(make("three"), [ids(70)])

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            *{"save_file": (store, "save_file"), "write_text": (Path, "write_text")}.get(place, (store.os, "replace")),
            full,
        )
        with pytest.raises(InputError, match=r"can't be written \(.*No space left on device\); an earlier memory"):
            other.save(saved)
    assert same(Learner.load(saved, model("three")).state(), before)
    assert not [path for path in saved.iterdir() if path.name.startswith(".")]
    other.save(saved)
    assert same(Learner.load(saved, model("three")).state(), other.state())
    assert len(list(saved.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        make("three").save(tmp_path / "file" / "memory")
