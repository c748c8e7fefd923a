"""AdaTransformer's feed-forward: Eq. 69 token by token, and the Transformer's where nothing is written."""

import pytest
import torch
from torch.nn.functional import normalize, rms_norm

from nestling import models
from nestling.errors import InputError
from nestling.layers.adaptive import START_STEP, AdaptiveFeedForward, SharedAttention
from nestling.layers.attention import Attention
from nestling.models.registry import configuration

D, WIDTH, LENGTH = 6, 10, 37
FORMS = pytest.mark.parametrize("width", [WIDTH, None], ids=["swiglu", "matrix"])


def mixer(width=WIDTH, size=4):
    torch.manual_seed(0)
    layer = AdaptiveFeedForward(D, width).double()
    layer.size = size
    return layer


def streams(*lead, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*lead, D, dtype=torch.float64, generator=generator) for _ in range(3))


def definition(layer, x, key, value):
    """One sequence (T, D): Eq. 69 with the matrix of every token."""
    M, eta, outputs = layer.output.weight, layer.log_step.exp(), []
    for n, k, v in zip(x, key, value, strict=True):
        M = M + eta * torch.outer(v, normalize(layer.feature(rms_norm(k, (D,), eps=1e-5)), dim=0))
        outputs.append(M @ layer.feature(n))
    return torch.stack(outputs)


@pytest.mark.paper("Eq. 21", "Eq. 69")
@FORMS
def test_values_and_gradients_are_those_of_the_definition(width):
    layer, given = mixer(width), [x.requires_grad_() for x in streams(2, LENGTH)]
    found = []
    for y in (
        layer(given[0], None, None, False, *given[1:])[0],
        torch.stack([definition(layer, *rows) for rows in zip(*given, strict=True)]),
    ):
        inputs = [*given, *layer.parameters()]
        found.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("cut", [1, 3, 4, 8, 19])
def test_padding_and_cuts(cut):
    layer, given = mixer(), streams(2, LENGTH)
    reals = (cut, cut // 2)
    first = [x[:, :cut] for x in given]
    _, state = layer(first[0], None, torch.tensor(reals), True, *first[1:])
    y, _ = layer(given[0][:, cut:], state, None, True, *(x[:, cut:] for x in given[1:]))
    for b, real in enumerate(reals):
        alone = definition(layer, *(torch.cat((x[b, :real], x[b, cut:])) for x in given))
        torch.testing.assert_close(y[b], alone[real:], rtol=1e-10, atol=1e-13)


@pytest.mark.paper("Eq. 69")
def test_without_writes_it_is_the_transformer():
    """The two differ in the level of one matrix alone."""
    shape = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 24, "initializer_range": 0.3}
    torch.manual_seed(0)
    plain, adaptive = (models.create(name, **shape).double() for name in ("transformer++", "adatransformer"))
    missing = adaptive.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == [f"model.layers.{layer}.channel.log_step" for layer in range(2)]
    ids = torch.randint(1, 31, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        apart = (plain(ids).logits - adaptive(ids).logits).abs().max()
        for block in adaptive.model.layers:
            block.channel.log_step.fill_(-torch.inf)
        torch.testing.assert_close(adaptive(ids).logits, plain(ids).logits, rtol=1e-12, atol=1e-13)
    assert apart > 1e-3


def test_keys_and_values_are_the_attentions():
    torch.manual_seed(0)
    shared = SharedAttention(8, 2)
    plain = Attention(8, 2)
    plain.load_state_dict(shared.state_dict())
    x = torch.randn(2, 9, 8)
    y, state, handed = shared(x, keep=True)
    key, value = handed.channel
    expected, other = plain(x, keep=True)
    assert torch.equal(y, expected)
    assert torch.equal(state["k"], other["k"])
    assert torch.equal(key, plain.key(x))
    assert torch.equal(value, plain.value(x))


def test_bf16_and_autocast_keep_the_matrix_in_float32():
    given = [x.float() for x in streams(2, LENGTH)]
    for layer, rows in ((mixer().bfloat16(), [x.bfloat16() for x in given]), (mixer().float(), given)):
        with torch.autocast("cpu", torch.bfloat16):
            y, state = layer(rows[0], None, None, True, *rows[1:])
        y.float().square().sum().backward()
        assert state["deviation"].dtype == torch.float32
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_start_size_and_forms():
    layer = mixer()
    assert layer.log_step.detach().exp().item() == pytest.approx(START_STEP)
    (memory,) = layer.components()
    assert (memory.period, memory.parameters) == (1, D * WIDTH)
    assert mixer(None).output.weight.shape == (D, D)
    with pytest.raises(InputError, match="feedforward 'mlp' is unknown"):
        configuration("adatransformer", feedforward="mlp")
