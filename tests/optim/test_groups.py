"""Which parameter gets which rule."""

import pytest
import torch
from torch import nn

from nestling import models
from nestling.errors import InputError
from nestling.optim import M3, param_groups


class Net(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.conv = nn.Conv2d(8, 8, 3)
        self.gates = nn.Linear(16, 2)
        self.start = nn.Parameter(torch.zeros(16, 16))
        self.start._no_weight_decay = True
        self.frozen = nn.Parameter(torch.zeros(16, 16), requires_grad=False)
        self.head = nn.Linear(16, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def rules(groups):
    return {name: (g["rule"], g.get("weight_decay")) for g in groups for name in g["names"]}


def test_every_kind_gets_its_rule():
    found = rules(param_groups(Net()))
    assert found == {
        "embed.weight": ("adamw", 0.0),
        "layers.0.weight": ("matrix", None),
        "layers.0.bias": ("adamw", 0.0),
        "layers.1.weight": ("matrix", None),
        "layers.1.bias": ("adamw", 0.0),
        "conv.weight": ("matrix", None),
        "conv.bias": ("adamw", 0.0),
        "gates.weight": ("adamw", 0.0),
        "gates.bias": ("adamw", 0.0),
        "start": ("adamw", 0.0),
        "head.weight": ("adamw", None),
    }


def test_a_tied_head_is_an_embedding():
    found = rules(param_groups(Net(tied=True)))
    assert found["embed.weight"] == ("adamw", 0.0)
    assert "head.weight" not in found


def test_names_go_with_parameters():
    net = Net()
    named = dict(net.named_parameters())
    for group in param_groups(net):
        assert all(named[name] is p for name, p in zip(group["names"], group["params"], strict=True))


def test_our_models_memories_start_without_decay():
    model = models.create("hope", "nano", vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    found = rules(param_groups(model))
    starts = [name for name in found if ".initial." in name]
    assert starts
    assert all(found[name] == ("adamw", 0.0) for name in [*starts, "model.embed_tokens.weight"])
    assert found["model.layers.0.mixer.output.weight"] == ("matrix", None)
    assert found["model.layers.0.mixer.conv.weight"] == ("adamw", 0.0)


def test_untied_heads_of_our_models_decay_under_adamw():
    fields = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = models.create("transformer++", "nano", tie_word_embeddings=False, **fields)
    assert rules(param_groups(model))["lm_head.weight"] == ("adamw", None)


def test_overrides_have_the_last_word():
    groups = param_groups(Net(), {"layers.*": {"lr": 0.5}, "layers.1.weight": "adamw", "head.weight": "matrix"})
    found = rules(groups)
    assert found["layers.1.weight"] == ("adamw", None)
    assert found["head.weight"] == ("matrix", None)
    rates = {name: g.get("lr") for g in groups for name in g["names"]}
    assert rates["layers.0.weight"] == rates["layers.1.bias"] == 0.5
    assert rates["conv.weight"] is None
    assert [g["lr"] for g in M3(groups, lr=0.1).param_groups] == [g.get("lr", 0.1) for g in groups]


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(InputError, match=r"no trainable parameter's name matches 'layer\.\*'; names look like"):
        param_groups(Net(), {"layer.*": "adamw"})
    with pytest.raises(InputError, match="matches 'frozen'"):
        param_groups(Net(), {"frozen": "adamw"})
    with pytest.raises(InputError, match="no trainable parameter"):
        param_groups(nn.Tanh(), {"*": "adamw"})


def test_an_unknown_rule_is_an_error():
    with pytest.raises(InputError, match="asks for the rule 'muon'; give auto or matrix or adamw"):
        param_groups(Net(), {"*": "muon"})


def test_the_table_shows_layers_together():
    lines = str(param_groups(Net(), {"conv.weight": {"lr": 0.5}})).splitlines()
    assert lines[0].split() == ["parameter", "shape", "of", "these", "rule", "settings"]
    assert ["layers.*.weight", "16", "x", "16", "2", "matrix"] in [line.split() for line in lines]
    assert any(line.startswith("conv.weight") and line.endswith("lr=0.5") for line in lines)


def test_optim_is_light():
    """It loads no transformers."""
    import subprocess
    import sys

    code = "import sys, nestling.optim; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
