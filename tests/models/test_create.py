"""Names, sizes and fields; equal parameters within a size; a user's mistakes as sentences."""

import functools

import pytest
import torch
from transformers import DynamicCache

from models.conftest import make, tokens
from nestling.errors import InputError
from nestling.models import MemoryCache, create, parameters, sizes
from nestling.models.registry import configuration
from nestling.models.sizes import matched
from tables import MODELS

ABOUT = {"nano": 1.5e6, "micro": 1e7, "small": 5e7, "340m": 3.4e8, "760m": 7.6e8, "1.3b": 1.3e9}


@functools.cache
def reference(size):
    """Parameters of the Transformer++ of this size."""
    return parameters(configuration("transformer++", **sizes()[size]))


@pytest.mark.parametrize("size", list(ABOUT))
@pytest.mark.parametrize("name", list(MODELS))
def test_models_of_a_size_have_equal_parameters(name, size):
    shape, target = sizes()[size], reference(size)
    assert target == pytest.approx(ABOUT[size], rel=0.35)
    width = matched(name, **shape)
    assert parameters(configuration(name, **shape | {"intermediate_size": width})) == pytest.approx(target, rel=0.03)


def test_the_match_finds_the_width_it_started_from():
    assert matched("transformer++", **sizes()["nano"]) == sizes()["nano"]["intermediate_size"]


def test_counting_parameters_draws_no_random_numbers(name):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    parameters(configuration(name))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fields_reach_the_model(name):
    model = create(name, "nano", num_hidden_layers=1, vocab_size=300)
    assert model.lm_head.weight.shape == (300, 128)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert create(name, num_hidden_layers=1, tie_word_embeddings=False).lm_head.weight.shape == (256, 128)


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        (("transformer+",), {}, r"model 'transformer\+' is unknown: .*did you mean transformer\+\+"),
        (("transformer++", "mikro"), {}, "size 'mikro' is unknown: .*did you mean micro"),
        (("transformer++",), {"hiden_size": 3}, "field 'hiden_size' is unknown: .*did you mean hidden_size"),
        (("transformer++",), {"hidden_size": 130}, "hidden_size=130 is not divisible by .*=4: use 2 or 5 heads"),
        (("transformer++",), {"hidden_size": 132, "num_attention_heads": 12}, "multiple of twice num_attention_heads"),
        (("transformer++",), {"hidden_size": "wide"}, "'hidden_size'.*expected int"),
        (("transformer++",), {"num_hidden_layers": 0}, "num_hidden_layers=0 must be at least 1"),
        (("transformer++",), {"num_key_value_heads": 3}, "num_key_value_heads=3 must divide"),
    ],
)
def test_mistakes_in_create(arguments, fields, message):
    with pytest.raises(InputError, match=message) as caught:
        create(*arguments, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "exactly one"),
        ({"input_ids": tokens(2, 0)}, "at least one token"),
        ({"attention_mask": torch.ones(2, 5)}, r"shape \(2, 5\), but it must be \(2, 4\)"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])}, "no real token in row 1"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]])}, "between the real tokens of row 1"),
        ({"cache": DynamicCache()}, "is a DynamicCache"),
    ],
)
def test_mistakes_in_forward(inputs, message):
    inputs = inputs if not inputs or "input_ids" in inputs else {"input_ids": tokens(2, 4), **inputs}
    with pytest.raises(InputError, match=message):
        make("transformer++")(**inputs)


def test_cache_of_another_batch():
    model = make("transformer++")
    cache = model(tokens(2, 4), use_cache=True).cache
    with pytest.raises(InputError, match="holds 2 sequences, but the input 3"):
        model(tokens(3, 4), cache=cache)
    assert MemoryCache().get_max_length() == -1


def test_carried_state_through_reentrant_checkpointing():
    model = make("transformer++").train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InputError, match="use_reentrant=False"):
        model(tokens(2, 4), use_cache=True)


def test_levels_that_share_a_width_are_matched_too():
    levels = [{}, {"signal": "self"}, {"signal": "self", "chunk_size": 128}]
    made, reference = (
        create(name, "nano", num_hidden_layers=2, **fields)
        for name, fields in (("hope-attention", {"levels": levels}), ("transformer++", {}))
    )
    counts = [sum(p.numel() for p in model.parameters()) for model in (made, reference)]
    assert abs(counts[0] / counts[1] - 1) <= 0.03
