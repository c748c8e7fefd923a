"""What of a memory matters for a text: the diagonal of the empirical Fisher information (Kirkpatrick et al. 2017)."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from nestling.continual.memory import Key, StreamMemory
from nestling.continual.segment import learn
from nestling.continual.weights import Linear


def importance(
    model: nn.Module, memory: StreamMemory, layers: Mapping[str, Linear], segments: Iterable[tuple[Tensor, Tensor]]
) -> list[dict[Key, Tensor]]:
    """By level and factor, the sum over segments of the squared gradient of a segment's loss, divided by its tokens.

    A segment whose loss or gradient is not finite counts as nothing.

    Args:
        memory: at whose deviations; left as it is.
        segments: what the model reads, and what it predicts, (1, m) each.
    """
    probe = StreamMemory([level.level for level in memory.levels], memory.layers)
    probe.restore(memory.state())
    totals: list[dict[Key, Tensor]] = [{} for _ in memory.levels]
    for inputs, targets in segments:
        for level in probe.levels:
            level.sums, level.grams, level.tokens = {}, {}, 0
        learn(model, dict(layers), [probe], inputs, targets)
        for total, level in zip(totals, probe.levels, strict=True):
            for key, gradient in level.sums.items():
                total[key] = total.get(key, 0) + gradient.square() / level.tokens
    return totals
