"""The learner is what its definition says: against the plain loop of `oracle`, in float64."""

import pytest
import torch

from continual.learners import NAMES, ids, make
from continual.oracle import Oracle

OTHERWISE = ("frozen", "replay", "protect", "mixture", "bfloat16")  # have a file of their own, or nothing to compare


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHERWISE])
def test_deviations_are_those_of_the_definition(name):
    learner, length = make(name, torch.float64), 53
    layers = {
        level.name: {layer.name: layer.turned for layer in own}
        for level, own in zip(learner.levels, learner.memory.layers.values(), strict=True)
    }
    factors = {
        level.level.name: {
            layer: [level.factors[layer, i].detach().clone() for i in range(1 + (level.level.rank is not None))]
            for layer in level.layers
        }
        for level in learner.memory.levels
    }
    size = learner.context.size
    assert (size is None) == (name == "hope")
    oracle = Oracle(learner.model, learner.levels, layers, factors, size)

    segments = []
    learner.read(ids(length), report=segments.append)
    oracle.run(ids(length))

    assert [segment.nats for segment in segments] == pytest.approx(oracle.losses, rel=1e-10)
    for level in learner.memory.levels:
        assert level.updates == length // level.level.every > 0
        for (layer, i), factor in level.factors.items():
            expected = oracle.factors[level.level.name][layer][i]
            scale = expected.abs().max().clamp(min=1e-12)
            assert ((factor - expected).abs().max() / scale).item() < 1e-7, (level.level.name, layer)
