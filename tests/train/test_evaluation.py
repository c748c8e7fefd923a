"""Evaluation: fixed windows, exact means, the model's mode put back."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nestling.errors import InputError
from nestling.train.evaluation import evaluate, spread_windows


class Bigram(nn.Module):
    """Logits that depend on the current token only."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 8)
        self.modes = []

    def forward(self, ids, use_cache=None):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return SimpleNamespace(logits=self.table(ids))


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 8, 100).astype(np.uint8)


def test_windows_are_spread_over_everything_without_overlap(tokens):
    found = spread_windows(np.arange(100, dtype=np.uint16), 10, 4)
    assert found[:, 0].tolist() == [0, 30, 60, 90]
    assert found.dtype == torch.int64
    assert len(spread_windows(tokens, 33, 50)) == 3
    assert spread_windows(tokens, 100, 5).shape == (1, 100)


def test_too_few_tokens_are_refused(tokens):
    with pytest.raises(InputError, match="sequence_length: 101"):
        spread_windows(tokens, 101, 1)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_mean_is_exact_whatever_the_batch(tokens, batch_size):
    torch.manual_seed(0)
    model = Bigram()
    found = evaluate(model, tokens, 16, 5, batch_size)
    ids = spread_windows(tokens, 16, 5)
    losses = -model.table(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert found.loss == pytest.approx(losses.mean().item(), abs=1e-6)
    assert torch.allclose(found.by_position, losses.double().mean(0), atol=1e-6)
    assert found.windows == 5
    assert found.bits_per_byte(2.0) == pytest.approx(found.loss / math.log(2) / 2)


def test_evaluation_leaves_the_mode_and_needs_no_gradient(tokens):
    model = Bigram().train()
    evaluate(model, tokens, 16, 2, 1)
    assert model.training
    assert model.modes == [(False, False)] * 2
