"""The loop: what a run leaves behind, accumulation, resuming bit for bit, and stopping before harm is done."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from nestling import models
from nestling.data import open_store
from nestling.errors import InputError
from nestling.metrics import read
from nestling.train import loop
from nestling.train import text as text_module
from nestling.train.checkpoint import found
from nestling.train.config import OPTIMIZERS, TrainConfig, learning_rate
from nestling.train.evaluation import evaluate
from nestling.train.loop import TrainingDiverged, train

TIMES = ("seconds", "tokens_per_second")


def lines(out):
    """The metrics without what a clock says."""
    return [{key: v for key, v in line.items() if key not in TIMES} for line in read(out / "metrics.jsonl")]


def weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


def moments(out):
    return (found(out)[-1] / "optimizer.safetensors").read_bytes()


def interrupted(monkeypatch, config, out, n):
    """Train until Ctrl-C in the n-th update."""
    update = loop._update

    def until(run):
        if run.step + 1 == n:
            raise KeyboardInterrupt
        return update(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update", until)
        with pytest.raises(KeyboardInterrupt):
            train(config, out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    """An uninterrupted run (see the config fixture) that several tests compare with."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def reference(whole, config):
    if not whole.exists():
        train(config, whole)
    return whole


def test_a_run_leaves_config_metrics_checkpoints_and_a_model(reference, config):
    assert sorted(p.name for p in reference.iterdir()) == [
        "checkpoint-6",
        "checkpoint-8",
        "config.json",
        "metrics.jsonl",
        "model",
    ]
    resolved = json.loads((reference / "config.json").read_text())
    assert resolved["train"]["steps"] == 8
    assert resolved["model"]["hidden_size"] == 16
    assert resolved["machine"]["torch"] == torch.__version__
    steps = [line for line in read(reference / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert set(steps[0]) == {"step", "tokens", "loss", "lr", "grad_norm", *TIMES}
    assert [line["lr"] for line in steps] == [learning_rate(config, i) for i in range(8)]
    assert [line["tokens"] for line in steps] == [64 * i for i in range(1, 9)]
    evaluations = [line for line in read(reference / "metrics.jsonl") if "valid_loss" in line]
    assert [line["step"] for line in evaluations] == [4, 8]


def test_the_model_left_behind_has_the_loss_that_was_logged(reference, config):
    model = models.load(reference / "model")
    store = open_store(config.data)
    found = evaluate(model, store.valid, config.sequence_length, config.evaluate_windows, 4)
    last = read(reference / "metrics.jsonl")[-1]
    assert found.loss == pytest.approx(last["valid_loss"], abs=1e-6)
    assert found.bits_per_byte(store.bytes_per_token("valid")) == pytest.approx(last["valid_bpb"], abs=1e-6)


def test_training_learns(config, tmp_path):
    longer = dataclasses.replace(config, steps=150, learning_rate=0.02, checkpoint_every=1000, evaluate_every=1000)
    summary = train(longer, tmp_path / "run")
    assert summary["finished"]
    assert summary["valid_loss"] < 2.6


def test_the_same_seed_gives_the_same_run_and_another_seed_another(reference, config, tmp_path):
    train(config, tmp_path / "same")
    train(dataclasses.replace(config, seed=1), tmp_path / "other")
    assert lines(tmp_path / "same") == lines(reference)
    assert weights(tmp_path / "same") == weights(reference)
    assert lines(tmp_path / "other") != lines(reference)


def test_accumulation_equals_the_whole_batch(reference, config, tmp_path):
    train(dataclasses.replace(config, accumulate=4), tmp_path / "run")
    for ours, theirs in zip(lines(tmp_path / "run"), lines(reference), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_bfloat16_and_checkpointing_stay_close(reference, config, tmp_path):
    train(dataclasses.replace(config, gradient_checkpointing=True), tmp_path / "recomputed")
    for ours, theirs in zip(lines(tmp_path / "recomputed"), lines(reference), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    train(dataclasses.replace(config, precision="bfloat16"), tmp_path / "half")
    assert lines(tmp_path / "half")[-1]["valid_loss"] == pytest.approx(lines(reference)[-1]["valid_loss"], rel=0.02)
    tensors = safetensors.torch.load_file(tmp_path / "half" / "model" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("step", [1, 3, 6, 8])
def test_an_interrupted_run_continues_bit_for_bit(reference, config, tmp_path, monkeypatch, step):
    out = tmp_path / "run"
    interrupted(monkeypatch, config, out, step)
    train(config, out, resume=True)
    assert lines(out) == lines(reference)
    assert weights(out) == weights(reference)
    assert moments(out) == moments(reference)


@pytest.mark.parametrize("optimizer", ["dgd", "dgd-corrected", "ggd"])
def test_layers_inputs_accumulate_recompute_and_resume(config, tmp_path, monkeypatch, optimizer):
    """What is seen of a layer's inputs is the step's, in however many pieces it comes and wherever a run resumes."""
    config = dataclasses.replace(config, optimizer=optimizer)
    whole = train(config, tmp_path / "whole")
    assert whole["valid_loss"] < read(tmp_path / "whole" / "metrics.jsonl")[0]["loss"]
    train(dataclasses.replace(config, accumulate=2, gradient_checkpointing=True), tmp_path / "pieces")
    for ours, theirs in zip(lines(tmp_path / "pieces"), lines(tmp_path / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    interrupted(monkeypatch, config, tmp_path / "again", 5)
    train(config, tmp_path / "again", resume=True)
    assert lines(tmp_path / "again") == lines(tmp_path / "whole")
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert moments(tmp_path / "again") == moments(tmp_path / "whole")


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "m3"])
def test_an_interrupted_run_with_slow_blocks_continues_bit_for_bit(config, tmp_path, monkeypatch, optimizer):
    """Of the steps 4, 8 and 12 that period 4 is due at, 8 and 12 follow a checkpoint with waiting gradients."""
    fields = config.fields | {"levels": [{"period": 4}, {}]}
    config = dataclasses.replace(config, model="hope-attention", fields=fields, optimizer=optimizer, steps=13)
    out, whole = tmp_path / "run", tmp_path / "whole"
    train(config, whole)
    interrupted(monkeypatch, config, out, 8)
    waiting = safetensors.torch.load_file(out / "checkpoint-6" / "optimizer.safetensors")
    assert sorted(key for key in waiting if key.endswith("/accumulated")) == [
        f"model.layers.0.channel.blocks.0.{name}.weight/accumulated" for name in ("gate", "output", "up")
    ]
    assert not train(dataclasses.replace(config, max_seconds=1e-9), out, resume=True)["finished"]
    train(config, out, resume=True)
    assert lines(out) == lines(whole)
    assert weights(out) == weights(whole)
    assert moments(out) == moments(whole)


def test_the_run_says_what_it_used(config, tmp_path):
    train(dataclasses.replace(config, optimizer="muon", steps=1), tmp_path / "run")
    resolved = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert (resolved["optimizer"], resolved["learning_rate"]) == ("muon", OPTIMIZERS["muon"][1])
    with pytest.raises(InputError, match="another optimizer"):
        train(
            dataclasses.replace(config, optimizer="m3", learning_rate=resolved["learning_rate"], steps=1),
            tmp_path / "run",
            True,
        )


def test_a_run_killed_in_the_middle_continues_bit_for_bit(config, tmp_path):
    config = dataclasses.replace(config, steps=300, checkpoint_every=20, evaluate_every=30)
    out = tmp_path / "killed"
    script = (
        "import json, sys; from nestling.train.config import from_dict; from nestling.train.loop import train; "
        "train(from_dict(json.loads(sys.argv[1])), sys.argv[2])"
    )
    arguments = [sys.executable, "-c", script, json.dumps(dataclasses.asdict(config)), str(out)]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        wait_for_step(out / "metrics.jsonl", 45, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = read(out / "metrics.jsonl")[-1]["step"]
    assert 45 <= reached < 300, "killed too late to show anything"
    train(config, out, resume=True)
    train(config, tmp_path / "whole")
    assert lines(out) == lines(tmp_path / "whole")
    assert weights(out) == weights(tmp_path / "whole")
    assert moments(out) == moments(tmp_path / "whole")


def wait_for_step(path, step, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        if path.exists() and any(line["step"] >= step for line in read(path)):
            return
        time.sleep(0.002)
    raise AssertionError("the run did not get far enough")


def test_the_time_limit_stops_with_a_checkpoint_and_resumes(reference, config, tmp_path):
    out = tmp_path / "run"
    summary = train(dataclasses.replace(config, max_seconds=1e-9), out)
    assert not summary["finished"]
    assert [folder.name for folder in found(out)] == ["checkpoint-0", "checkpoint-1"]
    assert train(config, out, resume=True)["finished"]
    assert lines(out) == lines(reference)
    assert weights(out) == weights(reference)


def test_resuming_a_finished_run_changes_nothing(config, tmp_path):
    out = tmp_path / "run"
    first = train(config, out)
    before = weights(out), read(out / "metrics.jsonl")
    assert train(config, out, resume=True) == first
    assert (weights(out), read(out / "metrics.jsonl")) == before


def test_resume_without_the_folder_starts(config, tmp_path):
    assert train(dataclasses.replace(config, steps=1), tmp_path / "new", resume=True)["finished"]


def test_resume_without_a_checkpoint_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        train(config, tmp_path, resume=True)


def test_a_folder_in_use_is_refused(config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="--resume"):
        train(config, tmp_path)
    with pytest.raises(InputError, match="is a file"):
        train(config, tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "hope"}, "model"),
        ({"fields": {}, "seed": 9}, "fields, seed"),
        ({"data": "cpp"}, "data"),
        ({"batch_size": 8, "sequence_length": 32}, "batch_size, sequence_length"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_configuration_is_refused_by_field(reference, config, change, named):
    with pytest.raises(InputError, match=f"another {named};"):
        train(dataclasses.replace(config, **change), reference, resume=True)


def test_text_that_changed_since_is_refused(config, tmp_path, text):
    copy = tmp_path / "text.txt"
    copy.write_text(text.read_text())
    config = dataclasses.replace(config, data=str(copy))
    train(dataclasses.replace(config, max_seconds=1e-9), tmp_path / "run")
    copy.write_text(text.read_text() + "and more")
    with pytest.raises(InputError, match="no longer what"):
        train(config, tmp_path / "run", resume=True)


def poisoned(monkeypatch, step, where):
    """Make the loss or the gradient of `step` (from 1) NaN."""
    gradient = loop._gradient

    def bad(run):
        if run.step + 1 == step and where == "loss":
            with torch.no_grad():
                next(run.model.parameters())[0] = float("nan")
        loss, norm = gradient(run)
        return (loss, float("inf")) if run.step + 1 == step and where == "gradient" else (loss, norm)

    monkeypatch.setattr(loop, "_gradient", bad)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_before_the_step(config, tmp_path, monkeypatch, where):
    out = tmp_path / "run"
    poisoned(monkeypatch, 5, where)
    with pytest.raises(TrainingDiverged, match=f"at step 5 the {where}") as caught:
        train(config, out)
    assert str(out / "checkpoint-3") in str(caught.value)
    assert str(out / "model") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [line["step"] for line in read(out / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4]
    good = safetensors.torch.load_file(out / "model" / "model.safetensors")
    assert all(t.isfinite().all() for t in good.values())


def test_a_full_disk_stops_with_a_sentence_and_the_run_resumes(reference, config, tmp_path, monkeypatch):
    out = tmp_path / "run"
    save_file = safetensors.torch.save_file

    def full(tensors, path, metadata=None):
        if "checkpoint-6" in str(path):
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(InputError, match="checkpoint-3 is intact"):
            train(config, out)
    train(config, out, resume=True)
    assert lines(out) == lines(reference)
    assert weights(out) == weights(reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence_length": 1}, "^sequence_length: 1"),
        ({"sequence_length": 20_000}, "validation split"),
        ({"sequence_length": 10**6}, "^sequence_length: 1000000"),
        ({"data": "/no/such/text"}, "^data: '/no/such/text'"),
        ({"tokenizer": "bpe:x"}, "^tokenizer: 'bpe:x'"),
        ({"tokenizer": "/no/such/tokenizer.json"}, "^tokenizer: "),
        ({"fields": {"vocab_size": 100}}, "^vocab_size: 100"),
        ({"fields": {"no_such_field": 1}}, "no_such_field"),
        ({"fields": {"hidden_size": 30, "num_attention_heads": 4}}, "not divisible"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"size": "no-such-size"}, "no-such-size"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence_and_leaves_no_folder(config, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        train(dataclasses.replace(config, **change), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_cuda_where_there_is_none_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device: 'cuda'"):
        train(dataclasses.replace(config, device="cuda"), tmp_path / "run")


def test_a_learnt_vocabulary_is_kept_for_resuming(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, tokenizer="bpe:300")
    out = tmp_path / "run"
    train(dataclasses.replace(config, max_seconds=1e-9), out)
    assert json.loads((out / "model" / "config.json").read_text())["vocab_size"] >= 257
    monkeypatch.setattr(text_module, "train_bpe", None)
    assert train(config, out, resume=True)["finished"]


def test_the_bar_shows_loss_and_speed_on_stderr(config: TrainConfig, tmp_path: Path, capsys):
    train(config, tmp_path / "run", progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "loss=" in captured.err
    assert "tok/s" in captured.err
    train(config, tmp_path / "quiet")
    assert "tok/s" not in capsys.readouterr().err
