"""Checkpoint folders: complete or absent, verified, exact."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from nestling.errors import InputError
from nestling.train import checkpoint
from nestling.train.config import TrainConfig
from nestling.train.optimizer import build


class Run:
    """A linear layer that learns to be zero, and its checkpoints in `out`."""

    def __init__(self, out, seed=0):
        torch.manual_seed(seed)
        self.out, self.model = out, nn.Linear(3, 3)
        self.optimizer = build(self.model, TrainConfig(learning_rate=0.1))

    def step(self):
        self.model(torch.rand(2, 3)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save_model(self, folder):
        safetensors.torch.save_model(self.model, str(folder / "model.safetensors"))
        (folder / "config.json").write_text("{}")

    def save(self, step, keep=2):
        return checkpoint.save(self.out, self.save_model, self.optimizer, {"step": step}, keep)

    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    run.step()
    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_continues_exactly(run):
    folder = run.save(1)
    assert checkpoint.verified(folder) == {"step": 1}
    run.step()
    twin = Run(run.out, seed=5)
    twin.step()
    checkpoint.load(folder, twin.model, twin.optimizer)
    twin.step()
    assert all(map(torch.equal, run.weights(), twin.weights()))


def test_no_file_of_a_checkpoint_is_a_pickle(run):
    assert {path.suffix for path in run.save(1).iterdir()} == {".json", ".safetensors"}


def test_the_newest_are_kept_in_order_of_their_steps(run):
    for step in (2, 9, 10):
        run.save(step)
    assert [folder.name for folder in checkpoint.found(run.out)] == ["checkpoint-9", "checkpoint-10"]
    assert names(run.out / "model") == ["config.json", "model.safetensors"]


def test_saving_a_step_again_changes_nothing(run):
    folder = run.save(1)
    before = (folder / "manifest.json").read_bytes()
    run.step()
    assert run.save(1) == folder
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "trainer.json"])
@pytest.mark.parametrize("damage", ["truncated", "tampered", "missing"])
def test_a_damaged_file_is_named(run, name, damage):
    path = run.save(1) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"" if damage == "truncated" else bytes([content[-1] ^ 1])))
    with pytest.raises(InputError, match="delete that folder") as caught:
        checkpoint.verified(path.parent)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"files": {"a": 1}}'])
def test_a_damaged_manifest_is_named(run, content):
    path = run.save(1) / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json is missing or damaged"):
        checkpoint.verified(path.parent)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")], ids=repr
)
def test_a_full_disk_leaves_the_old_checkpoint(run, monkeypatch, error):
    folder = run.save(1)
    model = (run.out / "model" / "model.safetensors").read_bytes()
    run.step()

    def full(tensors, path, metadata=None):
        Path(path).write_bytes(b"half a fi")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(InputError, match="No space left on device") as caught:
        run.save(2)
    assert f"{folder} is intact" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(run.out) == ["checkpoint-1", "model"]
    assert checkpoint.verified(folder) == {"step": 1}
    assert (run.out / "model" / "model.safetensors").read_bytes() == model


def test_a_full_disk_while_the_model_is_published_leaves_the_old_model(run, monkeypatch):
    run.save(1)
    model = (run.out / "model" / "model.safetensors").read_bytes()
    run.step()

    def full(source, target):
        target.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputError, match="checkpoint-2 is intact"):
        run.save(2)
    assert (run.out / "model" / "model.safetensors").read_bytes() == model
    assert names(run.out / "model") == ["config.json", "model.safetensors"]


def test_what_a_kill_left_half_written_is_swept_away(run):
    run.save(1)
    half = run.out / ".checkpoint-2.building"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert [folder.name for folder in checkpoint.found(run.out)] == ["checkpoint-1"]
    checkpoint.sweep(run.out)
    assert not half.exists()


def test_the_manifest_lists_every_other_file(run):
    folder = run.save(1)
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert sorted([*listed, "manifest.json"]) == names(folder)
