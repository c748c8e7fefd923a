"""A stacked model starts as the original, bit for bit, and is given back as it was."""

import copy

import pytest
import torch
from torch import nn

from continual.tiny import NAMES, tiny, tokens
from nestling.continual.blocks import matching, mlp_blocks
from nestling.continual.level import Level
from nestling.continual.stacking import add_blocks, placed, remove_blocks, stack_levels, unstack, widths
from nestling.errors import InputError

FAST, MIDDLE, SLOW = Level("fast", every=4), Level("middle", every=8), Level("slow", every=16)
STACKED = ("llama", "gpt2", "opt", "gpt-neox", "gemma3", "transformer++", "rwkv-7", "hope")


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def everything(model):
    """What must be as before: tensors by name, flags, attributes and hooks of every module."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modules = {
        name: (type(module), module.training, sorted(vars(module)), list(module._modules), len(module._forward_hooks))
        for name, module in model.named_modules()
    }
    return tensors, flags, modules


def same(before, after):
    return before[1:] == after[1:] and all(torch.equal(value, after[0][name]) for name, value in before[0].items())


def of(model, *layers):
    return [name for layer in layers for name in mlp_blocks(model)[layer]]


def owned(levels):
    return [list(level.where) for level in levels]


def test_by_depth_the_slowest_is_nearest_the_input():
    model = tiny("llama", num_hidden_layers=5)
    found = placed(model, [FAST, SLOW, MIDDLE], "depth")
    assert [level.name for level in found] == ["fast", "slow", "middle"]
    assert owned(found) == [of(model, 3, 4), of(model, 0), of(model, 1, 2)]
    assert owned(placed(model, [SLOW])) == [matching(model)]


def test_shared_and_explicit_places():
    model = tiny("gpt2")
    assert owned(placed(model, [SLOW, FAST], "shared")) == [matching(model)] * 2
    own = Level("own", every=8, where="*.attn.c_proj")
    places = {"slow": [0], "fast": ["*.1.mlp.*", "*.2.mlp.c_fc"]}
    fast = [*of(model, 1), of(model, 2)[0]]
    found = owned(placed(model, [SLOW, own, FAST], places))
    assert found == [of(model, 0), matching(model, own.where), fast]
    assert owned(placed(model, [SLOW, own])) == [matching(model), found[1]]


@pytest.mark.parametrize(
    ("levels", "where", "words"),
    [
        ([Level(f"{i}", every=2**i) for i in range(4)], "depth", "4 levels can't share 3 layers by depth"),
        ([FAST, SLOW], "width", "where='width' is unknown: choose depth, shared"),
        ([FAST, SLOW], {"fast": None}, "where places fast, but .* are slow, fast: name exactly these"),
        ([FAST], {"fast": [7]}, "no decoder layer 7"),
        ([FAST, FAST], "depth", "'fast' occurs twice"),
        ([], "depth", "levels is empty"),
    ],
)
def test_places_that_do_not_fit(levels, where, words):
    with pytest.raises(InputError, match=words):
        placed(tiny("llama"), levels, where)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_extra_blocks_start_as_the_identity(name, dtype):
    model, ids = tiny(name).to(dtype), tokens(2, 12)
    before, logs = everything(model), logits(model, ids)
    names = add_blocks(model, {"slow": 8, "fast": 24})
    assert torch.equal(logits(model, ids), logs)
    assert mlp_blocks(model) == [[n for n in block if "extra" not in n] for block in mlp_blocks(model)]
    assert names["fast"] == matching(model, "*.extra.fast.*")
    assert len(names["slow"]) == 2 * len(mlp_blocks(model))
    with torch.no_grad():  # They do take part.
        model.get_submodule(names["slow"][-1]).weight.fill_(0.1)
    assert not torch.equal(logits(model, ids), logs)
    remove_blocks(model)
    assert same(before, everything(model))
    assert torch.equal(logits(model, ids), logs)


def test_an_extra_block_is_what_it_says():
    model = tiny("llama")
    names = add_blocks(model, {"slow": 8, "fast": 24})
    for name in (*names["slow"], *names["fast"]):
        nn.init.normal_(model.get_submodule(name).weight)
    layer, seen = model.get_submodule("model.layers.1"), {}
    layer.mlp.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], y=output))
    logits(model, tokens(1, 5))
    mlp = layer.mlp
    y = mlp.down_proj(mlp.act_fn(mlp.gate_proj(seen["x"])) * mlp.up_proj(seen["x"]))
    for block in (layer.extra.slow, layer.extra.fast):
        n = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        y = y + nn.functional.gelu(n @ block.up.weight.T) @ block.down.weight.T
    torch.testing.assert_close(seen["y"], y)


def test_extra_blocks_are_a_part_of_the_model():
    model, ids = tiny("gpt2"), tokens(1, 6)
    state = torch.random.get_rng_state()
    names = add_blocks(model, {"fast": 8}, seed=3)["fast"]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {f"{name}.weight" for name in names} <= model.state_dict().keys()
    again = tiny("gpt2")
    add_blocks(again, {"fast": 8}, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        model.get_submodule(names[-1]).weight.fill_(0.1)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, ids), logits(model, ids))
    remove_blocks(twin)
    assert torch.equal(logits(twin, ids), logits(tiny("gpt2"), ids))
    assert not torch.equal(logits(twin, ids), logits(model, ids))
    with pytest.raises(InputError, match=r"transformer.h.0 has an attribute 'extra'"):
        add_blocks(model, {"slow": 8})


@pytest.mark.parametrize(
    ("extra", "words"),
    [({"quick": 8}, "no level 'quick'"), ({"fast": 0}, "extra=0 of level 'fast'"), ({"a.b": 8}, "can't name a module")],
)
def test_extra_blocks_that_are_not_possible(extra, words):
    with pytest.raises(InputError, match=words):
        widths([FAST, Level("a.b", every=8)], extra)


def test_the_slowest_extra_block_comes_first():
    assert list(widths([FAST, SLOW], {"fast": 8, "slow": 16}).items()) == [("slow", 16), ("fast", 8)]
    assert widths([FAST, SLOW], 8) == {"fast": 8, "slow": 8}
    assert widths([FAST, SLOW], None) == {}


@pytest.mark.paper("Sec. 7.3, stacking")
@pytest.mark.parametrize("where", ["depth", "shared"])
@pytest.mark.parametrize("name", STACKED)
def test_stacked_it_is_the_original_and_unstacked_it_is_the_same(name, where):
    model, ids = tiny(name), tokens(1, 40)
    model.train()
    model.get_submodule(mlp_blocks(model)[0][0]).weight.requires_grad_(False)
    before, logs = everything(model), logits(model.eval(), ids)
    model.train()
    learner = stack_levels(model, [SLOW, FAST], where=where, extra={"fast": 8})
    assert owned(learner.levels)[1][-6:] == matching(model, "*.extra.*")
    assert torch.equal(logits(model, ids), logs)
    learner.read(ids[0])
    with learner.isolated():
        assert not torch.equal(learner.logits(ids[0]), logs[0])
    assert unstack(learner) is model
    assert same(before, everything(model))
    assert torch.equal(logits(model.eval(), ids), logs)
    with pytest.raises(InputError, match="was not stacked"):
        unstack(learner)


def test_without_a_step_the_model_stays_the_original():
    """Sec. 7.3: with a step size of zero the pre-trained blocks are used without adaptation."""
    model, ids = tiny("llama"), tokens(1, 40)
    logs = logits(model, ids)
    learner = stack_levels(model, [Level("slow", every=16, lr=0.0), Level("fast", every=4, lr=0.0)], extra=8)
    assert learner.read(ids[0]).updates == {"fast": 10, "slow": 2}
    assert torch.equal(logits(model, ids), logs)
    assert learner.memory.levels[0].distance == 0


def test_a_level_may_own_its_extra_blocks_only():
    model = tiny("opt")
    levels = [Level("slow", every=16), Level("fast", every=4, where=())]
    learner = stack_levels(model, levels, extra={"fast": 8})
    assert owned(learner.levels) == [matching(model), matching(model, "*.extra.fast.*")]
    assert unstack(learner) is model
    learner = stack_levels(model, [SLOW, FAST], where={"slow": None, "fast": ()}, extra=8)
    assert owned(learner.levels)[1] == matching(model, "*.extra.fast.*")
    unstack(learner)
    with pytest.raises(InputError, match="where"):
        stack_levels(model, levels)


def test_a_saved_memory_is_found_again_by_the_same_stacking(tmp_path):
    model, ids = tiny("llama"), tokens(1, 50)[0]
    before = everything(model)
    learner = stack_levels(model, [SLOW, FAST], extra=8, seed=2)
    learner.read(ids)
    learner.save(tmp_path)
    with learner.isolated():
        logs = learner.logits(ids)
    assert same(before, everything(unstack(learner)))
    stack_levels(model, [SLOW, FAST], extra=8, seed=2)
    again = type(learner).load(tmp_path, model)
    with again.isolated():
        assert torch.equal(again.logits(ids), logs)
    assert same(before, everything(unstack(again)))
    learner = stack_levels(model, [SLOW, FAST], extra=8, seed=3)
    with pytest.raises(InputError, match="other weights"):
        type(learner).load(tmp_path, model)


def test_a_stacking_that_fails_changes_nothing():
    model = tiny("llama").train()
    before = everything(model)
    for levels, options in (([FAST], {"nothing": 1}), ([FAST, Level("other", every=6)], {})):
        with pytest.raises((TypeError, InputError)):
            stack_levels(model, levels, extra=8, **options)
        assert same(before, everything(model))
