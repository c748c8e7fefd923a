"""Long streams on which memories are likely to die."""

import math

import torch

STREAMS = ("random", "text", "repeated", "alternating", "turning")


def streams(table, text, length):
    """Embedded streams (5, T, D), in the order of STREAMS, by the embedding `table` (V, D).

    Two tokens serve the last three: one for ever; the two in turn; and a slow turn of one's embedding, once every 4,096
    tokens, in a plane with the other's, so that every direction is unlearned again.
    """
    vocabulary = len(table)
    generator = torch.Generator().manual_seed(0)
    first, second = 101 % vocabulary, 102 % vocabulary
    ids = [
        torch.randint(0, vocabulary, (length,), generator=generator),
        torch.from_numpy(text[:length].astype("int64")) % vocabulary,
        torch.full((length,), first),
        torch.tensor([first, second])[torch.arange(length) % 2],
    ]
    one, other = table[first], table[55]
    other = other - (one @ other) / (one @ one) * one
    other = other / other.norm() * one.norm()
    angle = torch.arange(length) * 2 * math.pi / 4096
    turning = angle.cos()[:, None] * one + angle.sin()[:, None] * other
    return torch.stack([*(table[row] for row in ids), turning])
