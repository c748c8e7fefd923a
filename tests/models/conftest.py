"""A tiny model of every listed kind, with weights large enough that its parts matter."""

import pytest
import torch

import nestling.models
from tables import MODELS, TINY


def make(name, **values):
    """The tiny version of model `name`, always with the same weights."""
    torch.manual_seed(0)
    return nestling.models.create(name, **TINY | MODELS[name] | {"initializer_range": 0.1} | values).eval()


def tokens(batch, length, seed=1):
    """Random tokens (batch, length); never 0, which ends a text."""
    return torch.randint(1, TINY["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list(MODELS))
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return make(name)


def left_padded(ids, lengths):
    """The last lengths[b] tokens of every row of `ids`, and the mask that says so."""
    mask = (torch.arange(ids.shape[1]) >= ids.shape[1] - torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, 0), mask
