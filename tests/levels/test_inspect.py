"""What is found behind models and optimizers: ours, torch's, transformers'."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from nestling import models
from nestling.errors import InputError
from nestling.levels import Component, Transfer, inspect
from nestling.optim import M3, MultiFrequency, Muon, param_groups
from tables import MODELS, TINY

STEP = 4096


def found(model, optimizer=None, step_tokens=STEP):
    """Frequency, name and numbers of every component, level by level."""
    system = inspect(model, optimizer, step_tokens)
    return [[(system.frequency(one), one.name, one.parameters) for one in level] for level in system.levels]


def size(model):
    return sum(p.numel() for p in model.parameters())


class LinearAttention(nn.Module):
    """Eq. 14-16, in the paper's words."""

    def __init__(self, width=4):
        super().__init__()
        self.k, self.v, self.q = (nn.Linear(width, width, bias=False) for _ in range(3))

    def components(self):
        transfers = (Transfer("context generation", "weights", "M"), Transfer("direct", "M", "weights:q"))
        return [Component("M", "memory", 1, objective="dot product", rule="GD", parameters=16, transfers=transfers)]


@pytest.mark.parametrize("step_tokens", [1, STEP])
def test_linear_attention_trained_with_momentum_has_the_papers_three_levels(step_tokens):
    model = LinearAttention()
    system = inspect(model, SGD(model.parameters(), lr=0.1, momentum=0.9), step_tokens)
    assert [[one.name for one in level] for level in system.levels] == [["M"], ["momentum"], ["weights"]]
    assert {(t.kind, t.source, t.target) for t in system.transfers} == {
        ("context generation", "weights", "M"),
        ("direct", "M", "weights"),
        ("context generation", "weights", "momentum"),
        ("context generation", "momentum", "weights"),
    }


def test_one_layer_is_one_level_and_with_adam_two():
    model = nn.Linear(3, 2)
    assert found(model, SGD(model.parameters(), lr=0.1), 1) == [[("1", "weights", 8)]]
    assert found(model, Adam(model.parameters()), 1) == [
        [("1", "momentum", 8), ("1", "second moment", 8)],
        [("1", "weights", 8)],
    ]


def test_hope_with_a_continuum_of_blocks():
    levels = [{"signal": "self", "chunk_size": 32}, {"signal": "self", "chunk_size": 16}]
    model = models.create("hope", **TINY | {"chunk_size": 4, "projection_chunk_size": 8, "levels": levels})
    state, memory, block = 2 * 3 * 3 * 32, 2 * 2 * 2 * 16 * 16, 2 * 3 * 32 * 32
    weights = size(model)
    assert found(model, AdamW(model.parameters())) == [
        [("1", "short convolution", state)],
        [("1/4", "content memory", memory)],
        [("1/8", "projections (v, k, eta, alpha)", 4 * memory)],
        [("1/16", "CMS 16", block)],
        [("1/32", "CMS 32", block)],
        [("1/4,096", "momentum", weights), ("1/4,096", "second moment", weights)],
        [("1/4,096", "weights", weights)],
    ]
    passed = {(t.kind, t.source, t.target) for t in inspect(model).transfers}
    assert ("initialization", "weights", "content memory") in passed
    assert ("context generation", "projections (v, k, eta, alpha)", "content memory") in passed
    assert ("direct", "CMS 32", "CMS 16") in passed
    assert ("direct, non-parametric", "short convolution", "content memory") in passed


def test_a_nested_continuum_starts_the_faster_block():
    levels = [{"signal": "self", "chunk_size": 32}, {"signal": "self", "chunk_size": 16}]
    model = models.create("hope-attention", **TINY | {"levels": levels, "cms_variant": "nested"})
    assert Transfer("initialization", "CMS 32", "CMS 16") in inspect(model).transfers


