"""How weights start: a mixer's own values stand, new or loaded."""

import torch
from torch import nn

from models.conftest import tokens
from nestling.layers.residual import Output
from nestling.models import NestlingConfig, NestlingForCausalLM, NestlingModel, create


class Special(nn.Module):
    """A mixer whose child starts at a value of its own."""

    def __init__(self, width):
        super().__init__()
        self.rate = nn.Linear(width, width)
        self.output = Output(width, width)
        self.reset_parameters()

    def reset_parameters(self):
        with torch.no_grad():
            self.rate.bias.fill_(-3.0)

    def forward(self, x, state=None, lengths=None, keep=False):
        return self.output(self.rate(x)), {} if keep else None


class SpecialConfig(NestlingConfig):
    model_type = "special"

    def mixer(self, layer):
        return Special(self.hidden_size)


class SpecialModel(NestlingModel):
    config_class = SpecialConfig


class SpecialForCausalLM(NestlingForCausalLM):
    config_class, base_class = SpecialConfig, SpecialModel


@torch.no_grad()
def test_special_values_stand(tmp_path):
    model = SpecialForCausalLM(SpecialConfig(num_hidden_layers=2))
    biases = [block.mixer.rate.bias for block in model.model.layers]
    assert all((bias == -3).all() for bias in biases)
    biases[1].fill_(5.0)
    model.save_pretrained(tmp_path)
    again = SpecialForCausalLM.from_pretrained(tmp_path)
    assert (again.model.layers[1].mixer.rate.bias == 5).all()
    ids = tokens(1, 9)
    assert torch.equal(model.eval()(ids).logits, again(ids).logits)


def test_scales():
    torch.manual_seed(0)
    model = create("transformer++", num_hidden_layers=2)
    block = model.model.layers[0]
    for weight, expected in (
        (model.model.embed_tokens.weight, 0.02),
        (block.mixer.query.weight, 0.02),
        (block.mixer.output.weight, 0.01),
        (block.channel.output.weight, 0.01),
    ):
        torch.testing.assert_close(weight.std().item(), expected, rtol=0.05, atol=0)
