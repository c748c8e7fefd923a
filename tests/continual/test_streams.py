"""Several streams in one batch: each as if it were alone, and their outer gradient the sum of the single ones."""

import pytest
import torch

from continual.learners import VOCABULARY, make, model
from exact import same
from nestling.continual.memory import StreamMemory
from nestling.continual.segment import learn
from nestling.continual.weights import owned
from nestling.errors import InputError

STREAMS, SEGMENTS = 3, 5
BATCHED = ("three", "disjoint", "low-rank", "dgd", "surprise", "muon", "hope", "hope-attention", "llama", "gpt2-dgd")


def memories(name, count):
    levels = make(name).levels
    layers = owned(model(name, torch.float64), levels)
    return [StreamMemory(levels, layers) for _ in range(count)], {o.name: o for own in layers.values() for o in own}


def run(name, rows, stream_ids, outer=(), **settings):
    """Read segment by segment, and what was learnt in each; every stream's memory and the losses (S, segments)."""
    kept, layers = memories(name, rows)
    segment, cache, losses = kept[0].levels[-1].level.every, None, []
    for part in stream_ids.split(segment, 1):
        targets = part.roll(-1, 1)
        done = learn(model(name, torch.float64), layers, kept, part, targets, cache, outer=outer, **settings)
        assert done.finite == [True] * rows
        cache = done.cache.detach() if hasattr(done.cache, "detach") else _cut(done.cache)
        losses.append(done.losses)
        for memory in kept:
            list(memory.advance(segment))
    return kept, torch.stack(losses, 1)


def _cut(cache):
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
    return cache


def streams(segment):
    source = torch.Generator().manual_seed(3)
    return torch.randint(1, VOCABULARY, (STREAMS, SEGMENTS * segment), generator=source)


@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_of_streams_is_each_alone(name):
    given = streams(4)
    together, losses = run(name, STREAMS, given)
    for row, memory in enumerate(together):
        [alone], expected = run(name, 1, given[row : row + 1])
        torch.testing.assert_close(losses[row : row + 1], expected, rtol=1e-9, atol=1e-9)
        for mine, other in zip(memory.levels, alone.levels, strict=True):
            assert mine.updates == other.updates > 0
            for key, factor in mine.factors.items():
                assert factor.abs().max() > 0
                torch.testing.assert_close(factor, other.factors[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["three", "low-rank", "hope", "gpt2-dgd"])
def test_outer_gradients_of_a_batch_are_the_sum_of_the_single_ones(name):
    given, own = streams(4)[:, :8], model(name, torch.float64)
    outer = [parameter for parameter in own.parameters() if parameter.requires_grad]

    def gradients(rows, part):
        run(name, rows, part, outer)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in outer]
        for parameter in outer:
            parameter.grad = None
        return found

    whole = gradients(STREAMS, given)
    single = [gradients(1, row[None]) for row in given]
    assert max(gradient.abs().max() for gradient in whole) > 1e-3
    for gradient, parts in zip(whole, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(gradient, sum(parts), rtol=1e-9, atol=1e-9)


def test_the_outer_gradient_without_deviations_is_that_of_the_loss():
    given, own = streams(4)[:1, :4], model("three", torch.float64)
    outer = list(own.parameters())
    run("three", 1, given, outer)
    logits = own(given).logits
    loss = torch.nn.functional.cross_entropy(logits[0], given[0].roll(-1), reduction="sum")
    for parameter, expected in zip(outer, torch.autograd.grad(loss, outer), strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-9)
        parameter.grad = None


def test_one_memory_may_read_a_batch_whose_losses_add_up():
    given = streams(4)
    own = model("three", torch.float64)
    [one], layers = memories("three", 1)
    learn(own, layers, [one], given, given.roll(-1, 1))
    [other], _ = memories("three", 1)
    for row in given:
        learn(own, layers, [other], row[None], row.roll(-1)[None])
    for mine, yours in zip(one.levels, other.levels, strict=True):
        assert mine.tokens == yours.tokens == given.numel()
        for key, total in mine.sums.items():
            torch.testing.assert_close(total, yours.sums[key], rtol=1e-9, atol=1e-9)


def test_left_out_targets_and_scale_count_as_they_say():
    given, own = streams(4)[:1], model("three", torch.float64)
    [whole], layers = memories("three", 1)
    targets = given.roll(-1, 1)
    targets[:, 10:] = -1
    learn(own, layers, [whole], given, targets, scale=0.5)
    [part], _ = memories("three", 1)
    learn(own, layers, [part], given[:, :10], targets[:, :10])
    for mine, yours in zip(whole.levels, part.levels, strict=True):
        assert (mine.tokens, yours.tokens) == (5, 10)
        for key, total in mine.sums.items():
            torch.testing.assert_close(total, yours.sums[key] / 2, rtol=1e-9, atol=1e-9)


def test_a_stream_that_is_not_finite_leaves_its_own_memory_and_no_other():
    given, own = streams(4), model("three", torch.float64)
    kept, layers = memories("three", STREAMS)
    before = kept[1].state()

    def poison(module, args, output):
        output.logits = output.logits * torch.tensor([1.0, float("nan"), 1.0]).double()[:, None, None]
        return output

    handle = own.register_forward_hook(poison)
    done = learn(own, layers, kept, given, given.roll(-1, 1))
    handle.remove()
    assert done.finite == [True, False, True]
    assert same(kept[1].state(), before)
    assert all(sums.isfinite().all() for row in (0, 2) for level in kept[row].levels for sums in level.sums.values())
    assert kept[0].levels[0].tokens == given.shape[1]


def test_a_layer_in_which_streams_cannot_be_told_apart_is_refused():
    given, own = streams(4), model("three", torch.float64)
    kept, layers = memories("three", STREAMS)
    module = own.get_submodule(next(iter(layers)))
    handle = module.register_forward_pre_hook(lambda m, args: (args[0].flatten(0, 1),))
    with pytest.raises(InputError, match="3 streams can't be told apart"):
        learn(own, layers, kept, given, given)
    handle.remove()
    assert kept[0].levels[0].tokens == 0