def test_transformer_pp_and_a_frozen_part():
    model = models.create("transformer++", **TINY)
    model.model.embed_tokens.requires_grad_(False)
    embedding, rest = 61 * 32, size(model) - 61 * 32
    system = inspect(model, SGD([p for p in model.parameters() if p.requires_grad], lr=1.0))
    assert [[one.name for one in level] for level in system.levels] == [["attention"], ["weights"], ["frozen weights"]]
    assert (system["weights"].parameters, system["frozen weights"].parameters) == (rest, embedding)
    assert Transfer("direct, non-parametric", "attention", "weights") in system.transfers
    assert Transfer("direct", "frozen weights", "weights") in system.transfers
    assert system.frequency(system["attention"]) == "∞"


def test_what_the_optimizer_does_not_hold_is_frozen():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    assert found(model, SGD(model[1].parameters(), lr=1.0))[1] == [("0", "frozen weights", 12)]


def test_a_slow_block_without_a_signal_has_a_level_of_its_own():
    levels = [{"period": 4}, {}]
    model = models.create("hope-attention", **TINY | {"levels": levels})
    block = 2 * 3 * 32 * 32
    planned = found(model)
    assert planned[1:] == [
        [("1/4,096", "weights (every optimizer step)", size(model) - block)],
        [("1/16,384", "weights (every 4 optimizer steps)", block)],
    ]
    system = inspect(model, MultiFrequency(AdamW(param_groups(model))), STEP)
    assert [[one.name for one in level] for level in system.levels][1:] == [
        ["momentum (every optimizer step)", "second moment (every optimizer step)"],
        ["weights (every optimizer step)", "waiting gradients"],  # which wait for the others, and these for neither
        ["momentum (every 4 optimizer steps)", "second moment (every 4 optimizer steps)"],
        ["weights (every 4 optimizer steps)"],
    ]
    fast, slow = (f"weights (every {words})" for words in ("optimizer step", "4 optimizer steps"))
    assert Transfer("backpropagation", fast, slow) in system.transfers
    assert Transfer("context generation", "waiting gradients", "momentum (every 4 optimizer steps)") in system.transfers


def test_m3_has_momentums_of_two_frequencies():
    model = nn.Linear(16, 16, bias=False)
    matrix = 16 * 16
    assert found(model, M3(model.parameters(), frequency=7)) == [
        [("1/4,096", name, matrix) for name in ("momentum", "second moment", "gathered gradients")],
        [("1/4,096", "weights", matrix)],
        [("1/28,672", "slow momentum", matrix)],
    ]


def test_an_optimizer_of_ours_on_a_whole_model():
    model = models.create("hope", **TINY | MODELS["hope"])
    system = inspect(model, Muon(param_groups(model)))
    assert [one.name for one in system.levels[-1]] == ["weights (AdamW)", "weights (Muon)"]
    assert [one.name for one in system.levels[-2]] == ["momentum (AdamW)", "second moment", "momentum (Muon)"]
    assert sum(one.parameters for one in system.levels[-1]) == size(model)
    assert system["momentum (Muon)"].parameters == system["weights (Muon)"].parameters
    assert Transfer("initialization", "weights (AdamW)", "content memory") in system.transfers
    assert Transfer("initialization", "weights (Muon)", "content memory") not in system.transfers
    assert Transfer("direct", "content memory", "weights (Muon)") in system.transfers


@pytest.mark.parametrize(
    ("layer", "name", "frequency", "numbers"),
    [
        (nn.LSTM(3, 5, 2), "LSTM state", "1", 20),
        (nn.LSTM(3, 5, 1, proj_size=2), "LSTM state", "1", 7),
        (nn.GRU(3, 5, bidirectional=True), "GRU state", "1", 10),
        (nn.RNN(3, 5), "RNN state", "1", 5),
        (nn.LSTMCell(3, 5), "LSTM state", "1", 10),
        (nn.GRUCell(3, 5), "GRU state", "1", 5),
        (nn.MultiheadAttention(4, 2), "attention", "∞", 0),
        (nn.TransformerEncoderLayer(4, 2), "attention", "∞", 0),
        (nn.Conv1d(3, 3, 4, padding=3, groups=3), "short convolution", "1", 9),
        (nn.Conv1d(3, 6, 2, padding=4, dilation=4), "short convolution", "1", 12),
        (nn.BatchNorm1d(3), "running statistics", "1/4,096", 6),
        (nn.InstanceNorm2d(3, affine=True, track_running_stats=True), "running statistics", "1/4,096", 6),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_torchs_layers_with_a_state(layer, name, frequency, numbers):
    flat = [one for level in found(nn.Sequential(layer)) for one in level]
    assert sorted(flat) == sorted([(frequency, name, numbers), ("1/4,096", "weights", size(layer))])


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(3, 3, 3, padding=1), nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3, track_running_stats=False)]
)
def test_torchs_layers_without_one(layer):
    assert found(layer) == [[("1/4,096", "weights", size(layer))]]


