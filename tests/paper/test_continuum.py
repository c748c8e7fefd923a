"""The Continuum Memory System: Sec. 3.3 (one flow of gradient, many frequencies), 7.1 and 7.3."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from nestling.layers.cms import CMSBlock, CMSLevel, ContinuumMemory
from nestling.layers.feedforward import MLP
from nestling.memory.gd import GD
from nestling.memory.memory import Memory
from nestling.memory.objective import L2
from nestling.memory.parallel import chunked
from nestling.memory.structure import ResidualMLP, fixed, init
from nestling.optim.multifrequency import MultiFrequency
from paper.solve import close, differ, distance

D, HIDDEN, T = 4, 6, 13


def system(*levels: CMSLevel, variant: str = "sequential") -> ContinuumMemory:
    """A system with lively weights."""
    chain = ContinuumMemory(D, HIDDEN, levels, variant)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return chain


@pytest.mark.paper("Eq. 70, 74")
def test_a_chain_and_a_sum() -> None:
    """Chained, block after block reads what the one before put out (each added to its input, and normalized between).

    Independent, all read the same, and their outputs are summed with learned weights.
    """
    x, levels = torch.randn(1, T, D), (CMSLevel(),) * 3
    chain = system(*levels)
    h = x
    for index, block in enumerate(chain.chain):
        h = h + block.static(rms_norm(h, (D,), eps=1e-5) if index else h)
    close(x + chain(x)[0], h)
    independent = system(*levels, variant="independent")
    parts = torch.stack([block.static(x) for block in independent.chain])
    close(independent(x)[0], torch.einsum("l,lbtd->btd", independent.mix, parts))


@pytest.mark.paper("Eq. 70")
def test_one_block_is_the_feed_forward_block() -> None:
    """k = 1: the Transformer's MLP block, with its weights under the same names."""
    chain, plain = ContinuumMemory(D, HIDDEN, [CMSLevel(form="plain")]), MLP(D, HIDDEN)
    plain.load_state_dict({name.removeprefix("blocks.0."): w for name, w in chain.state_dict().items()})
    x = torch.randn(2, T, D)
    assert torch.equal(chain(x)[0], plain(x)[0])


def errors(weights: list[Tensor], k: Tensor, v: Tensor) -> list[Tensor]:
    """Gradients of one token's L2 loss."""
    leaves = [w.clone().requires_grad_() for w in weights]
    return list(torch.autograd.grad(distance(ResidualMLP().forward(fixed(leaves), k[None]), v), leaves))


@pytest.mark.paper("Eq. 71")
def test_a_block_is_updated_with_the_errors_of_its_period() -> None:
    """In context: every C tokens, by the sum of the C errors since, each at the weights that stood then.

    The sum as printed has C + 1 terms: the last token of every period would count twice.
    """
    size, eta, k, v = 4, 0.1, torch.randn(T, D), torch.randn(T, D)
    memory = Memory(ResidualMLP(), L2(), (GD(), GD()), read="boundary", chunk_size=size)
    start = init(ResidualMLP(), D, D, HIDDEN)
    out, state = chunked(memory, memory.init_state(start), k, k, v, torch.full((T,), eta), torch.ones(T))
    thetas = {}
    for name, extra in {"C": 0, "C + 1": 1}.items():
        theta = list(start)
        for i in range(size, T, size):
            found = [errors(theta, k[t], v[t]) for t in range(max(0, i - size - extra), i)]
            if not extra:
                close(out[i - size : i], ResidualMLP().forward(fixed(theta), k[i - size : i]))
            theta = [w - eta * sum(gradients) for w, *gradients in zip(theta, *found, strict=True)]
        thetas[name] = theta
    for w, right, printed in zip(memory.weights(state, state.boundary), *thetas.values(), strict=True):
        close(w, right)
        differ(w, printed)


