"""MLP blocks are found by structure, in every family, and nothing else is taken for one."""

import pytest
import torch
from torch import nn

from continual.tiny import NAMES, tiny
from nestling.continual.blocks import linear_like, matching, mlp_blocks, sides
from nestling.errors import InputError

GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
CHANNEL = ("channel.gate", "channel.up", "channel.output")
EXPECTED = {
    "llama": ("model.layers", GATED),
    "qwen2": ("model.layers", GATED),
    "qwen3": ("model.layers", GATED),
    "mistral": ("model.layers", GATED),
    "phi": ("model.layers", ("mlp.fc1", "mlp.fc2")),
    "phi3": ("model.layers", ("mlp.gate_up_proj", "mlp.down_proj")),
    "gemma": ("model.layers", GATED),
    "gemma2": ("model.layers", GATED),
    "gemma3": ("model.layers", GATED),
    "gpt2": ("transformer.h", ("mlp.c_fc", "mlp.c_proj")),
    "opt": ("model.decoder.layers", ("fc1", "fc2")),
    "gpt-neox": ("gpt_neox.layers", ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")),
    "transformer++": ("model.layers", CHANNEL),
    "hope": ("model.layers", ("channel.blocks.0.gate", "channel.blocks.0.up", "channel.blocks.0.output")),
    "hope-attention": (
        "model.layers",
        (
            "channel.blocks.0.gate",
            "channel.blocks.0.up",
            "channel.blocks.0.output",
            "channel.blocks.1.up",
            "channel.blocks.1.output",
        ),
    ),
    "rwkv-7": ("model.layers", ("channel.up", "channel.output")),
}


def expected(name):
    stack, parts = EXPECTED[name]
    return [[f"{stack}.{layer}.{part}" for part in parts] for layer in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_of_every_family(name):
    model = tiny(name)
    blocks = mlp_blocks(model)
    assert blocks == expected(name)
    assert matching(model) == [name for block in blocks for name in block]
    assert all(linear_like(model.get_submodule(name)) for block in blocks for name in block)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "opt"])
def test_a_hidden_width_equal_to_the_models_does_not_confuse(name):
    """Attention's projections then have the shapes of an MLP's."""
    field = {"gpt2": "n_inner", "opt": "ffn_dim"}.get(name, "intermediate_size")
    assert mlp_blocks(tiny(name, **{field: 32})) == expected(name)


def test_slow_projections_of_a_memory_are_no_part_of_its_block():
    levels = [{"signal": "self", "chunk_size": 8}, {"signal": "self", "chunk_size": 4, "form": "plain"}]
    model = tiny("hope-attention", levels=levels, intermediate_size=64)
    assert isinstance(model.get_submodule("model.layers.0.channel.blocks.0.value"), nn.Linear)
    assert mlp_blocks(model) == expected("hope-attention")


def test_where_a_model_comes_from_does_not_matter():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.feed = nn.Linear(8, 24), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
            self.back = nn.Linear(8, 8)

    model = nn.Sequential(nn.Embedding(5, 8), nn.ModuleList(Layer() for _ in range(2)))
    assert mlp_blocks(model) == [[f"1.{layer}.feed.0", f"1.{layer}.feed.2"] for layer in range(2)]


def test_conv1d_is_linear_and_turned():
    conv = tiny("gpt2").get_submodule("transformer.h.0.mlp.c_fc")
    assert linear_like(conv)
    assert sides(conv) == (32, 128)
    assert sides(nn.Linear(3, 5)) == (3, 5)
    assert not any(map(linear_like, [nn.Embedding(3, 4), nn.Conv1d(3, 4, 1), nn.LayerNorm(4), nn.Bilinear(2, 3, 4)]))
    quantized = nn.Linear(3, 5)
    quantized.weight = nn.Parameter(torch.zeros(5, 3, dtype=torch.int8), requires_grad=False)
    assert not linear_like(quantized)


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ([1], [1]),
        ([-1, 0], [0, 2]),
        ((2, 2), [2]),
        ("model.layers.1.mlp.*", [1]),
        (["*.2.mlp.*", "*.0.mlp.*"], [0, 2]),
    ],
)
def test_layers_and_patterns(where, found):
    assert matching(tiny("llama"), where) == [name for layer in found for name in expected("llama")[layer]]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "transformer++"])
def test_all_linear_layers_but_the_head(name):
    model = tiny(name)
    names = matching(model, "linear")
    linears = [path for path, module in model.named_modules() if linear_like(module)]
    assert names == linears[:-1]
    assert model.get_submodule(linears[-1]) is model.get_output_embeddings()
    assert set(matching(model)) < set(names)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ([3], "no decoder layer 3: give -3 to 2"),
        ([-4], "no decoder layer -4"),
        ("model.layers.*.mlp.gate", "no linear layer of the model matches 'model.layers.*.mlp.gate'; .*gate_proj"),
        (["*.mlp.*", "model.norm"], "matches 'model.norm'"),
        ([], "None, 'linear', layer numbers or name patterns"),
        ([0, "*"], "layer numbers or name patterns"),
        ([True], "layer numbers or name patterns"),
    ],
)
def test_what_selects_nothing_is_refused(where, words):
    with pytest.raises(InputError, match=words.replace("*", r"\*").replace(r".\*gate", ".*gate")):
        matching(tiny("llama"), where)


def test_a_mixture_of_experts_is_refused():
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=61, num_hidden_layers=1, num_local_experts=2, **shape))
    with pytest.raises(InputError, match=r"model.layers.0 has no MLP .* batched .* mixture of experts .* where="):
        mlp_blocks(model)
    assert matching(model, "*.self_attn.q_proj") == ["model.layers.0.self_attn.q_proj"]


def test_quantized_linear_layers_are_refused():
    model = tiny("llama")
    for module in model.get_submodule("model.layers.1.mlp").children():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"model.layers.1 has no MLP .* quantized \(torch.int8\)"):
        mlp_blocks(model)


def test_an_encoder_and_decoder_is_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=61, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    with pytest.raises(InputError, match="an encoder and a decoder: give a decoder-only"):
        mlp_blocks(model)


def test_no_list_or_several_lists_of_layers_are_refused():
    with pytest.raises(InputError, match="Linear has no list of layers"):
        mlp_blocks(nn.Linear(3, 3))
    one = tiny("llama")
    with pytest.raises(InputError, match=r"2 lists of layers \(a.model.layers, b.model.layers\)"):
        mlp_blocks(nn.ModuleDict({"a": one, "b": tiny("llama", seed=1)}))
