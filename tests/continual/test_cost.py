"""The cost stated before a learner starts is what it then holds."""

import pytest
import torch

from continual.tiny import tiny, tokens
from nestling.continual.blocks import matching
from nestling.continual.cost import cost
from nestling.continual.level import Level
from nestling.continual.stacking import stack_levels
from nestling.errors import InputError

RULES = ("gd", "momentum", "adamw", "delta", "muon", "m3", "dgd")


def test_by_hand():
    model = tiny("llama")
    slow, fast = cost(model, [Level("slow", every=16), Level("fast", every=4, rule="momentum", rank=2)], "depth")
    one = 3 * 32 * 64
    assert slow == {
        "level": "slow",
        "every": 16,
        "rule": "adamw",
        "rank": "full",
        "matrices": 3,
        "parameters": one,
        "deviation": 4 * one,
        "state": 8 * one,
        "gradient": 4 * one,
        "bytes": 16 * one,
    }
    factors = 6 * 2 * (32 + 64)
    assert (fast["parameters"], fast["deviation"], fast["state"]) == (2 * one, 4 * factors, 4 * factors)
    assert (fast["gradient"], fast["bytes"]) == (0, 8 * factors)


def test_states_of_the_rules():
    """In float32 numbers a parameter; m3 keeps four and one in bfloat16."""
    model = tiny("gpt2")
    rows = [cost(model, [Level("one", every=4, rule=rule)])[0] for rule in RULES]
    assert [row["state"] / row["deviation"] for row in rows] == [0, 1, 2, 1, 1, 4.5, 0]
    adam = cost(model, [Level("one", every=4, options={"amsgrad": True})])[0]
    assert adam["state"] == 3 * adam["deviation"]


def test_dgd_gathers_the_inputs_too():
    model = tiny("gpt2")
    row, _ = cost(model, [Level("slow", every=8, rule="dgd"), Level("fast", every=4)], {"slow": [0], "fast": [1]})
    assert row["gradient"] == 4 * (2 * 32 * 128 + 32**2 + 128**2)


def test_extra_blocks_are_counted_and_nothing_is_touched():
    model = tiny("opt")
    levels = [Level("slow", every=16), Level("fast", every=4)]
    plain, with_extra = (cost(model, levels, "shared", extra) for extra in (None, {"fast": 8}))
    assert with_extra[0] == plain[0]
    assert with_extra[1]["parameters"] == plain[1]["parameters"] + 3 * 2 * 8 * 32
    assert with_extra[1]["matrices"] == plain[1]["matrices"] + 6
    assert "extra" not in dict(model.named_modules())


def test_a_large_model_is_only_described():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, dtype="bfloat16"))
    rows = cost(model, [Level("slow", every=4096, rank=8), Level("fast", every=512)], "depth")
    assert [row["deviation"] for row in rows] == [4 * 8 * 3 * (4096 + 11008), 4 * 3 * 4096 * 11008]
    head, slow, fast, total = str(rows).splitlines()
    assert " ".join(head.split()) == "level every rule rank matrices parameters deviation state gradient bytes"
    assert fast.split()[:8] == ["fast", "512", "adamw", "full", "3", "135,266,304", "516", "MiB"]
    assert slow.startswith("slow   4,096")
    assert total.startswith("sum")
    with pytest.raises(InputError, match="no level 'x'"):
        cost(model, [Level("slow", every=4)], extra={"x": 3})


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_is_what_the_learner_holds(name, rule, rank):
    if rule == "dgd" and rank:
        return
    model = tiny(name)
    levels = [Level("slow", every=16, rule=rule, rank=rank), Level("fast", every=4, rule=rule, rank=rank)]
    rows = cost(model, levels, "depth", {"slow": 8})
    learner = stack_levels(model, levels, where="depth", extra={"slow": 8})
    learner.read(tokens(1, 45)[0])
    for row, memory in zip(rows, learner.memory.levels, strict=True):
        kept = [t for factor in memory.factors.values() for t in memory.optimizer.state[factor].values()]
        gathered = [*memory.sums.values(), *memory.grams.values()]
        assert row["matrices"] == len(memory.layers)
        assert row["parameters"] == sum(model.get_submodule(one).weight.numel() for one in memory.layers)
        assert row["deviation"] == sum(factor.nbytes for factor in memory.factors.values())
        assert row["state"] == sum(t.nbytes for t in kept if isinstance(t, torch.Tensor) and t.ndim > 0)
        assert row["gradient"] == sum(gradient.nbytes for gradient in gathered)
    assert len(matching(model)) == sum(row["matrices"] for row in rows) - 6