def test_an_lstm_and_its_normalization():
    model = nn.ModuleDict({"lstm": nn.LSTM(4, 5), "norm": nn.BatchNorm1d(5), "head": nn.Linear(5, 2)})
    assert found(model, SGD(model.parameters(), lr=0.1, momentum=0.9), 1) == [
        [("1", "LSTM state", 10)],
        [("1", "momentum", size(model))],
        [("1", "running statistics", 10), ("1", "weights", size(model))],
    ]
    assert Transfer("backpropagation", "LSTM state", "weights") in inspect(model).transfers


def test_models_of_transformers():
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    mistral = MistralForCausalLM(
        MistralConfig(
            **sizes, intermediate_size=32, num_key_value_heads=1, sliding_window=128, max_position_embeddings=64
        )
    )
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    )
    for model, context in ((mistral, "the last 128 tokens"), (gpt2, "all tokens so far")):
        system = inspect(model, AdamW(model.parameters()))
        assert [[one.name for one in level] for level in system.levels] == [
            ["attention"],
            ["momentum", "second moment"],
            ["weights"],
        ]
        assert context in system["attention"].context


class Memory(nn.Module):
    def __init__(self, period):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, 4))
        self.period = period

    def components(self):
        return [Component("memory", "memory", self.period, parameters=16)]


def test_equal_components_of_several_blocks_are_one_and_others_get_their_own_names():
    model = nn.Sequential(Memory(8), Memory(64), Memory(8))
    assert found(model) == [
        [("1/8", "memory (every 8 tokens)", 32)],
        [("1/64", "memory (every 64 tokens)", 16)],
        [("1/4,096", "weights", 48)],
    ]


def test_a_module_speaks_for_its_submodules_and_an_attribute_of_that_name_says_nothing():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.components = nn.ModuleList([Memory(16)])

    class Chain(Memory):
        def __init__(self):
            super().__init__(2)
            self.inner = Memory(8)

    assert [level[0][1] for level in found(Named())] == ["memory", "weights"]
    assert found(Chain())[0] == [("1/2", "memory", 16)]


def test_tied_weights_count_once_and_nothing_is_allocated():
    with torch.device("meta"):
        model = models.create("hope", "340m")
    parameters = models.parameters(model.config)
    assert found(model, AdamW(model.parameters()))[-1] == [("1/4,096", "weights", parameters)]


def test_several_optimizers_and_one_of_another_model():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    both = [SGD(model[0].parameters(), lr=0.1), Adam(model[1].parameters())]
    assert [name for _, name, _ in found(model, both)[-1]] == ["weights (SGD)", "weights (Adam)"]
    with pytest.raises(InputError, match="optimizer: SGD holds no parameter of the model"):
        inspect(nn.Linear(2, 2), both[0])


def test_a_model_without_anything_and_a_wrong_name_of_weights():
    with pytest.raises(InputError, match="components: there are none"):
        inspect(nn.ReLU())

    class Wrong(Memory):
        def components(self):
            return [Component("M", "memory", 1, transfers=(Transfer("direct", "M", "weights:q"),))]

    with pytest.raises(InputError, match="'weights:q' names no parameter; there are w"):
        inspect(Wrong(1))


def test_m3_at_a_slower_pace_gathers_twice():
    model = nn.Linear(8, 8, bias=False)
    optimizer = MultiFrequency(M3([{"params": model.parameters(), "period": 3}], frequency=5))
    periods = {one.name: one.period for one in inspect(model, optimizer).components}
    assert periods == {
        "waiting gradients": 1,
        "momentum": 3,
        "second moment": 3,
        "gathered gradients": 3,
        "slow momentum": 15,
        "weights": 3,
    }