def train(chain: ContinuumMemory, optimizer: torch.optim.Optimizer, steps: int) -> list[list[Tensor]]:
    """Gradients of every step, and the weights after it, of two blocks on one stream of batches."""
    record = []
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(1, T, D)
        distance(x + chain(x)[0], x.roll(1, -1)).backward()
        record.append([block.up.weight.grad.clone() for block in chain.chain])
        optimizer.step()
        record[-1] += [block.up.weight.detach().clone() for block in chain.chain]
    return record


@pytest.mark.paper("Eq. 71", "Sec. 3.3, backpropagation")
def test_blocks_of_one_flow_of_gradient_have_their_own_frequencies() -> None:
    """One backward pass gives every block its error; each block takes its step when it is due, with the sum since."""
    chain, rate, period = system(CMSLevel(period=3), CMSLevel()), 0.05, 3
    slow, fast = ({"params": list(block.parameters())} for block in chain.chain)
    optimizer = MultiFrequency(torch.optim.SGD([slow | {"period": period}, fast], lr=rate))
    old, waiting = [block.up.weight.detach().clone() for block in chain.chain], torch.zeros(HIDDEN // 2, D)
    for step, (slow_error, fast_error, slow_weight, fast_weight) in enumerate(train(chain, optimizer, 8), 1):
        waiting = waiting + slow_error
        assert slow_error.abs().max() > 0
        close(fast_weight, old[1] - rate * fast_error)
        if step % period == 0:
            close(slow_weight, old[0] - rate * waiting)
            waiting = torch.zeros_like(waiting)
        else:
            assert torch.equal(slow_weight, old[0])
        old = [slow_weight, fast_weight]


@pytest.mark.paper("Eq. 73")
def test_all_initial_states_are_learned_at_the_slowest_level() -> None:
    """Behind their updates in context, the initial states of all blocks of a chain get exact gradients of the loss."""
    chain = system(CMSLevel("self", 6), CMSLevel("self", 3, "dgd"))
    x, seed = torch.randn(1, T, D), torch.randn(1, T, D)
    names = [name for name, _ in chain.named_parameters() if "up" in name or "output" in name]
    values = [chain.get_parameter(name) for name in names]
    slopes = torch.autograd.grad((chain(x)[0] * seed).sum(), values)
    step = 1e-6
    for name, value, slope in zip(names, values, slopes, strict=True):
        direction = torch.randn_like(value)
        ends = []
        for sign in (1, -1):
            moved = {name: value.detach() + sign * step * direction}
            ends.append((torch.func.functional_call(chain, moved, (x,))[0] * seed).sum().detach())
        close((ends[0] - ends[1]) / (2 * step), (slope * direction).sum(), 1e-7)


@pytest.mark.paper("Sec. 7.3, stacking")
def test_with_step_zero_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that start from given weights and take steps of size 0 are those blocks, whatever their levels."""
    signals = (CMSLevel("self", 6), CMSLevel("self", 3, "dgd"))
    chain, plain = system(*signals), ContinuumMemory(D, HIDDEN, (CMSLevel(), CMSLevel()))
    given = {name: w for name, w in chain.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(given)
    x, rates = torch.randn(2, T, D), CMSBlock.rates
    differ(chain(x)[0], plain(x)[0])

    def still(block: CMSBlock, n: Tensor) -> tuple[Tensor, Tensor]:
        eta, log_alpha = rates(block, n)
        return torch.zeros_like(eta), log_alpha

    monkeypatch.setattr(CMSBlock, "rates", still)
    close(chain(x)[0], plain(x)[0])


@pytest.mark.paper("Sec. 7.3, stacking")
def test_with_rate_zero_and_no_decay_training_changes_nothing() -> None:
    """The same on the axis of optimizer steps, at any period."""
    chain = system(CMSLevel(period=2), CMSLevel())
    groups = [{"params": list(block.parameters()), "period": 2 - i} for i, block in enumerate(chain.chain)]
    before = [w.detach().clone() for w in chain.parameters()]
    train(chain, MultiFrequency(torch.optim.AdamW(groups, lr=0.0, weight_decay=0.1)), 4)
    assert all(torch.equal(a, b) for a, b in zip(before, chain.parameters(), strict=True))
