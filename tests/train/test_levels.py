"""Training models whose levels learn while they read."""

import dataclasses
import json

import pytest
import torch

from nestling import Learner, models
from nestling.continual.native import levels_of
from nestling.continual.training import segmented
from nestling.data import batch, open_store
from nestling.errors import InputError
from nestling.train.loop import train
from nestling.train.optimizer import build
from train.conftest import FIELDS

LEVELS = [{"signal": "task", "chunk_size": 4, "rule": "gd", "learner": {"lr": 0.5}}, {}]


@pytest.fixture
def config(config):
    return dataclasses.replace(config, model="hope-attention", fields={**FIELDS, "levels": LEVELS}, steps=3)


def test_a_step_is_that_of_the_segmented_loss(config, tmp_path):
    """By hand from the run's own batch; the log's losses are those of reading with levels."""
    train(dataclasses.replace(config, steps=1), tmp_path / "run", progress=False)
    store = open_store(config.data)
    torch.manual_seed(config.seed)
    model = models.create(config.model, config.size, vocab_size=store.tokenizer.vocab_size, **config.fields).train()
    optimizer = build(model, config)
    for group in optimizer.param_groups:
        group["lr"] /= config.warmup_steps
    loss = segmented(model, batch(store.train, config.seed, 0, 0, 4, 16), levels_of(model))
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    first, last = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-6)
    trained = models.load(tmp_path / "run/model")
    for ours, theirs in zip(model.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    static = trained(torch.zeros(1, 2, dtype=torch.int64))
    assert last["valid_loss"] > 0
    assert static.logits.isfinite().all()


@pytest.mark.parametrize("change", [{"accumulate": 2}, {"gradient_checkpointing": True}])
def test_pieces_and_recomputation_change_nothing(config, tmp_path, change):
    plain = train(config, tmp_path / "plain", progress=False)
    other = train(dataclasses.replace(config, **change), tmp_path / "other", progress=False)
    assert other["valid_loss"] == pytest.approx(plain["valid_loss"], rel=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one_and_what_it_made_reads_on(config, tmp_path):
    """A batch's memories begin and end with it, so a checkpoint needs none of them."""
    config = dataclasses.replace(config, checkpoint_every=1)
    whole = train(config, tmp_path / "whole", progress=False)
    train(dataclasses.replace(config, max_seconds=1e-6), tmp_path / "run", progress=False)
    resumed = train(config, tmp_path / "run", resume=True, progress=False)
    assert resumed["valid_loss"] == whole["valid_loss"]
    learner = Learner(models.load(tmp_path / "run/model"), open_store(config.data).tokenizer)
    assert learner.read("the cat sat on the mat").updates == {"CMS 4": 5}


def test_bfloat16_is_for_the_model_only(config, tmp_path):
    found = train(dataclasses.replace(config, precision="bfloat16"), tmp_path / "run", progress=False)
    exact = train(config, tmp_path / "exact", progress=False)
    assert found["valid_loss"] == pytest.approx(exact["valid_loss"], rel=2e-2)


@pytest.mark.parametrize(
    ("change", "sentence"), [({"compile": True}, "compile: true"), ({"optimizer": "dgd"}, "optimizer: 'dgd' reads")]
)
def test_what_does_not_go_together(config, tmp_path, change, sentence):
    with pytest.raises(InputError, match=sentence):
        train(dataclasses.replace(config, **change), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
